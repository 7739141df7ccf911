//! The metrics for Prometheus, over sockets as they are used: every family has its help and type, the
//! numbers are those of what was done, and Soketi's names are there for its dashboards.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;

use fanfare::app::App;
use fanfare::config::Config;

use crate::support::eventually;
use crate::support::fixture::{Fixture, ID, KEY, SECRET, subscribe, target};
use crate::support::http::Http;
use crate::support::ports::free_port;
use crate::support::sign::{Request, hmac_hex};
use crate::support::websocket::Client;

/// A server with metrics under `/metrics` of its one port, all names with `prefix`.
fn measured(prefix: &str) -> Fixture {
    Fixture::with_config(vec![App::new(ID, KEY, SECRET)], |config| {
        config.metrics.enabled = true;
        config.metrics.port = 0;
        config.metrics.prefix = prefix.to_owned();
    })
}

/// Every sample of a scrape, by its name with labels. It is of now: who asks too fast gets a page of a moment ago, and
/// so this does not from the 80th on.
pub fn scrape(addr: SocketAddr) -> BTreeMap<String, f64> {
    static ASKED: Mutex<BTreeMap<SocketAddr, usize>> = Mutex::new(BTreeMap::new());
    let asked = *ASKED.lock().unwrap().entry(addr).and_modify(|asked| *asked += 1).or_insert(1);
    if asked > 80 {
        std::thread::park_timeout(Duration::from_millis(125));
    }
    let response = Http::connect(addr).ask("GET", "/metrics", "", b"");
    assert_eq!(response.status, 200);
    assert_eq!(response.header("content-type"), Some("text/plain; version=0.0.4"));
    let lines = response.text().lines().filter(|line| !line.starts_with('#'));
    let samples = lines.map(|line| line.rsplit_once(' ').unwrap());
    samples.map(|(name, value)| (name.to_owned(), value.parse().unwrap())).collect()
}

/// Waits until every sample has its value.
fn expect(addr: SocketAddr, expected: &[(&str, f64)]) {
    let reached = eventually(|| {
        let samples = scrape(addr);
        for (name, value) in expected {
            if samples.get(*name) != Some(value) {
                return Err(format!("{name} is {:?}, not {value}", samples.get(*name)));
            }
        }
        Ok(())
    });
    assert_eq!(reached, Ok(()));
}

/// A connection that is the only member of a presence channel.
fn present(fixture: &Fixture) -> Client {
    let (mut client, socket_id) = fixture.connect();
    let data = r#"{"user_id":"1"}"#;
    let auth = hmac_hex(SECRET, &format!("{socket_id}:presence-room:{data}"));
    let data = serde_json::Value::from(data);
    client.send_text(&format!(
        r#"{{"event":"pusher:subscribe","data":{{"channel":"presence-room","auth":"{KEY}:{auth}","channel_data":{data}}}}}"#
    ));
    assert!(client.hear_text().contains("subscription_succeeded"));
    client
}

