//! The debug console's facts about connections and events. Nothing here changes anything.

use std::net::IpAddr;

use tracing::debug;

use super::{Node, Publication, ServerState};
use crate::app::AppId;
use crate::cluster::Topic;
use crate::console::{Console, ConsoleFact, Kind};
use crate::hub::connection::Connection;
use crate::hub::deflated::Compression;
use crate::hub::directory::Directory;
use crate::hub::shown;
use crate::metrics::Reason;
use crate::protocol::trace::Trace;

impl Node {
    /// Called on every event: without a reader, reporting costs one load of a flag.
    pub fn console(&self) -> &Console {
        &self.shared.hub.console
    }

    /// A fact of one connection.
    pub fn emit_fact<'a>(
        &self,
        kind: Kind,
        connection: &Connection,
        make: impl FnOnce(ConsoleFact<'a>) -> ConsoleFact<'a>,
    ) {
        self.console().send(kind, |fact| {
            // Copied only for a reader: otherwise the closure does not run.
            let user = connection.with_user(|user| user.map(|user| user.id.as_str().to_owned()));
            let app = connection.app().id.as_str().to_owned();
            // An empty user is left out of the line.
            make(fact.app(app).socket(connection.id).user(user.unwrap_or_default()))
        });
    }

    /// A connection was let in, once it is known what was agreed on.
    pub fn emit_connected(&self, connection: &Connection, transport: &'static str) {
        self.emit_fact(Kind::Connected, connection, |fact| {
            let compression = match connection.life.compression.get() {
                Compression::Off => "",
                Compression::Incoming => "from the client",
                Compression::Both => "both ways",
            };
            let resumes = if connection.resumption().is_some() { "yes" } else { "" };
            fact.address(connection.address)
                .more("transport", transport)
                .more("compression", compression)
                .more("resumable", resumes)
        });
    }

    /// With the reason; some are faults, and shown as such.
    pub(super) fn emit_disconnected(&self, connection: &Connection) {
        let reason = connection.end_reason();
        let (is_wrong, words) = ending_in_words(reason);
        let kind = if is_wrong { Kind::Closed } else { Kind::Disconnected };
        self.emit_fact(kind, connection, |fact| {
            fact.address(connection.address)
                // A reason without a close code is shown as 0.
                .code(reason.close_code().parse().unwrap_or_default())
                .more("reason", reason.label())
                .why(words)
        });
    }

    /// With how many subscribers it has here, and its data.
    pub(super) fn emit_published(
        &self,
        kind: Kind,
        (app, directory): (&AppId, &Directory),
        publication: Publication<'_>,
    ) {
        let Publication { channel, event, data, except, trace } = publication;
        self.console().send(kind, |fact| {
            // A channel without subscribers here has an occupancy of zero, and the fact says so.
            let here = directory.occupancy(channel.as_str()).unwrap_or_default().subscriptions;
            let fact = fact.app(app.as_str().to_owned()).channel(channel.as_str().to_owned());
            let except = except.map_or_else(String::new, |socket| socket.to_string());
            let fact = fact.event(event.to_owned()).count(here).more("except", except);
            let fact = fact.more("trace", trace.map_or("", Trace::as_str).to_owned());
            fact.data_token(data)
        });
    }
}

impl ServerState {
    /// Reports an event from another node. The frame is parsed only if a reader watches.
    pub(super) fn emit_received(&self, topic: &Topic, frame: &[u8], trace: Option<&Trace>) {
        if let Some(trace) = trace {
            let (app, channel) = (&topic.app, topic.channel.as_str());
            debug!(trace = trace.as_str(), %app, ?channel, "received from another node");
        }
        self.hub.console.send(Kind::Published, |fact| {
            // A frame of the protocol itself has no channel; it is shown with an empty one.
            let (event, channel) = shown::event_and_channel(frame).unwrap_or_default();
            let here = self.hub.directory(&topic.app).occupancy(&channel).unwrap_or_default();
            let fact = fact.app(topic.app.as_str().to_owned()).channel(channel).event(event);
            let fact = fact.count(here.subscriptions).more("from", "another node");
            let fact = fact.more("trace", trace.map_or("", Trace::as_str).to_owned());
            // A frame without data is shown without.
            fact.data(shown::data(frame).unwrap_or_default())
        });
    }
}

/// A request or a socket that was not let in.
pub fn report_refusal<'a>(
    console: &Console,
    address: IpAddr,
    make: impl FnOnce(ConsoleFact<'a>) -> ConsoleFact<'a>,
) {
    console.send(Kind::Refused, |fact| make(fact.address(address)));
}

/// Whether a connection ended because of a fault, and a sentence about it. The sentences name settings that the
/// operator may change.
fn ending_in_words(reason: Reason) -> (bool, &'static str) {
    match reason {
        Reason::Client => (false, "its client closed it"),
        Reason::Lost => (false, "its client went without a word"),
        Reason::Terminated => (false, "a backend closed the user's connections"),
        Reason::Reconnect => (false, "a backend asked the user's clients to come back"),
        Reason::TakenOver => (false, "a newer connection of its client has come"),
        Reason::Draining => (false, "the server stops or hands over"),
        Reason::Protocol => (true, "it broke the WebSocket protocol"),
        Reason::Encoding => (true, "it sent text that is not UTF-8"),
        Reason::TooLarge => (true, "it sent a message over max_message_size"),
        Reason::Unauthorized => (true, "it had not signed in within authorization_timeout"),
        Reason::Slow => (true, "too slow: more waited for it than outbox_bytes"),
        Reason::Silent => (true, "it gave no sign of life"),
        Reason::Flooding => (true, "it sent nonsense without end"),
        Reason::Heavy => (true, "it held much while memory was used up"),
        Reason::AppRemoved => (true, "its app is gone from the settings"),
        Reason::AppDisabled => (true, "its app was disabled"),
        _ => (true, "it was refused"),
    }
}
