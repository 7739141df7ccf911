//! Requests that the server reads itself because they come whole, beside the same ones that hyper reads: nobody can
//! tell which it was.

use fanfare::app::App;

use crate::support::fixture::{Fixture, ID, KEY, SECRET, trigger};
use crate::support::http::{Http, request};
use crate::support::sign::Request;

fn signed(method: &str, path: &str, body: &str) -> Request {
    Request::new(method, &format!("/apps/{ID}/{path}"), body, KEY, SECRET)
}

/// The target of a signed `POST events` for `body`.
fn events(body: &str) -> String {
    signed("POST", "events", body).signed_target()
}

#[test]
fn answers_are_the_same_whoever_reads_the_request() {
    let fixture = Fixture::start();
    let body = trigger("pub", "e", "1");
    let batch = r#"{"batch":[{"name":"e","channel":"pub","data":"1"}]}"#;
    let events = events(&body);
    let signed = |path: &str, body: &str| {
        let method = if body.is_empty() { "GET" } else { "POST" };
        (method, signed(method, path, body).signed_target(), body.to_owned())
    };
    let plain = |method, target: &str| (method, target.to_owned(), String::new());
    for (method, target, body) in [
        signed("events", &body),
        signed("batch_events", batch),
        signed("events", "[]"),
        signed("events", &format!(r#"{{"x":"{}"}}"#, "y".repeat(15 << 10))),
        signed("channels", ""),
        signed("channels/presence-x/users", ""),
        ("POST", events.clone(), "{}".to_owned()),
        plain("POST", &events),
        plain("GET", &events),
        plain("GET", "/apps/none/channels"),
        plain("GET", "/apps/none/nope"),
        plain("GET", "/app/key"),
    ] {
        // The third word is one that leaves a request to hyper, the second a header that no plain one has.
        let answers = ["", "Origin: http://page\r\n", "Connection: x\r\n"].map(|headers| {
            let mut http = Http::connect(fixture.addr);
            let mut answer = http.ask(method, &target, headers, body.as_bytes());
            let again = http.ask(method, &target, headers, body.as_bytes());
            assert_eq!((answer.status, &answer.body), (again.status, &again.body), "{target}");
            let date = answer.headers.iter_mut().find(|(name, _)| name == "date");
            let (_, date) = date.unwrap_or_else(|| panic!("no date: {:?}", again.headers));
            assert_eq!(date.split_off(25), " GMT");
            date.clear();
            (answer.status, answer.headers, answer.body)
        });
        assert_eq!(answers[0], answers[2], "{method} {target}");
        assert_eq!(answers[1], answers[2], "{method} {target}");
    }
}

#[test]
fn limits_and_origins_are_answered_the_same_whoever_reads_the_request() {
    let mut app = App::new(ID, KEY, SECRET);
    app.limits.events_per_second = 1_000_000;
    for origins in ["*", "http://page"] {
        let fixture = Fixture::with_apps(vec![app.clone()], |server| {
            server.cors_origins = vec![origins.to_owned()];
        });
        let body = trigger("pub", "e", "1");
        let answers = ["", "Connection: x\r\n"].map(|headers| {
            let mut http = Http::connect(fixture.addr);
            let answer = http.ask("POST", &events(&body), headers, body.as_bytes());
            let passing = ["date", "x-ratelimit-remaining"];
            let headers = answer.headers.into_iter();
            headers
                .map(|(name, value)| match name {
                    name if passing.contains(&&*name) => (name, None),
                    name => (name, Some(value)),
                })
                .collect::<Vec<_>>()
        });
        assert_eq!(answers[0], answers[1]);
        assert!(answers[0].iter().any(|(name, _)| name == "x-ratelimit-limit"), "{answers:?}");
    }
}

#[test]
fn a_body_may_come_after_its_head() {
    let fixture = Fixture::start();
    let mut client = fixture.subscribed("pub");
    let mut http = Http::connect(fixture.addr);
    for number in 0..20 {
        let body = trigger("pub", "e", &number.to_string());
        let all = request("POST", &events(&body), "", body.as_bytes());
        let (head, body) = all.split_at(all.len() - body.len() + number % 3);
        http.send(head);
        http.send(body);
        assert_eq!(http.answer().status, 200);
        assert!(client.hear_text().contains(&format!(r#""data":"{number}""#)));
    }
}
