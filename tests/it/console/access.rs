//! Access to the debug console, by requests as they are on the wire.

use fanfare::app::App;
use fanfare::config::{ConsoleAccess, Network};

use super::{JSON, TOKEN, ask, by_token, get};
use crate::support::fixture::{Fixture, ID, KEY, SECRET};
use crate::support::http::Http;

const PATHS: [&str; 5] =
    ["/console", "/console/main.js", "/console/state", "/console/feed", "/console/apps/3/channels"];

#[test]
fn from_this_machine_it_is_open_and_through_anything_else_it_is_not() {
    let server = Fixture::start();
    for path in ["/console", "/console/main.js", "/console/state", "/console/apps/3/channels"] {
        for host in ["localhost", "127.0.0.1:8080", "[::1]"] {
            let answer = ask(&server, "GET", path, &format!("Host: {host}\r\n"), "");
            assert_eq!(answer.status, 200, "{path} of {host}");
            assert_eq!(answer.header("access-control-allow-origin"), None, "{path}");
            assert_eq!(answer.header("cache-control"), Some("no-store"));
            let policy = answer.header("content-security-policy").unwrap();
            assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"));
        }
    }
    let wrong = [
        "Host: ws.example.test\r\n",
        "Host: 127.0.0.1.example.test\r\n",
        "Host: 10.0.0.1\r\n",
        "Host: localhost\r\nX-Forwarded-For: 127.0.0.1\r\n",
        "Host: localhost\r\nX-Forwarded-Proto: https\r\n",
        "Host: localhost\r\nForwarded: for=127.0.0.1\r\n",
        "Host: localhost\r\nX-Real-IP: 127.0.0.1\r\n",
        "Host: localhost\r\nVia: 1.1 proxy\r\n",
        "Host: localhost\r\nConnection: upgrade\r\n",
        "Host: localhost\r\nHost: localhost\r\n",
    ];
    for headers in wrong {
        for path in PATHS {
            let answer = ask(&server, "GET", path, headers, "");
            // hyper itself refuses what has two hosts, or passes it on.
            assert!(matches!(answer.status, 400 | 403), "{path} with {headers}: {}", answer.status);
        }
    }
    let mut old = Http::connect(server.addr);
    old.send("GET /console/state HTTP/1.0\r\nHost: localhost\r\n\r\n");
    assert_eq!(old.answer().status, 403, "what speaks HTTP/1.0 is a proxy");
    let mut named = Http::connect(server.addr);
    named.send("GET http://ws.example.test/console/state HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(named.answer().status, 403);
}

#[test]
fn a_trusted_proxy_on_this_machine_does_not_open_it() {
    let network = Network { address: "127.0.0.1".parse().unwrap(), prefix: 32 };
    let server = Fixture::with_apps(vec![App::new(ID, KEY, SECRET)], |server| {
        server.trusted_proxies = vec![network];
    });
    for client in ["127.0.0.1", "203.0.113.7"] {
        let headers = format!("X-Forwarded-For: {client}\r\nX-Forwarded-Proto: https\r\n");
        assert_eq!(ask(&server, "GET", "/console/state", &headers, "").status, 403, "{client}");
    }
}

#[test]
fn switched_off_there_is_none() {
    let server = Fixture::with_config(vec![App::new(ID, KEY, SECRET)], |config| {
        config.console.access = ConsoleAccess::Off;
    });
    for path in PATHS {
        assert_eq!(get(&server, path).status, 404, "{path}");
    }
}

#[test]
fn a_page_of_another_origin_is_answered_nothing() {
    let server = Fixture::start();
    let foreign = [
        "Origin: http://evil.example.test\r\n",
        "Origin: null\r\n",
        "Sec-Fetch-Site: cross-site\r\n",
    ];
    for headers in foreign {
        for path in &PATHS[2..] {
            assert_eq!(ask(&server, "GET", path, headers, "").status, 403, "{path} {headers}");
        }
        let path = "/console/apps/3/users/ann/terminate_connections";
        let headers = format!("{headers}{JSON}");
        assert_eq!(ask(&server, "POST", path, &headers, "{}").status, 403, "{headers}");
    }
    let preflight = "Origin: http://evil.example.test\r\nAccess-Control-Request-Method: POST\r\n\
                     Access-Control-Request-Headers: content-type\r\n";
    let answer = ask(&server, "OPTIONS", "/console/apps/3/events", preflight, "");
    assert_eq!(answer.status, 403);
    assert_eq!(answer.header("access-control-allow-origin"), None);
    // What a form can send is not taken either, whatever a browser says of it.
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"] {
        let headers = format!("Content-Type: {kind}\r\n");
        for path in ["/console/apps/3/events", "/console/authorize", "/console/sign"] {
            assert_eq!(ask(&server, "POST", path, &headers, "{}").status, 400, "{path} {kind}");
        }
    }
    let own = format!("Host: localhost:1\r\nOrigin: http://localhost:1\r\n{JSON}");
    let body = r#"{"name":"e","channels":["c"],"data":"{}"}"#;
    assert_eq!(ask(&server, "POST", "/console/apps/3/events", &own, body).status, 200);
}

