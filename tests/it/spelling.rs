//! Requests as backends and proxies in odd set-ups spell them: what was signed in one way and sent in another.

use fanfare::app::App;

use crate::support::fixture::{Fixture, ID, KEY, SECRET, target};
use crate::support::http::Http;
use crate::support::sign::Request;
use crate::support::websocket::Client;

/// What forms and many languages make of a blank in a query. Which it is, the signature tells.
#[test]
fn a_blank_that_came_as_a_plus_was_refused() {
    let fixture = Fixture::start();
    let mut client = fixture.subscribed("pub");
    let of = |path: &str| {
        Request::new("POST", &format!("/apps/{ID}/{path}"), "", KEY, SECRET).signed_target()
    };
    for (target, event) in [
        (
            of("events?name=my%20event&data=a%20b&channels[]=pub").replace("%20", "+"),
            r#""my event""#,
        ),
        (of("events?name=my%20event&data=a%2Bb&channel=pub").replace("%20", "+"), r#""my event""#),
        // A plus is still one.
        (of("events?name=my+event&data=a+b&channel=pub"), r#""my+event""#),
        (of("events?name=my%2Bevent&data=a%20b&channel=pub"), r#""my+event""#),
    ] {
        assert_eq!(
            Http::connect(fixture.addr).ask("POST", &target, "", b"").status,
            200,
            "{target}"
        );
        let text = client.hear_text();
        assert!(text.contains(event), "{target}: {text}");
    }
    let target = of("events?name=my%20event&data=1&channel=pub").replace("%20", "++");
    Http::connect(fixture.addr).ask("POST", &target, "", b"").error(401);
}

/// A base path with a slash at its end is all that it takes.
#[test]
fn a_doubled_slash_was_routed_and_not_signed_for() {
    for prefix in ["", "/ws/here"] {
        let fixture = Fixture::with_apps(vec![App::new(ID, KEY, SECRET)], |server| {
            server.path = prefix.to_owned();
        });
        let inner = format!("/apps/{ID}/channels");
        for sent in [
            format!("/{inner}"),
            format!("{inner}/"),
            format!("/apps//{ID}///channels//"),
            format!("{}{inner}", prefix.replace('/', "//")),
            format!("{prefix}/{inner}/"),
        ] {
            for signed_path in [
                sent.clone(),
                inner.clone(),
                format!("{prefix}{inner}"),
                format!("{prefix}{inner}/"),
            ] {
                let ends = signed_path.ends_with('/') && !sent.ends_with('/');
                let is_inside = sent.trim_start_matches('/').starts_with("ws") || prefix.is_empty();
                let signs_more = signed_path.starts_with("/ws") && !is_inside;
                let mut request = Request::new("GET", &sent, "", KEY, SECRET);
                request.signed_path = Some(signed_path.clone());
                let answer =
                    Http::connect(fixture.addr).ask("GET", &request.signed_target(), "", b"");
                let status = if ends || signs_more { 401 } else { 200 };
                assert_eq!(
                    answer.status,
                    status,
                    "{sent} signed as {signed_path}: {}",
                    answer.text()
                );
            }
        }
        let target = format!("/{}", target(KEY));
        let target = format!("{}/{target}", prefix.replace('/', "//"));
        assert!(Client::open(fixture.addr, &target, &[]).is_ok(), "{target}");
    }
}