#[test]
fn what_was_done_is_counted() {
    let fixture = measured("fanfare_");
    let mut one = fixture.subscribed("room");
    let mut other = fixture.subscribed("room");
    let mut third = present(&fixture);
    third.send_text("nonsense");
    assert!(third.hear_text().contains("4200"));
    third.send_text(&format!(
        r#"{{"event":"pusher:subscribe","data":{{"channel":"private-a","auth":"{KEY}:00"}}}}"#
    ));
    assert!(third.hear_text().contains("subscription_error"));
    fixture.publish("room", "e", "1");
    assert!(one.hear_text().contains("room") && other.hear_text().contains("room"));
    let mut foreign = Request::new("GET", &format!("/apps/{ID}/channels"), "", "other", SECRET);
    Http::connect(fixture.addr).ask_signed(&foreign).error(401);
    KEY.clone_into(&mut foreign.key);
    "12".clone_into(&mut foreign.timestamp);
    Http::connect(fixture.addr).ask_signed(&foreign).error(401);
    Http::connect(fixture.addr).ask("GET", "/nowhere", "", b"").error(404);
    one.send_close(1000, "");
    one.hear_close(1000, "");
    drop(other);
    let mut stranger = Client::open(fixture.addr, &target("unknown"), &[]).ok().unwrap();
    assert!(stranger.hear_text().contains("4001"));
    expect(
        fixture.addr,
        &[
            (r#"fanfare_connections{app="3"}"#, 1.0),
            (r#"fanfare_connects_total{app="3"}"#, 3.0),
            (r#"fanfare_disconnects_total{app="3"}"#, 2.0),
            (r#"fanfare_subscriptions{app="3"}"#, 1.0),
            (r#"fanfare_channels{app="3"}"#, 1.0),
            (r#"fanfare_presence_members{app="3"}"#, 1.0),
            (r#"fanfare_received_messages_total{app="3"}"#, 5.0),
            (r#"fanfare_deliveries_total{app="3"}"#, 2.0),
            (r#"fanfare_published_total{app="3"}"#, 1.0),
            (r#"fanfare_closes_total{code="none",reason="client"}"#, 1.0),
            (r#"fanfare_closes_total{code="none",reason="lost"}"#, 1.0),
            (r#"fanfare_refused_connections_total{code="4001",reason="unknown_app"}"#, 1.0),
            ("fanfare_refused_messages_total", 2.0),
            (r#"fanfare_refused_signatures_total{of="subscription",cause="signature"}"#, 1.0),
            (r#"fanfare_refused_signatures_total{of="request",cause="key"}"#, 1.0),
            (r#"fanfare_refused_signatures_total{of="request",cause="time"}"#, 1.0),
            (r#"fanfare_api_requests_total{route="events",status="200"}"#, 1.0),
            (r#"fanfare_api_requests_total{route="channels",status="401"}"#, 2.0),
            (r#"fanfare_api_requests_total{route="unknown",status="404"}"#, 1.0),
            (r#"fanfare_api_request_duration_seconds_count{route="events"}"#, 1.0),
            ("fanfare_ready", 1.0),
            ("fanfare_outbox_bytes", 0.0),
        ],
    );
    let samples = scrape(fixture.addr);
    for name in [
        r#"fanfare_received_bytes_total{app="3"}"#,
        r#"fanfare_sent_bytes_total{app="3"}"#,
        r#"fanfare_request_bytes_total{app="3"}"#,
        r#"fanfare_response_bytes_total{app="3"}"#,
        r#"fanfare_worker_busy_seconds_total{worker="0"}"#,
        "fanfare_fan_out_duration_seconds_count",
        "fanfare_fan_out_duration_seconds_sum",
        "process_resident_memory_bytes",
        "process_cpu_seconds_total",
        "process_start_time_seconds",
        "process_open_fds",
    ] {
        assert!(samples.get(name).is_some_and(|value| *value > 0.0), "{name}: {samples:#?}");
    }
}

#[test]
fn every_family_is_described_once() {
    let fixture = measured("fanfare_");
    let mut client = fixture.subscribed("room");
    subscribe(&mut client, "other");
    let text = Http::connect(fixture.addr).ask("GET", "/metrics", "", b"").text().to_owned();
    let mut families = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("# TYPE ")) {
        let mut words = line.split(' ').skip(2);
        let (name, kind) = (words.next().unwrap(), words.next().unwrap());
        assert!(families.insert(name, kind).is_none(), "{name} comes twice");
        assert!(text.contains(&format!("# HELP {name} ")), "{name} has no help");
        assert_eq!(name.ends_with("_total"), kind == "counter", "{name} is a {kind}");
    }
    assert!(families.len() > 30, "{families:?}");
    // A channel's name can be anybody's choice, so it makes no series.
    let mut samples = text.lines().filter(|line| !line.starts_with('#'));
    assert!(samples.all(|line| !line.contains("room") && !line.contains("channel=\"")), "{text}");
}

/// What the text format asks of a page beyond its lines, which `promtool check metrics` does not look at: a series is
/// there once, a family in one place, and the buckets of a histogram grow up to the one of `+Inf`, which is its count.
fn assert_sound(text: &str) {
    let (mut series, mut families) = (BTreeSet::new(), BTreeSet::new());
    let (mut family, mut kind, mut bucket) = ("", "", None);
    for line in text.lines() {
        if let Some(told) = line.strip_prefix("# TYPE ") {
            (family, kind) = told.split_once(' ').unwrap();
            assert!(families.insert(family), "{family} is in two places");
        }
        if line.starts_with('#') {
            continue;
        }
        let (name, value) = line.rsplit_once(' ').unwrap();
        let value: f64 = value.parse().unwrap();
        assert!(series.insert(name), "{name} is there twice");
        let rest = name.strip_prefix(family).unwrap_or_else(|| panic!("{name} is below {family}"));
        match (kind, rest.split('{').next().unwrap()) {
            ("histogram", "_bucket") => {
                assert!(bucket.is_none_or(|lower| lower <= value), "{name} falls to {value}");
                bucket = Some(value).filter(|_| !name.contains("le=\"+Inf\""));
            }
            ("histogram", ending @ ("_sum" | "_count")) => {
                assert_eq!(bucket, None, "{name} comes before the bucket of +Inf");
                let whole = name.replacen(ending, "_bucket", 1);
                let infinite = [
                    format!("{}{{le=\"+Inf\"}} {value}", whole),
                    format!("{},le=\"+Inf\"}} {value}", whole.trim_end_matches('}')),
                ];
                let is_told = infinite.iter().any(|line| text.lines().any(|told| told == line));
                assert!(ending == "_sum" || is_told, "{name} is not {value} by its buckets");
            }
            (_, "") if kind != "histogram" => {}
            other => panic!("{name} is a {other:?}"),
        }
    }
}

#[test]
fn pages_are_sound_where_promtool_does_not_look() {
    for prefix in ["fanfare_", "soketi_"] {
        let fixture = Fixture::with_config(
            vec![App::new(ID, KEY, SECRET), App::new("4", "key-4", "secret-4")],
            |config| {
                config.metrics.enabled = true;
                config.metrics.port = 0;
                config.metrics.prefix = prefix.to_owned();
            },
        );
        let mut client = fixture.subscribed("room");
        fixture.publish("room", "e", "1");
        client.hear_text();
        let page = Http::connect(fixture.addr).ask("GET", "/metrics", "", b"").text().to_owned();
        assert!(page.contains("_bucket"), "{page}");
        assert_sound(&page);
    }
}

#[test]
fn dashboards_of_soketi_go_on() {
    let fixture = measured("soketi_");
    let mut client = fixture.subscribed("room");
    fixture.publish("room", "e", "1");
    client.hear_text();
    let labels = format!(r#"{{app_id="3",port="{}"}}"#, fixture.addr.port());
    let samples = scrape(fixture.addr);
    for name in [
        "connected",
        "new_connections_total",
        "socket_received_bytes",
        "socket_transmitted_bytes",
        "ws_messages_received_total",
        "ws_messages_sent_total",
        "http_received_bytes",
        "http_transmitted_bytes",
        "http_calls_received_total",
    ] {
        let value = samples.get(&format!("soketi_{name}{labels}"));
        assert!(value.is_some_and(|value| *value > 0.0), "{name} is {value:?}");
    }
    for name in [
        "new_disconnections_total",
        "horizontal_adapter_resolve_time_count",
        "horizontal_adapter_resolved_promises",
        "horizontal_adapter_uncomplete_promises",
        "horizontal_adapter_sent_requests",
        "horizontal_adapter_received_requests",
        "horizontal_adapter_received_responses",
    ] {
        assert_eq!(samples.get(&format!("soketi_{name}{labels}")), Some(&0.0), "{name}");
    }
    assert!(samples.contains_key("soketi_process_resident_memory_bytes"), "{samples:?}");
}

/// A server with a port for metrics, and that port.
pub fn with_port(change: impl Fn(&mut Config)) -> (Fixture, SocketAddr) {
    let port = free_port();
    let fixture = Fixture::with_config(vec![App::new(ID, KEY, SECRET)], |config| {
        config.metrics.port = port;
        change(config);
    });
    (fixture, SocketAddr::from(([127, 0, 0, 1], port)))
}

#[test]
fn metrics_have_a_port_of_their_own() {
    let (fixture, addr) = with_port(|config| config.metrics.enabled = true);
    expect(addr, &[(r#"fanfare_connections{app="3"}"#, 0.0)]);
    assert_eq!(Http::connect(addr).ask("GET", "/nope", "", b"").status, 404);
    assert_eq!(Http::connect(addr).ask("POST", "/metrics", "", b"").status, 405);
    Http::connect(fixture.addr).ask("GET", "/metrics", "", b"").error(404);
    fixture.stop();
    let gone = eventually(|| match std::net::TcpStream::connect(addr) {
        Ok(_) => Err("still listening".to_owned()),
        Err(_) => Ok(()),
    });
    assert_eq!(gone, Ok(()));
}

/// Docker's and Kubernetes' checks of a Soketi ask its second port, whether or not metrics are on.
#[test]
fn health_checks_of_soketi_are_answered_on_the_second_port() {
    for enabled in [true, false] {
        let (fixture, addr) = with_port(|config| {
            config.metrics.enabled = enabled;
            config.metrics.probes = true;
        });
        for path in ["/", "/ready"] {
            for method in ["GET", "HEAD"] {
                let answer = Http::connect(addr).ask(method, path, "", b"");
                assert_eq!(answer.status, 200, "{method} {path}");
            }
            assert_eq!(Http::connect(addr).ask("GET", path, "", b"").text(), "OK");
            assert_eq!(Http::connect(addr).ask("POST", path, "", b"").status, 405);
        }
        let usage = Http::connect(addr).ask("GET", "/usage", "", b"");
        let usage: serde_json::Value = serde_json::from_str(usage.text()).unwrap();
        let of = |name: &str| usage["memory"][name].as_f64().unwrap();
        assert!(of("used") > 1e6 && of("used") + of("free") == of("total"), "{usage}");
        assert!((of("percent") - of("used") * 100.0 / of("total")).abs() < 0.1, "{usage}");
        let metrics = Http::connect(addr).ask("GET", "/metrics", "", b"").status;
        assert_eq!(metrics, if enabled { 200 } else { 404 });
        drop(fixture);
    }
}

#[test]
fn metrics_that_are_off_are_nowhere() {
    let fixture = Fixture::start();
    Http::connect(fixture.addr).ask("GET", "/metrics", "", b"").error(404);
}
