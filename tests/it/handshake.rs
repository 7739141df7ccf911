//! Handshakes as proxies and clients of all kinds make them, and the answer as they compare it.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use fanfare::app::App;
use fanfare::config::Network;
use fanfare::hub::stream::Stream;
use tokio::io::AsyncReadExt as _;
use tokio::task::LocalSet;

use crate::support::fixture::{Fixture, ID, KEY, SECRET, established, target};
use crate::support::http::{Http, find};
use crate::support::memory::Memory;
use crate::support::websocket::{Client, handshake};

fn header(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

/// The answer's head, as it was sent.
fn head(http: &mut Http, request: &str) -> String {
    http.send(request);
    let end = loop {
        if let Some(end) = find(&http.ahead, b"\r\n\r\n") {
            break end + 4;
        }
        assert!(http.read_more(), "no answer to {request:?}");
    };
    String::from_utf8(http.ahead.drain(..end).collect()).unwrap()
}

const ANSWER: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                      Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// pusher-js on Node, `OkHttp`, undici, aiohttp, gorilla and more compare `Connection` as a whole, and throw away
/// a handshake that is answered with `Upgrade, close`.
#[test]
fn a_101_said_close_beside_upgrade() {
    let fixture = Fixture::with_apps(vec![App::new(ID, KEY, SECRET)], |server| {
        server.shutdown_grace = Duration::from_secs(30);
    });
    for connection in [
        "Upgrade",
        "Upgrade, close",
        "close, upgrade",
        "keep-alive, Upgrade",
        "close\r\nConnection: Upgrade",
    ] {
        for target in [target(KEY), target("nobody"), format!("/app/{KEY}?protocol=1")] {
            let request = handshake(&target, &[header("Connection", connection)]);
            let mut http = Http::connect(fixture.addr);
            assert_eq!(head(&mut http, &request), ANSWER, "{connection:?} {target}");
        }
    }
    // Behind another request of the connection, and behind one that is still on its way.
    let mut http = Http::connect(fixture.addr);
    assert_eq!(http.ask("GET", "/up", "Connection: keep-alive\r\n", b"").status, 200);
    assert_eq!(head(&mut http, &handshake(&target(KEY), &[])), ANSWER);
    let mut http = Http::connect(fixture.addr);
    http.send(["GET /up HTTP/1.1\r\nHost: x\r\n\r\n", &handshake(&target(KEY), &[])].concat());
    assert_eq!(http.answer().text(), r#"{"health":"OK"}"#);
    assert_eq!(head(&mut http, ""), ANSWER);
    // Connections that were there before the drain, and those that come in it.
    let mut before: Vec<Http> = (0..4).map(|_| Http::connect(fixture.addr)).collect();
    let clients: Vec<Client> = (0..50).map(|_| fixture.subscribed("pub")).collect();
    fixture.drain();
    before.extend((0..4).map(|_| Http::connect(fixture.addr)));
    for mut http in before {
        assert_eq!(head(&mut http, &handshake(&target(KEY), &[])), ANSWER, "while stopping");
    }
    drop(clients);
}

/// RFC 6455, section 4.2.1, and RFC 9112, section 3.2.
#[test]
fn an_upgrade_was_had_by_head_by_http_1_0_and_for_two_hosts() {
    let fixture = Fixture::start();
    let request = handshake(&target(KEY), &[]);
    assert!(request.contains("Host: 127.0.0.1\r\n"));
    for (what, spoilt, status) in [
        ("HEAD", request.replacen("GET", "HEAD", 1), 405),
        ("HTTP/1.0", request.replacen("HTTP/1.1", "HTTP/1.0", 1), 400),
        ("no host", request.replacen("Host: 127.0.0.1\r\n", "", 1), 400),
        ("two hosts", request.replacen("Host:", "Host: a\r\nHost:", 1), 400),
        ("two hosts in a line", request.replacen("Host:", "Host: a,", 1), 400),
        (
            "two keys",
            request.replacen(
                "Sec-WebSocket-Key:",
                "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Key:",
                1,
            ),
            400,
        ),
    ] {
        assert_ne!(spoilt, request, "{what}");
        let head = head(&mut Http::connect(fixture.addr), &spoilt);
        let expected = format!("HTTP/1.1 {status} ");
        // The answer to a request of HTTP/1.0 says so itself.
        assert!(head.replacen("1.0", "1.1", 1).starts_with(&expected), "{what}: {head}");
    }
    for (hosts, version, status) in
        [(0, "1.1", 400), (1, "1.1", 200), (2, "1.1", 400), (0, "1.0", 200), (2, "1.0", 400)]
    {
        let mut http = Http::connect(fixture.addr);
        http.send(format!("GET /up HTTP/{version}\r\n{}\r\n", "Host: x\r\n".repeat(hosts)));
        assert_eq!(http.answer().status, status, "{hosts} hosts, HTTP/{version}");
    }
    for (host, status) in
        [("a b", 400), ("a,b", 400), ("my_app.test:80", 200), ("[::1]:80", 200), ("", 200)]
    {
        let mut http = Http::connect(fixture.addr);
        http.send(format!("GET /up HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert_eq!(http.answer().status, status, "{host:?}");
    }
}

/// What comes within this after the connection is no greeting that was held back, which takes 20 ms.
const SURELY_TOGETHER: Duration = Duration::from_millis(15);

/// Passes a connection on as Apache does where WebSockets come by HTTP/2 (`H2WebSockets on`): what it reads
/// together with the head of the 101 waits until the client speaks. A relay that was slow itself cannot tell whether
/// both came at once, and passes all on.
fn relay(server: std::net::SocketAddr) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut client in listener.incoming().map_while(Result::ok) {
            let (begun, mut server) = (Instant::now(), TcpStream::connect(server).unwrap());
            let (mut to, mut from) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            thread::spawn(move || std::io::copy(&mut from, &mut to));
            thread::spawn(move || {
                let mut bytes = [0; 4096];
                let read = server.read(&mut bytes).unwrap();
                let end = match begun.elapsed() < SURELY_TOGETHER {
                    true => find(&bytes[..read], b"\r\n\r\n").unwrap() + 4,
                    false => read,
                };
                // What came with it is never seen again here: the client has nothing to say before.
                client.write_all(&bytes[..end]).unwrap();
                let _ = std::io::copy(&mut server, &mut client);
                client.shutdown(Shutdown::Write)
            });
        }
    });
    addr
}

/// ESP-IDF, Zephyr, websocket-sharp and Netty 3 lose what they read together with the 101.
#[tokio::test]
async fn what_came_with_the_101_was_lost() {
    let memory = Memory::new(1, |_| {});
    let (server, mut client) = tokio::net::UnixStream::pair().unwrap();
    server.writable().await.unwrap();
    let talk = memory.connect_answered(0, Stream::Unix(server), "answer");
    let mut read = [0; 1000];
    let count = client.read(&mut read).await.unwrap();
    assert_eq!(&read[..count], b"answer", "the greeting is in the next write");
    let local = LocalSet::new();
    local.spawn_local(memory.carry(talk));
    let count = local.run_until(client.read(&mut read)).await.unwrap();
    assert!(String::from_utf8_lossy(&read[..count]).contains("pusher:connection_established"));
}

#[test]
fn a_greeting_that_came_with_the_101_was_held_back() {
    let fixture = Fixture::start();
    let relay = relay(fixture.addr);
    // As Apache 2.4.71 spells a handshake over HTTP/2; for others it is enough that either is there.
    for headers in [
        &[header("X-Forwarded-Server", "localhost"), header("Content-Length", "0")][..],
        &[header("Content-Length", "0")],
        &[header("X-Forwarded-Server", "localhost")],
    ] {
        let mut client = Client::open(relay, &target(KEY), headers).ok().unwrap();
        established(&client.hear_text()).unwrap();
        let mut refused = Client::open(relay, &target("nobody"), headers).ok().unwrap();
        assert!(refused.hear_text().contains("4001"));
        refused.hear_close(4001, "");
    }
    // Who speaks first is greeted first.
    let headers = [header("X-Forwarded-Server", "localhost")];
    let mut client = Client::open(fixture.addr, &target(KEY), &headers).ok().unwrap();
    client.send_text(r#"{"event":"pusher:ping"}"#);
    established(&client.hear_text()).unwrap();
    assert!(client.hear_text().contains("pong"));
}

/// Envoy 1.40 with `allow_connect` makes upgrades without a key of WebSockets over HTTP/2 (RFC 8441 has none).
#[test]
fn a_handshake_without_a_key_came_from_a_trusted_proxy() {
    let keyless = handshake(&target(KEY), &[header("Sec-WebSocket-Key", "")]);
    let fixture = Fixture::start();
    let mut http = Http::connect(fixture.addr);
    http.send(&keyless);
    let text = http.answer().error(400);
    assert!(text.contains("allow_connect") && text.contains("server.trusted_proxies"), "{text}");

    let fixture = Fixture::with_apps(vec![App::new(ID, KEY, SECRET)], |server| {
        server.trusted_proxies = vec![Network { address: [127, 0, 0, 1].into(), prefix: 32 }];
    });
    let mut http = Http::connect(fixture.addr);
    let answer = head(&mut http, &keyless);
    assert!(answer.starts_with("HTTP/1.1 101 ") && !answer.contains("Accept"), "{answer}");
    let mut stream = http.into_parts();
    stream.0.finish();
    let mut rest = stream.1;
    stream.0.read_to_end(&mut rest).unwrap();
    assert!(String::from_utf8_lossy(&rest).contains("connection_established"));
}