#[test]
fn the_token_opens_it_and_guessers_have_five_tries() {
    let server = by_token();
    let page = get(&server, "/console");
    assert_eq!(page.status, 401);
    assert!(page.text().contains("Token"), "the page asks for it");
    for path in &PATHS[2..] {
        assert_eq!(get(&server, path).status, 401, "{path}");
    }
    let log_in = |token: &str| {
        let body = serde_json::json!({ "token": token }).to_string();
        ask(&server, "POST", "/console/login", JSON, &body)
    };
    let answer = log_in(TOKEN);
    assert_eq!(answer.status, 200);
    let cookie = answer.header("set-cookie").unwrap().to_owned();
    for flag in ["HttpOnly", "SameSite=Strict", "Path=/console"] {
        assert!(cookie.contains(flag), "{cookie}");
    }
    assert!(!cookie.contains(TOKEN), "the cookie is not the token");
    let session = format!("Cookie: {}\r\n", cookie.split(';').next().unwrap());
    assert_eq!(ask(&server, "GET", "/console/state", &session, "").status, 200);
    let bearer = format!("Authorization: Bearer {TOKEN}\r\n");
    assert_eq!(ask(&server, "GET", "/console/state", &bearer, "").status, 200);
    for _ in 0..5 {
        assert_eq!(log_in("sixteen letters?").status, 401);
    }
    assert_eq!(log_in("sixteen letters?").status, 429);
    assert_eq!(log_in(TOKEN).status, 429, "the right one is not looked at either");
    assert_eq!(ask(&server, "GET", "/console/state", &bearer, "").status, 401);
    let known = ask(&server, "GET", "/console/state", &session, "").status;
    assert_eq!(known, 200, "whoever is in stays in");
}

#[test]
fn the_token_is_not_taken_in_the_clear_through_a_proxy() {
    let server = by_token();
    let bearer = format!("Authorization: Bearer {TOKEN}\r\n");
    let host = "Host: ws.example.test\r\n";
    let answer = ask(&server, "GET", "/console/state", &format!("{bearer}{host}"), "");
    assert_eq!(answer.status, 403);
    assert!(answer.text().contains("HTTPS"), "{}", answer.text());
}

#[test]
fn no_answer_holds_a_secret() {
    let server = Fixture::start();
    let sign = r#"{"app":"3","body":"{}"}"#;
    let authorize = r#"{"app":"3","socket_id":"1.2","channel":"private-c"}"#;
    for (method, path, body) in [
        ("GET", "/console", ""),
        ("GET", "/console/state", ""),
        ("GET", "/console/sockets", ""),
        ("POST", "/console/sign", sign),
        ("POST", "/console/authorize", authorize),
    ] {
        let answer = ask(&server, method, path, JSON, body);
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        assert!(!answer.text().contains(SECRET), "{path}");
    }
}
