//! Connections that ask for nothing, more than there are files for or than an address may have: they make way for
//! clients, backends and probes, and backends are no strangers.

use std::io::{ErrorKind, Read as _};
use std::net::{SocketAddr, TcpStream};

use socket2::{Domain, Socket, Type};

use crate::support::child::Child;
use crate::support::eventually;
use crate::support::fixture::{ID, KEY, SECRET, subscribe, target, trigger};
use crate::support::http::Http;
use crate::support::sign::Request;
use crate::support::websocket::Client;

/// What the limit on connections of an address was when it was found that one could shut everybody out.
const FIVE: (&str, &str) = ("SERVER__CONNECTIONS_PER_IP", "5");

/// Connections from `127.0.0.{host}` that say nothing.
fn silent(addr: SocketAddr, host: u8, several: usize) -> Vec<TcpStream> {
    let connect = || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, host], 0)).into()).unwrap();
        socket.connect(&addr.into()).unwrap();
        socket.set_nonblocking(true).unwrap();
        TcpStream::from(socket)
    };
    (0..several).map(|_| connect()).collect()
}

/// How many of them the server has not ended.
fn open(streams: &mut [TcpStream]) -> usize {
    let is_open = |stream: &mut TcpStream| {
        stream.read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    };
    streams.iter_mut().filter_map(|stream| is_open(stream).then_some(())).count()
}

fn comes_down_to(streams: &mut [TcpStream], most: usize) {
    eventually(|| match open(streams) {
        count if count <= most => Ok(()),
        count => Err(format!("{count} open")),
    })
    .unwrap();
}

fn publish(api: &mut Http) {
    let path = format!("/apps/{ID}/events");
    let request = Request::new("POST", &path, &trigger("room", "e", "1"), KEY, SECRET);
    assert_eq!(api.ask_signed(&request).status, 200);
}

/// Asserts that clients, backends and probes get on as if nobody else was there.
fn serves(child: &Child) {
    let (mut client, _) = child.connect();
    subscribe(&mut client, "room");
    publish(&mut Http::connect(child.addr));
    assert_eq!(client.hear_text(), r#"{"event":"e","channel":"room","data":"1"}"#);
    assert_eq!(Http::connect(child.addr).ask("GET", "/metrics", "", b"").status, 200);
}

#[test]
fn silent_connections_shut_nobody_out() {
    let child = Child::with_files(512, &[]);
    let mut crowd = silent(child.addr, 1, 481);
    serves(&child);
    let others = silent(child.addr, 1, 600);
    serves(&child);
    assert!(open(&mut crowd) < 440, "those that came first made way");
    child.says(&["HTTP connections are closed: as many connections are open as may be"]);
    drop(others);
}

#[test]
fn clients_that_fill_the_server_leave_room_for_backends() {
    let child = Child::with_files(200, &[]);
    // 200 files, 64 and 4 a worker for itself, 16 for requests.
    let mut clients = Vec::new();
    let refused = loop {
        let mut client = Client::open(child.addr, &target(KEY), &[]).unwrap();
        let text = client.hear_text();
        if text.contains("4100") {
            break text;
        }
        clients.push(client);
    };
    assert!((50..130).contains(&clients.len()), "{} clients: {refused}", clients.len());
    let crowd = silent(child.addr, 1, 200);
    let mut backend = Http::connect(child.addr);
    (0..5).for_each(|_| publish(&mut backend));
    assert_eq!(Http::connect(child.addr).ask("GET", "/metrics", "", b"").status, 200);
    drop(crowd);
}

#[test]
fn an_address_has_as_many_connections_as_it_may_of_any_kind() {
    let child = Child::with_files(512, &[FIVE]);
    let mut backends: Vec<Http> = (0..20).map(|_| Http::connect(child.addr)).collect();
    backends.iter_mut().for_each(publish);
    let mut crowd = silent(child.addr, 1, 481);
    serves(&child);
    comes_down_to(&mut crowd, 5);
    child.says(&[
        "HTTP connections are closed: this address has more than server.connections_per_ip",
    ]);
    // Those whose requests are signed are no strangers, and keep their connections.
    backends.iter_mut().for_each(publish);
    // Sockets take the places of those that wait for nothing.
    let clients: Vec<_> = (0..5).map(|_| child.connect()).collect();
    let mut refused = Client::open(child.addr, &target(KEY), &[]).unwrap();
    assert!(refused.hear_text().contains("4100"));
    drop(refused);
    comes_down_to(&mut crowd, 0);
    backends.iter_mut().for_each(publish);
    drop(clients);
}

#[test]
fn a_trusted_proxy_is_not_one_address() {
    let child = Child::start(&[FIVE, ("SERVER__TRUSTED_PROXIES", "127.0.0.2/32")]);
    let mut proxy = silent(child.addr, 2, 100);
    let mut stranger = silent(child.addr, 3, 100);
    comes_down_to(&mut stranger, 5);
    assert_eq!(open(&mut proxy), 100);
    // Nor are those whose clients it has not named yet; from then on each counts for its client.
    let child = Child::start(&[
        FIVE,
        ("SERVER__TRUSTED_PROXIES", "127.0.0.2/32"),
        ("SERVER__PROXY_PROTOCOL", "true"),
    ]);
    let announce = |stream: &mut TcpStream, client: &str| {
        use std::io::Write as _;
        stream.write_all(format!("PROXY TCP4 {client} 127.0.0.1 1 2\r\n").as_bytes()).unwrap();
    };
    let mut unnamed = silent(child.addr, 2, 50);
    let mut one = silent(child.addr, 2, 50);
    one.iter_mut().for_each(|stream| announce(stream, "192.0.2.1"));
    let mut other = silent(child.addr, 2, 5);
    other.iter_mut().for_each(|stream| announce(stream, "192.0.2.2"));
    comes_down_to(&mut one, 5);
    assert_eq!((open(&mut unnamed), open(&mut other)), (50, 5));
}
