//! Apps that change while their clients are connected: each goes on with what is new or ends with its
//! app, and nobody else notices.

use std::time::{SystemTime, UNIX_EPOCH};

use fanfare::app::AppId;

use crate::support::eventually;
use crate::support::fixture::{established, target, trigger};
use crate::support::http::Http;
use crate::support::sign::{Request, hmac_hex};
use crate::support::site::Site;
use crate::support::websocket::Client;

const FILE: (&str, &str) = ("fanfare.toml", "[apps_file]\npath = \"apps.toml\"\n");

/// An app as the file has it; its key is `key-ID`.
fn app(id: &str, secret: &str, more: &str) -> String {
    format!("[[apps]]\nid = {id:?}\nkey = \"key-{id}\"\nsecret = {secret:?}\n{more}\n")
}

fn connect(site: &Site, id: &str) -> (Client, String) {
    let mut client = Client::open(site.fixture.addr, &target(&format!("key-{id}")), &[]).unwrap();
    let socket = established(&client.hear_text()).unwrap();
    (client, socket)
}

fn is_open(client: &mut Client) {
    client.send_text(r#"{"event":"pusher:ping"}"#);
    assert_eq!(client.hear_text(), r#"{"event":"pusher:pong","data":"{}"}"#);
}

/// What subscribing to a private channel, signed with `secret`, is answered with.
fn join((client, socket): &mut (Client, String), id: &str, channel: &str, secret: &str) -> String {
    let signature = hmac_hex(secret, &format!("{socket}:{channel}"));
    client.send_text(&format!(
        r#"{{"event":"pusher:subscribe","data":{{"channel":"{channel}","auth":"key-{id}:{signature}"}}}}"#
    ));
    client.hear_text()
}

/// The status of a signed trigger.
fn publish(site: &Site, id: &str, secret: &str) -> u16 {
    let body = trigger("c", "e", "1");
    let target = format!("/apps/{id}/events");
    let request = Request::new("POST", &target, &body, &format!("key-{id}"), secret);
    Http::connect(site.fixture.addr).ask_signed(&request).status
}

#[test]
fn apps_come_and_go_and_others_do_not_notice() {
    let site = Site::start(
        "apps",
        &[FILE, ("apps.toml", &[app("1", "s", ""), app("2", "s", ""), app("3", "s", "")].concat())],
    );
    let mut reloader = site.reloader();
    let (mut stays, mut removed, mut disabled) =
        (connect(&site, "1").0, connect(&site, "2").0, connect(&site, "3").0);
    assert_eq!(publish(&site, "4", "s"), 404);
    site.write(
        "apps.toml",
        &[app("1", "s", ""), app("3", "s", "enabled = false"), app("4", "s", "")].concat(),
    );
    reloader.reload();
    assert!(removed.hear_text().contains(r#""code":4001"#));
    removed.hear_close(4001, "Application does not exist");
    assert!(disabled.hear_text().contains(r#""code":4003"#));
    disabled.hear_close(4003, "Application disabled");
    is_open(&mut stays);
    is_open(&mut connect(&site, "4").0);
    assert_eq!(["1", "2", "3", "4"].map(|id| publish(&site, id, "s")), [200, 404, 403, 200]);
    let mut refused = Client::open(site.fixture.addr, &target("key-3"), &[]).unwrap();
    assert!(refused.hear_text().contains(r#""code":4003"#));
}

/// Nobody was waited for meanwhile, and once it was on again, its page was taken for new.
#[test]
fn a_page_that_was_away_while_resume_was_off_had_no_gap() {
    let with_window = |window: &str| app("1", "s", &format!("resume = {window:?}"));
    let site = Site::start("resume", &[FILE, ("apps.toml", &with_window("2m"))]);
    let mut reloader = site.reloader();
    let come = |token: &str| {
        let path = format!("/resume/{token}/app/key-1?protocol=7");
        let mut client = Client::open(site.fixture.addr, &path, &[]).unwrap();
        established(&client.hear_text()).unwrap();
        client.send_text(r#"{"event":"pusher:subscribe","data":{"channel":"c"}}"#);
        assert!(client.hear_text().contains("subscription_succeeded"));
        client
    };
    let made = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let token = format!("{made}-0123456789abcdef");
    let waiting = |expected: usize| {
        let directory = site.fixture.running().shared().hub.directory(&AppId::new("1"));
        eventually(|| match directory.resume.occupancy().0 {
            found if found == expected => Ok(()),
            found => Err(format!("{found} wait")),
        })
        .unwrap();
    };
    drop(come(&token));
    waiting(1);
    site.write("apps.toml", &with_window("0s"));
    reloader.reload();
    waiting(0);
    assert_eq!(publish(&site, "1", "s"), 200);
    site.write("apps.toml", &with_window("2m"));
    reloader.reload();
    let mut client = come(&token);
    assert_eq!(client.hear_text(), r#"{"event":"resume:gap","channel":"c","data":"{}"}"#);
}

#[test]
fn a_file_of_apps_is_read_again_when_it_changes() {
    let site = Site::start("watched", &[FILE, ("apps.toml", &app("1", "s", ""))]);
    let mut reloader = site.reloader();
    let mut stays = connect(&site, "1").0;
    site.write("apps.toml", &(app("1", "s", "") + &app("2", "s", "")));
    eventually(|| {
        reloader.look();
        match publish(&site, "2", "s") {
            200 => Ok(()),
            status => Err(status.to_string()),
        }
    })
    .unwrap();
    is_open(&mut stays);
}

#[test]
fn a_secret_is_rotated_under_connected_clients() {
    let site = Site::start("secret", &[FILE, ("apps.toml", &app("1", "old", ""))]);
    let mut reloader = site.reloader();
    let mut client = connect(&site, "1");
    let succeeded = |text: &str| text.contains("subscription_succeeded");
    site.write("apps.toml", &app("1", "new", "previous_secrets = [\"older\", \"old\"]"));
    reloader.reload();
    for (channel, secret) in [("private-a", "old"), ("private-b", "new"), ("private-c", "older")] {
        // The reload reaches connections a moment after it returns.
        eventually(|| match join(&mut client, "1", channel, secret) {
            text if succeeded(&text) => Ok(()),
            text => Err(text + &client.0.hear_text()),
        })
        .unwrap();
        assert_eq!(publish(&site, "1", secret), 200);
    }
    site.write("apps.toml", &app("1", "new", ""));
    reloader.reload();
    assert_eq!(publish(&site, "1", "old"), 401);
    assert_eq!(publish(&site, "1", "new"), 200);
    eventually(|| match join(&mut client, "1", "private-d", "old") {
        text if text.contains("subscription_error") => {
            client.0.hear_text();
            Ok(())
        }
        text => Err(text),
    })
    .unwrap();
    assert!(succeeded(&join(&mut client, "1", "private-e", "new")));
    is_open(&mut client.0);
}

#[test]
fn limits_hold_for_those_who_are_connected() {
    let site = Site::start("limits", &[FILE, ("apps.toml", &app("1", "s", ""))]);
    let mut reloader = site.reloader();
    let (mut client, _) = connect(&site, "1");
    let name = "x".repeat(50);
    site.write("apps.toml", &app("1", "s", "max_channel_name = 40\nmax_message_size = 1000"));
    reloader.reload();
    eventually(|| {
        client
            .send_text(&format!(r#"{{"event":"pusher:subscribe","data":{{"channel":"{name}"}}}}"#));
        match client.hear_text() {
            text if text.contains("subscription_error") => Ok(()),
            text => Err(text),
        }
    })
    .unwrap();
    assert!(client.hear_text().contains("pusher:error"));
    client.send_text(&"x".repeat(2000));
    client.hear_close(1009, "Maximum message size exceeded");
}

#[test]
fn another_file_of_apps_is_watched_once_it_is_named() {
    let site = Site::start("another", &[FILE, ("apps.toml", &app("1", "s", ""))]);
    let mut reloader = site.reloader();
    site.write("more.toml", &app("2", "s", ""));
    site.write("fanfare.toml", &FILE.1.replace("apps.toml", "more.toml"));
    reloader.reload();
    assert_eq!((publish(&site, "1", "s"), publish(&site, "2", "s")), (404, 200));
    site.write("more.toml", &app("33", "s", ""));
    // Seen, and then done changing.
    reloader.look();
    reloader.look();
    assert_eq!((publish(&site, "2", "s"), publish(&site, "33", "s")), (404, 200));
}

#[test]
fn what_is_wrong_changes_nothing() {
    let site = Site::start("wrong", &[FILE, ("apps.toml", &app("1", "s", ""))]);
    let mut reloader = site.reloader();
    let (mut client, _) = connect(&site, "1");
    for text in ["[[apps]", "[server]\nport = 1", "[[apps]]\nid = \"2\""] {
        site.write("apps.toml", text);
        reloader.reload();
        assert_eq!(publish(&site, "1", "s"), 200);
    }
    std::fs::remove_file(site.path("apps.toml")).unwrap();
    reloader.reload();
    assert_eq!(publish(&site, "1", "s"), 200);
    // Neither is a server left without apps because its settings have lost them.
    site.write("fanfare.toml", "");
    reloader.reload();
    assert_eq!(publish(&site, "1", "s"), 200);
    is_open(&mut client);
}

#[test]
fn an_app_made_for_the_run_stays() {
    let site = Site::start("made", &[("fanfare.toml", "")]);
    let mut reloader = site.reloader();
    let apps = site.fixture.running().shared().apps.load_full();
    let key = apps.iter().next().unwrap().key.to_string();
    let open = || Client::open(site.fixture.addr, &target(&key), &[]).unwrap();
    let mut client = open();
    established(&client.hear_text()).unwrap();
    reloader.reload();
    is_open(&mut client);
    established(&open().hear_text()).unwrap();
}
