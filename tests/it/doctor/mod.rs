//! Findings of `fanfare doctor` for servers, proxies and Redis that are not as they should be: one sentence each,
//! with how to mend it. The table of proxies and certificates is what operators of Reverb asked about most.

mod fallback;
mod laravel;
mod paths;
mod redis;

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use fanfare::app::App;
use fanfare::config::TlsFiles;

use crate::support::fixture::{Fixture, ID, KEY, SECRET};
use crate::support::wire::file;

/// `fanfare doctor` with these arguments and variables, in a folder with this `.env`.
fn doctor(name: &str, arguments: &[&str], variables: &[(&str, &str)], env: &str) -> Output {
    // Tests run side by side and may agree on a name.
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let folder = format!("doctor-{name}-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(folder);
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
    thread::spawn(move || {
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

/// Hands each connection, with its number, to `serve` on a thread of its own; the address. It ends with the tests.
fn accept(
    serve: impl Fn(usize, TcpStream) -> io::Result<()> + Send + Sync + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for (number, stream) in listener.incoming().flatten().enumerate() {
            let serve = serve.clone();
            thread::spawn(move || serve(number, stream));
        }
    });
    addr
}

/// The head of a request, with the empty line at its end.
fn read_head(client: &mut TcpStream) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    String::from_utf8(head).map_err(io::Error::other)
}

fn page(status: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
}

fn well() -> (&'static str, String) {
    ("/up", page("200 OK", "{\"health\":\"OK\"}"))
}

/// A port that takes connections and does nothing with them, but to end them if it is rude.
fn mute(rude: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    // It ends with the tests.
    thread::spawn(move || {
        let mut kept = Vec::new();
        for mut stream in listener.incoming().flatten() {
            if rude {
                let _ = stream.read(&mut [0; 2048]);
            } else {
                kept.push(stream);
            }
        }
    });
    addr
}

const HTML: &str = "<!DOCTYPE html><html><body>Laravel</body></html>";

#[test]
fn proxies_and_certificates_that_are_not_right_are_named() {
    let plain = Fixture::start();
    let with_tls = |name: &str| {
        Fixture::with_apps(vec![App::new(ID, KEY, SECRET)], |server| {
            server.tls = Some(TlsFiles { cert: file(name, "crt"), key: file(name, "key") });
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
        ("rude", format!("https://localhost:{}", mute(true).port()), "one", "it hangs up on TLS"),
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
            "refused with 404: a web page: the proxy passes neither /apps/ nor /app/ on",
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
    // Laravel's installer writes the second, from where the console may be open.
    for host in ["127.0.0.1", "localhost", "::1"] {
        let here = format!("REVERB_HOST={host}\nREVERB_PORT={port}\nREVERB_SCHEME=http");
        let output = doctor("here", &[], &quiet, &laravel(&fixture, &here));
        assert!(output.status.success(), "{}", text(&output));
        assert!(!text(&output).contains("public address"), "{}", text(&output));
    }
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

#[test]
fn tls_that_nobody_answers_is_named() {
    let output = ask("mute", &format!("https://localhost:{}", mute(false).port()), "one");
    assert!(text(&output).contains("nothing answers TLS in ten seconds"), "{}", text(&output));
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn what_a_laravel_app_gives_its_pages_is_looked_at() {
    let fixture = Fixture::start();
    let port = fixture.addr.port();
    let here = format!(
        "REVERB_HOST=127.0.0.1\nREVERB_PORT={port}\nREVERB_SCHEME=http\nBROADCAST_CONNECTION=reverb\n"
    );
    let quiet = [("FANFARE_METRICS__ENABLED", "false")];
    let page = canned(&[("/", page("200 OK", HTML))]).port();
    for (name, more, sentence, code) in [
        ("same", "VITE_REVERB_APP_KEY=\"${REVERB_APP_KEY}\"\nAPP_URL=http://x".to_owned(), "", 0),
        ("key", "VITE_REVERB_APP_KEY=another".to_owned(), "so pages ask for another app", 1),
        (
            "built",
            format!("VITE_REVERB_HOST=127.0.0.1\nVITE_REVERB_PORT={page}\nVITE_REVERB_SCHEME=http"),
            "as VITE_REVERB_HOST, VITE_REVERB_PORT and VITE_REVERB_SCHEME have it; there:",
            1,
        ),
        (
            "secure",
            "APP_URL=https://app.test\nVITE_REVERB_HOST=nobody.invalid\nVITE_REVERB_SCHEME=http"
                .to_owned(),
            "browsers let such pages open nothing but wss://",
            1,
        ),
    ] {
        let output = doctor(name, &[], &quiet, &laravel(&fixture, &(here.clone() + &more)));
        assert!(text(&output).contains(sentence), "{name}: {}", text(&output));
        assert_eq!(text(&output).contains("pages: "), ["key", "secure"].contains(&name), "{name}");
        assert_eq!(output.status.code(), Some(code), "{name}: {}", text(&output));
    }
}

#[test]
fn settings_that_no_server_starts_with_are_named() {
    let path = |name: &str, end: &str| file(name, end).display().to_string();
    let (one, two) = (path("one", "crt"), path("two", "key"));
    let set = |name: &str, pairs: &[(&str, &str)]| {
        let ids = [("FANFARE_APPS__0__ID", "1"), ("FANFARE_APPS__0__KEY", "k")];
        let more = [("FANFARE_APPS__0__SECRET", "s"), ("FANFARE_SERVER__PORT", "1")];
        let variables = [&ids[..], &more[..], pairs].concat();
        let output = doctor(name, &[], &variables, "");
        assert_eq!(output.status.code(), Some(1), "{name}");
        text(&output).to_owned()
    };
    let (cert, key) = ("FANFARE_SERVER__TLS__CERT", "FANFARE_SERVER__TLS__KEY");
    for (name, pairs, sentence) in [
        ("half", vec![(cert, &*one)], "FANFARE_SERVER__TLS__CERT: needs server.tls.key beside it"),
        ("pair", vec![(cert, &*one), (key, &*two)], "are not of one pair"),
        ("gone", vec![(cert, &*one), (key, "/nonexistent")], "/nonexistent: "),
        ("redis", vec![("FANFARE_CLUSTER__REDIS", "redis://:x:y:z")], "expected redis://USER"),
    ] {
        let text = set(name, &pairs);
        assert!(text.contains(sentence), "{name}: {text}");
        assert!(text.contains("FAIL  settings: "), "{name}: {text}");
    }
}

/// The same that keeps it from starting, with its place.
#[test]
fn a_check_of_the_settings_looks_at_what_they_name() {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("doctor-check");
    fs::create_dir_all(&folder).unwrap();
    let (one, two) = (file("one", "crt"), file("two", "key"));
    let tls = format!("[server]\n\ntls = {{ cert = {one:?}, key = {two:?} }}\n");
    let pair = format!("f.toml:3: server.tls.key: {}: ", two.display());
    for (settings, place) in [
        (tls, pair.as_str()),
        (
            "[cluster]\nredis = \"redis://:s3cr3t:z\"".to_owned(),
            "f.toml:2: cluster.redis: the URL cannot be read: expected redis://",
        ),
    ] {
        fs::write(folder.join("f.toml"), settings).unwrap();
        for command in [&["config", "check"][..], &[]] {
            let output = Command::new(env!("CARGO_BIN_EXE_fanfare"))
                .args(command)
                .args(["--config", "f.toml"])
                .current_dir(&folder)
                .stdin(Stdio::null())
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(78), "{said}");
            assert!(said.starts_with(&format!("fanfare: {place}")), "{said}");
            assert!(said.lines().count() == 1 && !said.contains("s3cr3t"), "{said}");
        }
    }
    fs::remove_dir_all(folder).unwrap();
}

/// The console is open there to whoever comes from this machine, as it is meant to be.
#[test]
fn a_server_with_tls_was_a_proxy_to_who_called_it_localhost() {
    let (cert, key) = (file("one", "crt"), file("one", "key"));
    let fixture = Fixture::with_apps(vec![App::new(ID, KEY, SECRET)], |server| {
        server.tls = Some(TlsFiles { cert: cert.clone(), key: key.clone() });
    });
    let port = fixture.addr.port();
    let (cert, key) = (cert.display().to_string(), key.display().to_string());
    let variables = [
        ("FANFARE_METRICS__ENABLED", "false"),
        ("SSL_CERT_FILE", &cert),
        ("FANFARE_SERVER__TLS__CERT", &cert),
        ("FANFARE_SERVER__TLS__KEY", &key),
    ];
    let public = format!("REVERB_HOST=localhost\nREVERB_PORT={port}\nREVERB_SCHEME=https");
    let output = doctor("local-tls", &[], &variables, &laravel(&fixture, &public));
    assert!(text(&output).contains("public address: https://localhost"), "{}", text(&output));
    assert!(output.status.success(), "{}", text(&output));
}

/// By the address that it listens on, for the name that its certificate has.
#[test]
fn a_server_with_tls_is_found_by_its_settings() {
    let apps = ["2", "1"].map(|id| App::new(id, id, SECRET)).to_vec();
    let (cert, key) = (file("other", "crt"), file("other", "key"));
    let fixture = Fixture::with_apps(apps, |server| {
        server.tls = Some(TlsFiles { cert: cert.clone(), key: key.clone() });
    });
    let port = fixture.addr.port().to_string();
    let (cert, key) = (cert.display().to_string(), key.display().to_string());
    let variables = [
        ("FANFARE_METRICS__ENABLED", "false"),
        ("SSL_CERT_FILE", &cert),
        ("FANFARE_SERVER__PORT", &port),
        ("FANFARE_SERVER__TLS__CERT", &cert),
        ("FANFARE_SERVER__TLS__KEY", &key),
        ("FANFARE_APPS__0__ID", "2"),
        ("FANFARE_APPS__0__KEY", "2"),
        ("FANFARE_APPS__0__SECRET", SECRET),
        ("FANFARE_APPS__1__ID", "1"),
        ("FANFARE_APPS__1__KEY", "1"),
        ("FANFARE_APPS__1__SECRET", SECRET),
    ];
    let output = doctor("own-tls", &[], &variables, "");
    assert!(output.status.success(), "{}", text(&output));
    // Of several apps it looks at one.
    let place = format!("settings: app 1 on https://127.0.0.1:{port}\n");
    assert!(text(&output).contains(&place), "{}", text(&output));
    assert!(text(&output).contains("TLS: the certificate is trusted"), "{}", text(&output));
}
