//! The backend's side: one thread for each node, which publishes and throws users out through it, one request after
//! the other, and enters in the ledger what it was answered.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use serde_json::json;

use super::ledger::{Ledger, Outcome};
use super::node::ask;
use super::tab::Tab;
use super::world::World;

/// How long an answer may take: longer than a node sleeps.
const ANSWER: Duration = Duration::from_secs(25);

/// What a backend is to do.
#[derive(Debug)]
pub enum Job {
    /// One event to these channels, for all but the connection of this tab.
    Publish {
        channels: Vec<String>,
        except: Option<usize>,
    },
    /// Several events to one channel in one request.
    Batch {
        channel: String,
        count: usize,
    },
    Terminate {
        user: String,
    },
}

/// Does what comes until nothing more can come.
pub fn work(key: u64, addr: SocketAddr, jobs: &Receiver<Job>, ledger: &Ledger, tabs: &[Arc<Tab>]) {
    let by = key.to_string();
    let post = |path: &str, body: &serde_json::Value| match ask(
        addr,
        "POST",
        path,
        &body.to_string(),
        ANSWER,
    ) {
        Ok((200, _)) => Outcome::Taken,
        Ok(_) => Outcome::Refused,
        Err(_) => Outcome::Unknown,
    };
    for job in jobs {
        match job {
            Job::Publish { channels, except } => {
                let except =
                    except.and_then(|tab| tabs[tab].sight().view).map(|view| view.socket_id);
                let number = ledger.publish(&by, &channels, except.clone());
                let mut body =
                    json!({ "name": "e", "channels": channels, "data": number.to_string() });
                if let Some(except) = except {
                    body["socket_id"] = except.into();
                }
                ledger.answer(number, post("events", &body));
            }
            Job::Batch { channel, count } => {
                let channels = [channel.clone()];
                let numbers: Vec<usize> =
                    (0..count).map(|_| ledger.publish(&by, &channels, None)).collect();
                let event = |number: &usize| json!({ "name": "e", "channel": channel, "data": number.to_string() });
                let batch: Vec<_> = numbers.iter().map(event).collect();
                let outcome = post("batch_events", &json!({ "batch": batch }));
                numbers.into_iter().for_each(|number| ledger.answer(number, outcome));
            }
            Job::Terminate { user } => {
                let views = tabs.iter().filter(|tab| tab.user == user);
                let views = views.filter_map(|tab| tab.sight().view);
                let is_its = |view: &super::view::View| {
                    let mut told = view.channels.iter();
                    let is_present = told.any(|(name, told)| {
                        name.starts_with("presence-") && told.confirmed.is_some()
                    });
                    view.signed_in.is_some() || is_present
                };
                let victims = views.filter(is_its).map(|view| view.socket_id).collect();
                let number = ledger.terminate(&by, &user, victims);
                let path = format!("users/{user}/terminate_connections");
                ledger.answer_termination(number, post(&path, &json!({})));
            }
        }
    }
}

/// Publishes one event to a channel that is not judged; whether it was taken.
pub fn post_event(addr: SocketAddr, channel: &str, data: usize) -> bool {
    let body = json!({ "name": "e", "channel": channel, "data": data.to_string() }).to_string();
    matches!(ask(addr, "POST", "events", &body, ANSWER), Ok((200, _)))
}

/// Publishes one event to one channel now; its number if it was taken.
pub fn publish(world: &World, key: u64, addr: SocketAddr, channel: &str) -> Option<usize> {
    let number = world.ledger.publish(&key.to_string(), &[channel.to_owned()], None);
    let body = json!({ "name": "e", "channel": channel, "data": number.to_string() }).to_string();
    let outcome = match ask(addr, "POST", "events", &body, ANSWER) {
        Ok((200, _)) => Outcome::Taken,
        Ok(_) => Outcome::Refused,
        Err(_) => Outcome::Unknown,
    };
    world.ledger.answer(number, outcome);
    (outcome == Outcome::Taken).then_some(number)
}
