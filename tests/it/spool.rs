//! Events that wait for a webhook's endpoint outlive the process, whether that ends in order or is killed.

use std::path::PathBuf;
use std::sync::atomic::Ordering;

use fanfare::app::App;
use serde_json::{Value, json};

use crate::support::child::Child;
use crate::support::endpoint::Endpoint;
use crate::support::eventually;
use crate::support::fixture::{Fixture, ID, KEY, SECRET, subscribe};

/// A folder that goes with its test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("fanfare-{name}-{}", std::process::id())))
    }

    /// What the files in it have together.
    fn text(&self) -> String {
        let files = std::fs::read_dir(&self.0).into_iter().flatten();
        files.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap()).collect()
    }

    fn holds(&self, expected: &str) {
        let held = eventually(|| match self.text() {
            text if text.contains(expected) => Ok(()),
            text => Err(text),
        });
        assert_eq!(held, Ok(()));
    }

    fn is_emptied(&self) {
        let emptied = eventually(|| match self.text() {
            text if text.is_empty() => Ok(()),
            text => Err(text),
        });
        assert_eq!(emptied, Ok(()));
    }

    fn server(&self, endpoint: &Endpoint) -> Fixture {
        let mut app = App::new(ID, KEY, SECRET);
        app.webhooks = vec![endpoint.webhook()];
        Fixture::with_config(vec![app], |config| config.webhooks.spool = Some(self.0.clone()))
    }

    /// The same as a process.
    fn process(&self, endpoint: &Endpoint) -> Child {
        let url = format!("http://{}/", endpoint.addr);
        Child::start(&[
            ("APPS__0__WEBHOOKS__0__URL", &url),
            ("WEBHOOKS__SPOOL", self.0.to_str().unwrap()),
        ])
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn told(name: &str, channel: &str) -> Value {
    json!({ "name": name, "channel": channel })
}

fn eventually_tells(endpoint: &Endpoint, expected: &Value) {
    let told = eventually(|| match endpoint.event() {
        event if event == *expected => Ok(()),
        event => Err(event.to_string()),
    });
    assert_eq!(told, Ok(()));
}

#[test]
fn what_could_not_be_sent_is_sent_after_a_restart() {
    let endpoint = Endpoint::start();
    endpoint.usual.store(503, Ordering::SeqCst);
    let folder = Folder::new("restart");
    let fixture = folder.server(&endpoint);
    let client = fixture.subscribed("a");
    assert_eq!(endpoint.event(), told("channel_occupied", "a"));
    fixture.stop();
    drop(client);
    let kept = folder.text();
    assert!(kept.lines().count() == 2 && kept.ends_with('\n'), "{kept}");
    endpoint.usual.store(200, Ordering::SeqCst);
    // The new run begins with what the old one has left, as soon as the endpoint takes it.
    let fixture = folder.server(&endpoint);
    eventually_tells(&endpoint, &told("channel_vacated", "a"));
    fixture.stop();
    assert_eq!(std::fs::read_dir(&folder.0).unwrap().count(), 0);
}

#[test]
fn a_process_that_is_killed_loses_nothing_in_line() {
    let endpoint = Endpoint::start();
    endpoint.usual.store(503, Ordering::SeqCst);
    let folder = Folder::new("killed");
    let process = folder.process(&endpoint);
    let (mut client, _) = process.connect();
    let names: Vec<String> = (0..50).map(|number| format!("c{number}")).collect();
    names.iter().for_each(|name| subscribe(&mut client, name));
    folder.holds("c49");
    drop(process);
    // The last line is not whole, as when the machine stopped in it.
    let file = std::fs::read_dir(&folder.0).unwrap().next().unwrap().unwrap().path();
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text + r#"{"n":50,"app":"3","ind"#).unwrap();
    while endpoint.posts.try_recv().is_ok() {}
    endpoint.usual.store(200, Ordering::SeqCst);
    let _process = folder.process(&endpoint);
    // What was on its way when the process died may come behind what was there, and so twice.
    let mut events = vec![endpoint.event()];
    while events.last() != Some(&told("channel_occupied", "c49")) {
        events.push(endpoint.event());
    }
    events.dedup();
    let expected: Vec<Value> = names.iter().map(|name| told("channel_occupied", name)).collect();
    assert_eq!(events, expected);
    folder.is_emptied();
}

#[test]
fn while_two_processes_share_it_each_event_is_sent() {
    let endpoint = Endpoint::start();
    endpoint.usual.store(503, Ordering::SeqCst);
    let folder = Folder::new("shared");
    let old = folder.process(&endpoint);
    let (mut first, _) = old.connect();
    subscribe(&mut first, "old");
    folder.holds(r#""old""#);
    let new = folder.process(&endpoint);
    let (mut second, _) = new.connect();
    subscribe(&mut second, "new");
    folder.holds(r#""new""#);
    endpoint.usual.store(200, Ordering::SeqCst);
    drop(old);
    let mut left = vec![told("channel_occupied", "old"), told("channel_occupied", "new")];
    let all = eventually(|| {
        let event = endpoint.event();
        left.retain(|other| *other != event);
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
    assert_eq!(all, Ok(()));
    folder.is_emptied();
}
