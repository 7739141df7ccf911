//! Proxies that pass on only some of the server's paths, or change them, and apps that let in only some origins.

use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpStream};

use fanfare::app::App;

use super::{HTML, accept, ask, doctor, page, read_head, text};
use crate::support::fixture::{Fixture, ID, KEY, SECRET};

/// What becomes of a path: what the server is asked for, or a page of somebody else's.
type Rewrite = fn(&str) -> Option<String>;

/// A proxy in front of a server, which looks at the first request of each connection.
fn proxy(upstream: SocketAddr, rewrite: Rewrite) -> String {
    format!("http://{}", accept(move |_, stream| forward(stream, upstream, rewrite)))
}

fn forward(mut client: TcpStream, upstream: SocketAddr, rewrite: Rewrite) -> io::Result<()> {
    let head = read_head(&mut client)?;
    let path = head.split(' ').nth(1).unwrap_or_default();
    let Some(to) = rewrite(path) else {
        return client.write_all(page("200 OK", HTML).as_bytes());
    };
    let mut server = TcpStream::connect(upstream)?;
    server.write_all(head.replacen(path, &to, 1).as_bytes())?;
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    std::thread::spawn(move || io::copy(&mut from_client, &mut to_server));
    io::copy(&mut server, &mut client)?;
    client.shutdown(std::net::Shutdown::Both)
}

fn kept_if(path: &str, begins: &[&str]) -> Option<String> {
    begins.iter().any(|begin| path.starts_with(begin)).then(|| path.to_owned())
}

/// What is said of a subject.
fn of<'a>(said: &'a str, subject: &str) -> Vec<&'a str> {
    let subject = format!("  {subject}: ");
    said.lines().filter(|line| line.contains(&subject)).collect()
}

#[test]
fn a_proxy_that_passes_on_sockets_alone_is_named() {
    let fixture = Fixture::start();
    let only_app = proxy(fixture.addr, |path| kept_if(path, &["/app/"]));
    let output = ask("only-app", &only_app, "one");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(of(text(&output), "WebSocket")[0].starts_with("ok "), "{}", text(&output));
    let api = of(text(&output), "API")[0];
    assert!(api.starts_with("FAIL") && api.contains("and not /apps/"), "{api}");
    // The other way round.
    let only_apps = proxy(fixture.addr, |path| kept_if(path, &["/apps/", "/up", "/ready"]));
    let output = ask("only-apps", &only_apps, "one");
    assert!(of(text(&output), "API")[0].starts_with("ok "), "{}", text(&output));
    let socket = of(text(&output), "WebSocket")[0];
    assert!(socket.starts_with("FAIL") && socket.contains("and not /app/"), "{socket}");
}

/// Laravel answers `/up` with a page of its own, and nginx's `location /app` is a prefix of `/apps` too.
#[test]
fn a_proxy_that_passes_on_app_and_apps_is_well() {
    let fixture = Fixture::start();
    let both = proxy(fixture.addr, |path| kept_if(path, &["/app"]));
    let output = ask("both", &both, "one");
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("a page of its own at /up"), "{}", text(&output));
    assert!(text(&output).contains("a triggered event came back"), "{}", text(&output));
}

#[test]
fn a_proxy_that_takes_the_prefix_away_is_named() {
    let fixture = Fixture::start();
    let strips: Rewrite = |path| path.strip_prefix("/ws").map(str::to_owned);
    let url = format!("{}/ws", proxy(fixture.addr, strips));
    let output = ask("strips", &url, "one");
    let api = of(text(&output), "API")[0];
    assert!(api.contains("a proxy takes /ws away before the server sees it"), "{api}");
    assert!(api.contains("server.path = \"/ws\""), "{api}");
    assert!(of(text(&output), "WebSocket")[0].starts_with("ok "), "{}", text(&output));
    // The server has the prefix and never sees it.
    let below = Fixture::with_apps(vec![App::new(ID, KEY, SECRET)], |server| {
        server.path = "/ws".to_owned();
    });
    let output = ask("strips-below", &format!("{}/ws", proxy(below.addr, strips)), "one");
    assert_eq!(text(&output).lines().filter(|line| line.starts_with("FAIL")).count(), 1);
    let api = of(text(&output), "API")[0];
    assert!(api.contains("a proxy takes /ws away"), "{api}");
    // It is asked without.
    let output = ask("without", &format!("http://{}", below.addr), "one");
    let socket = of(text(&output), "WebSocket")[0];
    assert!(socket.contains("write that of server.path into the address"), "{socket}");
    let output = ask("another", &format!("http://{}/other", below.addr), "one");
    assert!(text(&output).contains("is server.path another"), "{}", text(&output));
    assert_eq!(text(&output).lines().filter(|line| line.starts_with("FAIL")).count(), 1);
}

#[test]
fn an_app_that_lets_in_some_origins_is_looked_at_from_one_of_them() {
    let mut app = App::new(ID, KEY, SECRET);
    app.allowed_origins = vec!["app.example.test".parse().unwrap()];
    let fixture = Fixture::with_apps(vec![app], |_| {});
    let port = fixture.addr.port().to_string();
    let variables = [
        ("FANFARE_METRICS__ENABLED", "false"),
        ("FANFARE_SERVER__PORT", &port),
        ("FANFARE_APPS__0__ID", ID),
        ("FANFARE_APPS__0__KEY", KEY),
        ("FANFARE_APPS__0__SECRET", SECRET),
        ("FANFARE_APPS__0__ALLOWED_ORIGINS", "app.example.test"),
    ];
    let output = doctor("origin", &[], &variables, "");
    assert!(output.status.success(), "{}", text(&output));
    let output = doctor("foreign", &["--origin", "https://other.test"], &variables, "");
    let socket = of(text(&output), "WebSocket")[0];
    assert!(socket.contains("add https://other.test to the app's allowed_origins"), "{socket}");
    // Without the app's settings it is not known whom it lets in.
    let url = format!("http://{}", fixture.addr);
    let output = ask("unknown", &url, "one");
    let socket = of(text(&output), "WebSocket")[0];
    assert!(socket.contains("4009") && socket.contains("--origin https://HOST"), "{socket}");
    let at = ["--url", &url, "--app-id", ID, "--key", KEY, "--secret", SECRET];
    let chosen = [&at[..], &["--origin", "https://app.example.test"]].concat();
    assert!(doctor("chosen", &chosen, &[], "").status.success());
}
