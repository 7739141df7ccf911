//! What `fanfare doctor` says of servers, proxies and Redis that are not as they should be: one sentence each,
//! with how to mend it. The table of proxies and certificates is what operators of Reverb asked about most.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use fanfare::app::App;
use fanfare::config::Tls;

use crate::support::fixture::{Fixture, ID, KEY, SECRET};
use crate::support::redis::Redis;
use crate::support::shards::Shards;
use crate::support::wire::file;

/// `fanfare doctor` with these arguments and variables, in a folder with this `.env`.
fn doctor(name: &str, arguments: &[&str], variables: &[(&str, &str)], env: &str) -> Output {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("doctor-{name}"));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(".env"), env).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_fanfare"))
        .arg("doctor")
        .args(arguments)
        .current_dir(&folder)
        .env("SSL_CERT_FILE", file("one", "crt"))
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    fs::remove_dir_all(folder).unwrap();
    output
}

fn text(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

/// The app of a fixture, asked at `url`.
fn ask(name: &str, url: &str, trusted: &str) -> Output {
    let at = ["--url", url, "--app-id", ID, "--key", KEY, "--secret", SECRET];
    let trusted = file(trusted, "crt");
    doctor(name, &at, &[("SSL_CERT_FILE", trusted.to_str().unwrap())], "")
}

/// A server or proxy that answers each path by its beginning, and anything else with 404.
fn canned(answers: &[(&'static str, String)]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let answers = answers.to_vec();
    // It ends with the tests, like whatever it waits for.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read == 1)
            {
                head.push(byte[0]);
            }
            let head = String::from_utf8_lossy(&head).into_owned();
            let path = head.split(' ').nth(1).unwrap_or_default();
            let found = answers.iter().find(|(start, _)| path.starts_with(start));
            let answer = found.map_or_else(|| page("404 Not Found", ""), |(_, text)| text.clone());
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    addr
}

fn page(status: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
}

fn well() -> (&'static str, String) {
    ("/up", page("200 OK", "{\"health\":\"OK\"}"))
}

const HTML: &str = "<!DOCTYPE html><html><body>Laravel</body></html>";

#[test]
fn proxies_and_certificates_that_are_not_right_are_named() {
    let plain = Fixture::start();
    let with_tls = |name: &str| {
        Fixture::with_apps(vec![App::new(ID, KEY, SECRET)], |server| {
            server.tls = Some(Tls { cert: file(name, "crt"), key: file(name, "key") });
        })
    };
    let (one, old, other) = (with_tls("one"), with_tls("old"), with_tls("other"));
    let nginx = "<html><center>The plain HTTP request was sent to HTTPS port</center></html>";
    let redirect = "HTTP/1.1 301 Moved Permanently\r\nLocation: https://ws.example.test/up\r\n\
                    Content-Length: 0\r\n\r\n";
    let api = || ("/apps/", page("200 OK", "{\"channels\":{}}"));
    let http = |addr: SocketAddr| format!("http://{addr}");
    for (name, url, trusted, sentence) in [
        // Clients speak TLS where the server does not, and the other way round.
        ("tls-to-plain", format!("https://{}", plain.addr), "one", "it speaks plain HTTP there"),
        ("plain-to-tls", http(one.addr), "one", "This port speaks TLS: use https://"),
        ("to-nginx", http(canned(&[("/", page("400 Bad Request", nginx))])), "one", "use https://"),
        // Certificates: of an unknown issuer, out of date, for another name.
        ("issuer", format!("https://localhost:{}", one.addr.port()), "two", "is not trusted here"),
        ("date", format!("https://localhost:{}", old.addr.port()), "old", "renew the certificate"),
        (
            "name",
            format!("https://localhost:{}", other.addr.port()),
            "other",
            "is for another name",
        ),
        ("dns", "https://nobody.invalid".to_owned(), "one", "the name is not known here"),
        // Proxies: with nothing behind, that send on, that show the application, that pass on half.
        (
            "gateway",
            http(canned(&[("/", page("502 Bad Gateway", HTML))])),
            "one",
            "the proxy cannot reach it",
        ),
        (
            "redirect",
            http(canned(&[("/", redirect.to_owned())])),
            "one",
            "it sends visitors on to https://ws.example.test/up",
        ),
        ("page", http(canned(&[("/", page("200 OK", HTML))])), "one", "a web page is there"),
        (
            "half",
            http(canned(&[well(), ("/apps/", page("404 Not Found", HTML))])),
            "one",
            "refused with 404: a web page: the server does not have this app, or a proxy",
        ),
        (
            "upgrade",
            http(canned(&[well(), api(), ("/app/", page("400 Bad Request", "{}"))])),
            "one",
            "a proxy in between does not pass the upgrade on",
        ),
    ] {
        let output = ask(name, &url, trusted);
        assert!(text(&output).contains(sentence), "{name}: {}", text(&output));
        assert_eq!(output.status.code(), Some(1), "{name}: {}", text(&output));
        let ill = text(&output).lines().filter(|line| line.starts_with("FAIL")).count();
        assert_eq!(ill, 1, "{name}: {}", text(&output));
    }
    // A proxy that speaks plain HTTP to a server with TLS, seen through its own TLS.
    let behind = canned(&[("/", page("400 Bad Request", "This port speaks TLS"))]);
    let output = ask("behind", &http(behind), "one");
    assert!(text(&output).contains("This port speaks TLS: use https://"), "{}", text(&output));
}

/// The settings of a Laravel app whose server is `fixture`, and which sends its clients elsewhere.
fn laravel(fixture: &Fixture, public: &str) -> String {
    let port = fixture.addr.port();
    format!(
        "REVERB_APP_ID={ID}\nREVERB_APP_KEY={KEY}\nREVERB_APP_SECRET={SECRET}\n\
         REVERB_SERVER_HOST=127.0.0.1\nREVERB_SERVER_PORT={port}\n{public}\n"
    )
}

#[test]
fn a_laravel_app_is_looked_at_from_where_its_clients_are() {
    let fixture = Fixture::start();
    let port = fixture.addr.port();
    let quiet = [("FANFARE_METRICS__ENABLED", "false")];
    let here = format!("REVERB_HOST=127.0.0.1\nREVERB_PORT={port}\nREVERB_SCHEME=http");
    let output = doctor("here", &[], &quiet, &laravel(&fixture, &here));
    assert!(output.status.success(), "{}", text(&output));
    assert!(!text(&output).contains("public address"), "{}", text(&output));
    let proxy = canned(&[("/", page("502 Bad Gateway", HTML))]);
    for (name, public, sentence) in [
        (
            "there",
            format!("REVERB_HOST=127.0.0.1\nREVERB_PORT={}\nREVERB_SCHEME=http", proxy.port()),
            "the proxy cannot reach it",
        ),
        // Laravel's default is https.
        ("scheme", format!("REVERB_HOST=127.0.0.1\nREVERB_PORT={port}"), "it speaks plain HTTP"),
        ("all", "REVERB_HOST=0.0.0.0".to_owned(), "REVERB_HOST is where clients find the server"),
    ] {
        let output = doctor(name, &[], &quiet, &laravel(&fixture, &public));
        assert!(text(&output).contains("event: a triggered event came back"), "{}", text(&output));
        assert!(text(&output).contains("public address: http"), "{name}: {}", text(&output));
        assert!(text(&output).contains(sentence), "{name}: {}", text(&output));
        assert_eq!(output.status.code(), Some(1), "{name}: {}", text(&output));
    }
}

/// What doctor says of the Redis at `url`, of a server that is well.
fn of_redis(name: &str, fixture: &Fixture, url: &str) -> Output {
    let env = laravel(fixture, "");
    let variables = [("FANFARE_METRICS__ENABLED", "false"), ("FANFARE_CLUSTER__REDIS", url)];
    doctor(name, &[], &variables, &env)
}

#[test]
fn redis_is_looked_at_and_no_password_shown() {
    let Some(redis) = Redis::start() else { return };
    let fixture = Fixture::start();
    let addr = redis.cluster().redis[0].trim_start_matches("redis://").to_owned();
    let line = |name: &str, url: &str, well: bool| {
        let output = of_redis(name, &fixture, url);
        let text = text(&output);
        assert!(!text.contains("s3cr3t"), "{text}");
        assert_eq!(output.status.success(), well, "{text}");
        text.lines().find(|line| line.contains("  Redis: ")).expect(text).to_owned()
    };
    let found = line("redis", &format!("redis://{addr}"), true);
    assert!(found.starts_with("well") && found.contains("a message came back after"), "{found}");
    let (nobody, hung) = (port_of_nobody(), TcpListener::bind("127.0.0.1:0").unwrap());
    for (name, url, sentence) in [
        ("refused", format!("redis://127.0.0.1:{nobody}"), "nothing listens there: start Redis"),
        ("silent", format!("redis://{}", hung.local_addr().unwrap()), "no answer in three seconds"),
        ("http", format!("redis://{}", fixture.addr), "it does not answer as Redis does"),
        ("unknown", "redis://nobody.invalid".to_owned(), "its name is not known here"),
        ("no-tls", format!("rediss://{addr}"), "or it speaks no TLS there"),
        ("wrong", format!("redis://:s3cr3t@{addr}"), "it refuses the user or the password"),
    ] {
        let found = line(name, &url, false);
        assert!(found.contains(sentence), "{name}: {found}");
    }
    let found = line("several", &format!("redis://{addr},redis://{addr}"), false);
    assert!(found.contains("the first is of no Redis Cluster"), "{found}");
    let shards = Shards::shared().unwrap();
    let found = line("shards", &shards.cluster().redis[1], true);
    assert!(found.contains(", a cluster; a message came back after"), "{found}");
    redis.ask(&["CONFIG", "SET", "maxmemory", "100mb"]);
    redis.ask(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    let found = line("evicts", &format!("redis://{addr}"), false);
    assert!(found.contains("(allkeys-lru)") && found.contains("noeviction"), "{found}");
    redis.ask(&["ACL", "SETUSER", "u", "on", ">s3cr3t", "~*", "+@all", "&other*"]);
    let found = line("rights", &format!("redis://u:s3cr3t@{addr}"), false);
    assert!(found.contains("its user may not do what nodes do"), "{found}");
    redis.ask(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    redis.ask(&["REPLICAOF", "127.0.0.1", &nobody.to_string()]);
    let found = line("replica", &format!("redis://{addr}"), false);
    assert!(found.contains("it is a replica"), "{found}");
    redis.ask(&["REPLICAOF", "NO", "ONE"]);
    redis.ask(&["CONFIG", "SET", "requirepass", "s3cr3t"]);
    let found = line("none", &format!("redis://{addr}"), false);
    assert!(found.contains("it refuses the user or the password"), "{found}");
    line("right", &format!("redis://:s3cr3t@{addr}"), true);
}

/// A port that was free a moment ago.
fn port_of_nobody() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
