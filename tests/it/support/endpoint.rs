//! A backend that webhooks are posted to, which holds what comes to what official SDKs check.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use fanfare::app::Webhook;
use serde_json::Value;

use super::DEADLINE;
use super::fixture::{Fixture, KEY, SECRET, webhook};
use super::sign::hmac_hex;

/// A backend. It answers each request with the next status it was given, and with its usual one when there
/// is none.
pub struct Endpoint {
    pub addr: SocketAddr,
    pub posts: Receiver<Post>,
    pub statuses: Sender<u16>,
    pub usual: Arc<AtomicU16>,
}

/// A request as it came.
pub struct Post {
    pub head: Vec<String>,
    pub body: String,
    /// When it came, in seconds of this machine's clock. It may be read much later, and again.
    pub came: i64,
}

impl Post {
    pub fn header(&self, name: &str) -> &str {
        let start = format!("{}: ", name.to_lowercase());
        let mut found = self.head.iter().filter(|line| line.to_lowercase().starts_with(&start));
        let value =
            &found.next().unwrap_or_else(|| panic!("no {name} in {:?}", self.head))[start.len()..];
        assert!(found.next().is_none(), "{name} twice in {:?}", self.head);
        value
    }

    /// The events of a request that every SDK takes for genuine.
    pub fn events(&self) -> Vec<Value> {
        assert_eq!(self.header("content-type"), "application/json");
        // Receivers look them up by this spelling: see `tests/clients/php`.
        for line in self.head.iter().skip(1).filter(|line| !line.is_empty()) {
            let name = line.split(':').next().unwrap();
            let small =
                name.split('-').any(|part| part.starts_with(|c: char| c.is_ascii_lowercase()));
            assert!(!small, "a header's name in small letters: {line}");
        }
        assert_eq!(self.header("x-pusher-key"), KEY);
        assert_eq!(self.header("x-pusher-signature"), hmac_hex(SECRET, &self.body));
        let body: Value = serde_json::from_str(&self.body).unwrap();
        let time = body["time_ms"].as_i64().unwrap();
        assert!((self.came * 1000 - time).abs() < 60_000, "{time} is not when it came");
        body["events"].as_array().unwrap().clone()
    }
}

impl Endpoint {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let (post, posts) = channel();
        let (statuses, status) = channel();
        let usual = Arc::new(AtomicU16::new(200));
        let answers = usual.clone();
        std::thread::spawn(move || {
            let status = Arc::new(Mutex::new(status));
            for stream in listener.incoming().map_while(Result::ok) {
                let (post, status, usual) = (post.clone(), status.clone(), answers.clone());
                std::thread::spawn(move || {
                    while let Some(got) = read(&stream) {
                        if post.send(got).is_err() {
                            return;
                        }
                        let status = status.lock().unwrap().try_recv();
                        let status = status.unwrap_or_else(|_| usual.load(Ordering::SeqCst));
                        let location = if status / 100 == 3 { "Location: /other\r\n" } else { "" };
                        let answer =
                            format!("HTTP/1.1 {status} X\r\n{location}Content-Length: 2\r\n\r\nok");
                        if (&stream).write_all(answer.as_bytes()).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { addr, posts, statuses, usual }
    }

    pub fn next(&self) -> Post {
        self.posts.recv_timeout(DEADLINE).expect("a webhook in time")
    }

    /// The event of the next request, which has no other.
    pub fn event(&self) -> Value {
        let mut events = self.next().events();
        assert_eq!(events.len(), 1, "{events:?}");
        events.remove(0)
    }

    /// A webhook that asks for everything.
    pub fn webhook(&self) -> Webhook {
        webhook(&format!("http://{}/hooks?token=t", self.addr))
    }

    /// A server that posts here.
    pub fn server(&self) -> Fixture {
        Fixture::with(|app| app.webhooks = vec![self.webhook()])
    }
}

fn read(stream: &TcpStream) -> Option<Post> {
    let mut reader = BufReader::new(stream);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => break,
            line => head.push(line.to_owned()),
        }
    }
    let length = head.iter().find_map(|line| {
        line.to_lowercase().strip_prefix("content-length: ").map(|text| text.parse().unwrap())
    });
    let mut body = vec![0; length?];
    reader.read_exact(&mut body).ok()?;
    Some(Post { head, body: String::from_utf8(body).unwrap(), came: super::sign::now() })
}
