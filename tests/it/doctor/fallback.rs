//! Findings of doctor for the HTTP fallback and of compression through proxies that get in their way.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};

use fanfare::app::App;

use super::{accept, ask, doctor, read_head, text};
use crate::support::fixture::{Fixture, ID, KEY, SECRET};

/// What a proxy does that it should not.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// Keeps each answer until it is whole.
    Buffers,
    /// Takes the header away by which compression is offered.
    Strips,
    /// Answers what is below `/pusher` itself.
    KeepsPusher,
    /// Passes no upgrade on.
    Cuts,
}

/// A proxy in front of some servers, which take turns. It ends with the tests.
fn proxy(upstreams: Vec<SocketAddr>, fault: Fault) -> String {
    let serve = move |turn, stream| forward(stream, upstreams[turn % upstreams.len()], fault);
    format!("http://{}", accept(serve))
}

fn forward(mut client: TcpStream, upstream: SocketAddr, fault: Fault) -> io::Result<()> {
    let head = read_head(&mut client)?;
    if fault == Fault::KeepsPusher && head.contains(" /pusher/") {
        return client.write_all(super::page("404 Not Found", super::HTML).as_bytes());
    }
    let kept = |line: &&str| {
        let line = line.to_lowercase();
        match fault {
            Fault::Strips => !line.starts_with("sec-websocket-extensions"),
            Fault::Cuts => !line.starts_with("upgrade:"),
            _ => true,
        }
    };
    let head: Vec<&str> = head.split("\r\n").filter(kept).collect();
    let mut server = TcpStream::connect(upstream)?;
    server.write_all(head.join("\r\n").as_bytes())?;
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    std::thread::spawn(move || {
        let _ = io::copy(&mut from_client, &mut to_server);
        to_server.shutdown(Shutdown::Both)
    });
    if fault == Fault::Buffers && head[0].contains("/xhr_streaming") {
        let mut whole = Vec::new();
        server.read_to_end(&mut whole)?;
        client.write_all(&whole)?;
    } else {
        io::copy(&mut server, &mut client)?;
    }
    client.shutdown(Shutdown::Both)
}

/// The line on a subject.
fn line<'a>(said: &'a str, subject: &str) -> Option<&'a str> {
    let subject = format!("  {subject}: ");
    said.lines().find(|line| line.contains(&subject))
}

#[test]
fn the_fallback_is_tried_as_clients_take_it() {
    let fixture = Fixture::start();
    let output = ask("fallback", &format!("http://{}", fixture.addr), "one");
    let said = line(text(&output), "HTTP fallback").unwrap();
    assert!(said.starts_with("ok ") && said.contains("heard an event after"), "{said}");
    let through = ask("proxied", &proxy(vec![fixture.addr], Fault::None), "one");
    assert!(line(text(&through), "HTTP fallback").unwrap().starts_with("ok "));
    assert!(line(text(&through), "compression").is_none(), "nobody has asked for it");
}

#[test]
fn a_proxy_that_buffers_is_named() {
    let fixture = Fixture::start();
    let output = ask("buffers", &proxy(vec![fixture.addr], Fault::Buffers), "one");
    assert!(output.status.success(), "WebSockets work: {}", text(&output));
    let said = line(text(&output), "HTTP fallback").unwrap();
    assert!(said.starts_with("warn") && said.contains("buffers streaming answers"), "{said}");
    assert!(said.contains("clients poll instead"), "{said}");
}

#[test]
fn where_sockets_are_cut_the_fallback_is_tried_all_the_same() {
    let fixture = Fixture::start();
    let output = ask("cuts", &proxy(vec![fixture.addr], Fault::Cuts), "one");
    assert!(line(text(&output), "WebSocket").unwrap().starts_with("FAIL"), "{}", text(&output));
    assert!(line(text(&output), "HTTP fallback").unwrap().starts_with("ok "));
}

#[test]
fn sessions_that_are_spread_over_nodes_are_named() {
    let nodes = [Fixture::start(), Fixture::start()];
    let url = proxy(nodes.iter().map(|node| node.addr).collect(), Fault::None);
    let output = ask("astray", &url, "one");
    // Without Redis between them events are lost too, which is not the subject here.
    let Some(said) = line(text(&output), "HTTP fallback") else { panic!("{}", text(&output)) };
    assert!(said.starts_with("warn") && said.contains("hash the session in the path"), "{said}");
}

#[test]
fn a_proxy_that_keeps_the_clients_own_path_is_named() {
    let fixture = Fixture::start();
    let output = ask("pusher", &proxy(vec![fixture.addr], Fault::KeepsPusher), "one");
    let said = line(text(&output), "HTTP fallback").unwrap();
    assert!(said.starts_with("warn") && said.contains("httpPath: '/'"), "{said}");
    assert!(said.contains("heard an event"), "{said}");
}

#[test]
fn a_server_without_the_fallback_is_well() {
    let apps = vec![App::new(ID, KEY, SECRET)];
    let fixture = Fixture::with_apps(apps, |server| server.http_fallback = false);
    let output = ask("without", &format!("http://{}", fixture.addr), "one");
    let said = line(text(&output), "HTTP fallback").unwrap();
    assert!(said.starts_with("ok ") && said.contains("not served"), "{said}");
}

#[test]
fn a_proxy_that_takes_compression_away_is_named() {
    let fixture = Fixture::with(|app| app.features.compression = true);
    let variables = [
        ("FANFARE_METRICS__ENABLED", "false"),
        ("FANFARE_APPS__0__ID", ID),
        ("FANFARE_APPS__0__KEY", KEY),
        ("FANFARE_APPS__0__SECRET", SECRET),
        ("FANFARE_APPS__0__COMPRESSION", "true"),
    ];
    for (name, fault, grade, words) in [
        ("passes", Fault::None, "ok ", "agreed on"),
        ("strips", Fault::Strips, "warn", "takes Sec-WebSocket-Extensions away"),
    ] {
        let url = proxy(vec![fixture.addr], fault);
        let output = doctor(name, &["--url", &url], &variables, "");
        assert!(output.status.success(), "{}", text(&output));
        let said = line(text(&output), "compression").unwrap();
        assert!(said.starts_with(grade) && said.contains(words), "{said}");
    }
}
