//! The PROXY protocol in front of everything else: whose connection it is, and who is let go.

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use fanfare::app::App;
use fanfare::config::{Network, TlsFiles};
use rustls::pki_types::ServerName;
use rustls::version::TLS13;
use rustls::{ClientConnection, StreamOwned};

use crate::support::DEADLINE;
use crate::support::fixture::{Fixture, ID, KEY, SECRET, established, target};
use crate::support::http::Http;
use crate::support::websocket::Client;
use crate::support::wire::{self, Wire, client, file};

/// A server behind proxies on `trusted`, with one connection for each client's address.
fn behind(trusted: &str, tls: Option<TlsFiles>) -> Fixture {
    waiting(DEADLINE, trusted, tls)
}

/// One that waits so long for the header.
fn waiting(timeout: Duration, trusted: &str, tls: Option<TlsFiles>) -> Fixture {
    Fixture::with_apps(vec![App::new(ID, KEY, SECRET)], |server| {
        server.proxy_protocol = true;
        server.trusted_proxies = vec![Network { address: trusted.parse().unwrap(), prefix: 32 }];
        server.connections_per_ip = 1;
        server.handshake_timeout = timeout;
        server.tls = tls;
    })
}

/// A connection that a proxy passes on for `client`, byte by byte so that nothing depends on pieces.
fn passed_on(fixture: &Fixture, client: &str) -> std::net::TcpStream {
    let mut tcp = wire::tcp(fixture.addr);
    for byte in format!("PROXY TCP4 {client} 127.0.0.1 4711 80\r\n").as_bytes() {
        tcp.write_all(&[*byte]).unwrap();
    }
    tcp
}

fn greeting(wire: Wire) -> (Client, String) {
    let mut client = Client::open_over(Http::over(wire), &target(KEY), &[]).unwrap();
    let text = client.hear_text();
    (client, text)
}

#[test]
fn the_client_is_who_the_proxy_says() {
    let fixture = behind("127.0.0.1", None);
    let open = |address| greeting(Wire::Plain(passed_on(&fixture, address)));
    let (_one, text) = open("192.0.2.1");
    established(&text).unwrap();
    let (_other, text) = open("192.0.2.2");
    established(&text).unwrap();
    // One has its one connection already.
    let (mut again, text) = open("192.0.2.1");
    assert!(text.contains("4100"), "{text}");
    again.hear_close(4100, "");
}

#[test]
fn tls_begins_after_the_header() {
    let tls = TlsFiles { cert: file("one", "crt"), key: file("one", "key") };
    let fixture = behind("127.0.0.1", Some(tls));
    let name = ServerName::try_from("localhost").unwrap();
    let session = ClientConnection::new(Arc::clone(&client(&TLS13, &[])), name).unwrap();
    let stream = StreamOwned::new(session, passed_on(&fixture, "192.0.2.1"));
    let (_client, text) = greeting(Wire::Tls(Box::new(stream)));
    established(&text).unwrap();
}

#[test]
fn whoever_is_no_proxy_is_let_go() {
    let fixture = behind("127.0.0.1", None);
    let impatient = waiting(Duration::from_millis(200), "127.0.0.1", None);
    let stranger = behind("127.0.0.2", None);
    for (fixture, bytes) in [
        (&fixture, &b"GET /up HTTP/1.1\r\nHost: x\r\n\r\n"[..]),
        (&impatient, b"PROXY TCP4 192.0.2.1"),
        (&impatient, b""),
        (&stranger, b"PROXY UNKNOWN\r\nGET /up HTTP/1.1\r\nHost: x\r\n\r\n"),
    ] {
        let mut tcp = wire::tcp(fixture.addr);
        tcp.write_all(bytes).unwrap();
        let mut rest = Vec::new();
        // A reset is an end too.
        let _ = tcp.read_to_end(&mut rest);
        assert!(rest.is_empty(), "{rest:?}");
    }
    let mut tcp = wire::tcp(fixture.addr);
    tcp.write_all(b"PROXY UNKNOWN\r\n").unwrap();
    assert_eq!(Http::over(Wire::Plain(tcp)).ask("GET", "/up", "", b"").status, 200);
}
