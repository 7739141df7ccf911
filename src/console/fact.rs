//! One fact, and the JSON line that it becomes. Its content may come from strangers, so it must be displayed as text.

use std::borrow::Cow;
use std::net::IpAddr;

use bytes::Bytes;
use serde_json::{Map, Value};

use super::unix_millis;
use crate::protocol::socket_id::SocketId;

/// Bytes of a payload that are shown.
/// More is cut, and marked with `data_cut`.
const MAX_DATA: usize = 16 << 10;

/// Bytes of any other text.
const MAX_TEXT: usize = 2 << 10;

/// The kinds of facts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A socket was let in.
    Connected,
    /// Its client went.
    Disconnected,
    /// The server closed it, for the reason that is said.
    Closed,
    /// To a channel, over which its subscription stands.
    Subscribed,
    Unsubscribed,
    SignedIn,
    /// An event of a backend.
    Published,
    /// One worker has written a traced event to its sockets.
    Flushed,
    /// A client event.
    Whispered,
    /// A socket, a subscription, a message or a request was not let in.
    Refused,
    /// Is read later, for it has had its share.
    HeldUp,
    /// Went on where its client's last connection had ended.
    Resumed,
    /// Left a channel to which its backend took the right back.
    Withdrawn,
    /// A backend closed a user's connections.
    Terminated,
    WebhookSent,
    WebhookFailed,
    /// The link to the other nodes.
    Redis,
    /// The server itself: settings read again, the drain.
    Server,
}

impl Kind {
    /// With the words for them in lines and in filters. The words are for programs, too: they stay.
    pub const ALL: &'static [(Self, &'static str)] = &[
        (Self::Connected, "connected"),
        (Self::Disconnected, "disconnected"),
        (Self::Closed, "closed"),
        (Self::Subscribed, "subscribed"),
        (Self::Unsubscribed, "unsubscribed"),
        (Self::SignedIn, "signed_in"),
        (Self::Published, "published"),
        (Self::Flushed, "flushed"),
        (Self::Whispered, "whispered"),
        (Self::Refused, "refused"),
        (Self::HeldUp, "held_up"),
        (Self::Resumed, "resumed"),
        (Self::Withdrawn, "withdrawn"),
        (Self::Terminated, "terminated"),
        (Self::WebhookSent, "webhook_sent"),
        (Self::WebhookFailed, "webhook_failed"),
        (Self::Redis, "redis"),
        (Self::Server, "server"),
    ];

    /// The word in a line's `kind`.
    pub fn label(self) -> &'static str {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map_or("", |(_, word)| word)
    }

    /// Whether facts of this kind are kept for readers that connect later.
    pub(super) fn is_remembered(self) -> bool {
        matches!(
            self,
            Self::Closed
                | Self::Refused
                | Self::HeldUp
                | Self::WebhookFailed
                | Self::Redis
                | Self::Server
        )
    }

    /// Whether the kind is as frequent as the traffic itself: such facts must not crowd out faults.
    pub(super) fn is_frequent(self) -> bool {
        !self.is_remembered()
    }
}

/// A fact, built in one expression: `console.send(Kind::Subscribed, |fact| fact.app(id).channel(name))`. Texts are
/// borrowed where possible, so that a fact that no feed wants copies nothing.
#[derive(Debug)]
pub struct ConsoleFact<'a> {
    pub(super) kind: Kind,
    pub(super) app: Cow<'a, str>,
    pub(super) channel: Cow<'a, str>,
    pub(super) event: Cow<'a, str>,
    pub(super) user: Cow<'a, str>,
    pub(super) socket: Option<SocketId>,
    why: Cow<'a, str>,
    code: u16,
    address: Option<IpAddr>,
    bytes: Option<usize>,
    count: Option<usize>,
    data: Option<Cow<'a, str>>,
    more: Vec<(&'static str, Cow<'a, str>)>,
}

impl<'a> ConsoleFact<'a> {
    /// Everything empty, which is left out of the line.
    pub(super) fn new(kind: Kind) -> Self {
        Self {
            kind,
            app: Cow::Borrowed(""),
            channel: Cow::Borrowed(""),
            event: Cow::Borrowed(""),
            user: Cow::Borrowed(""),
            socket: None,
            why: Cow::Borrowed(""),
            code: 0,
            address: None,
            bytes: None,
            count: None,
            data: None,
            more: Vec::new(),
        }
    }

    /// The part that filters look at, for as long as the fact is remembered.
    pub(super) fn to_outline(&self) -> ConsoleFact<'static> {
        let own = |text: &str| Cow::Owned(cut(text, MAX_TEXT).to_owned());
        ConsoleFact {
            app: own(&self.app),
            channel: own(&self.channel),
            event: own(&self.event),
            user: own(&self.user),
            socket: self.socket,
            ..ConsoleFact::new(self.kind)
        }
    }

    /// The app's id.
    #[must_use]
    pub fn app(self, app: impl Into<Cow<'a, str>>) -> Self {
        Self { app: app.into(), ..self }
    }

    /// Its name, as it was sent.
    #[must_use]
    pub fn channel(self, channel: impl Into<Cow<'a, str>>) -> Self {
        Self { channel: channel.into(), ..self }
    }

    /// The event's name, or the command's.
    #[must_use]
    pub fn event(self, event: impl Into<Cow<'a, str>>) -> Self {
        Self { event: event.into(), ..self }
    }

    /// The connection that it is about.
    #[must_use]
    pub fn socket(self, socket: SocketId) -> Self {
        Self { socket: Some(socket), ..self }
    }

    /// The user of the connection, or the user that the fact is about.
    #[must_use]
    pub fn user(self, user: impl Into<Cow<'a, str>>) -> Self {
        Self { user: user.into(), ..self }
    }

    /// The reason, in words for a person.
    #[must_use]
    pub fn why(self, why: impl Into<Cow<'a, str>>) -> Self {
        Self { why: why.into(), ..self }
    }

    /// The code that a client or a backend was answered with; 0 for none.
    #[must_use]
    pub fn code(self, code: u16) -> Self {
        Self { code, ..self }
    }

    /// The client's, as far as proxies are believed.
    #[must_use]
    pub fn address(self, address: IpAddr) -> Self {
        Self { address: Some(address), ..self }
    }

    /// How many: subscribers that an event was for, events that were caught up on.
    #[must_use]
    pub fn count(self, count: usize) -> Self {
        Self { count: Some(count), ..self }
    }

    /// The payload, of which the size is shown to all and the text to those who ask for it.
    #[must_use]
    pub fn data(self, data: impl Into<Cow<'a, str>>) -> Self {
        let data = data.into();
        Self { bytes: Some(data.len()), data: Some(data), ..self }
    }

    /// The same as the token of a JSON string.
    #[must_use]
    pub fn data_token(self, token: &'a str) -> Self {
        Self { bytes: Some(token.len().saturating_sub(2)), data: Some(token.into()), ..self }
    }

    /// Anything else under a name of its own; left out where it is empty.
    #[must_use]
    pub fn more(mut self, name: &'static str, value: impl Into<Cow<'a, str>>) -> Self {
        self.more.push((name, value.into()));
        self
    }

    /// Without the payload, which not every feed gets.
    fn to_json(&self, number: u64) -> Map<String, Value> {
        let mut json = Map::new();
        json.insert("n".into(), number.into());
        json.insert("at".into(), unix_millis().into());
        json.insert("kind".into(), self.kind.label().into());
        let own = [
            ("app", &self.app),
            ("channel", &self.channel),
            ("event", &self.event),
            ("user", &self.user),
            ("why", &self.why),
        ];
        let more = self.more.iter().map(|(name, value)| (*name, value));
        for (name, value) in own.into_iter().chain(more).filter(|(_, value)| !value.is_empty()) {
            json.insert(name.into(), cut(value, MAX_TEXT).into());
        }
        let socket = self.socket.map(|socket| socket.to_string());
        let address = self.address.map(|address| address.to_canonical().to_string());
        for (name, value) in [("socket", socket), ("address", address)] {
            json.extend(value.map(|value| (name.to_owned(), value.into())));
        }
        let code = (self.code > 0).then_some(self.code.into());
        for (name, value) in [("code", code), ("bytes", self.bytes), ("count", self.count)] {
            json.extend(value.map(|value| (name.to_owned(), value.into())));
        }
        json
    }
}

/// The text, cut to so many bytes, before the character that would not fit.
fn cut(text: &str, max: usize) -> &str {
    // The boundary is at most `max` and within the text, so the slice exists.
    text.get(..text.floor_char_boundary(max)).unwrap_or_default()
}

/// A fact's lines, made when the first feed takes one.
pub(super) struct Encoded<'f, 'a> {
    fact: &'f ConsoleFact<'a>,
    number: u64,
    json: Option<Map<String, Value>>,
    plain: Option<Bytes>,
    with_data: Option<Bytes>,
}

impl<'f, 'a> Encoded<'f, 'a> {
    /// Nothing is encoded before a feed takes the line.
    pub(super) fn new(fact: &'f ConsoleFact<'a>, number: u64) -> Self {
        Self { fact, number, json: None, plain: None, with_data: None }
    }

    /// Made once for all feeds.
    fn json(&mut self) -> &Map<String, Value> {
        self.json.get_or_insert_with(|| self.fact.to_json(self.number))
    }

    /// The line, with its payload if that is wanted and there is one.
    pub(super) fn line(&mut self, payloads: bool) -> Bytes {
        let data = self.fact.data.as_deref().filter(|_| payloads);
        let Some(data) = data else {
            if self.plain.is_none() {
                self.plain = Some(line_of(self.json().clone()));
            }
            // Built once for all feeds that may not see the data.
            return self.plain.clone().unwrap_or_default();
        };
        if self.with_data.is_none() {
            let mut json = self.json().clone();
            // Data that is a JSON string is shown as the text in it.
            let text = match serde_json::from_str(data) {
                Ok(Value::String(text)) => Cow::Owned(text),
                _ => Cow::Borrowed(data),
            };
            let shown = cut(&text, MAX_DATA);
            if shown.len() < text.len() {
                json.insert("data_cut".into(), true.into());
            }
            json.insert("data".into(), shown.into());
            self.with_data = Some(line_of(json));
        }
        // Built once for all feeds that may see the data.
        self.with_data.clone().unwrap_or_default()
    }

    /// The line for those who look later.
    pub(super) fn remembered_line(&mut self) -> Bytes {
        let mut json = self.json().clone();
        // Tells the reader that this happened before it connected.
        json.insert("past".into(), true.into());
        line_of(json)
    }
}

/// One line of NDJSON; JSON itself has no line breaks.
fn line_of(json: Map<String, Value>) -> Bytes {
    let mut text = Value::Object(json).to_string();
    text.push('\n');
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_word_of_its_own() {
        let mut words: Vec<_> = Kind::ALL.iter().map(|(kind, _)| kind.label()).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Kind::ALL.len());
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let long = "ü".repeat(MAX_DATA);
        let fact = ConsoleFact::new(Kind::Published).channel(long.clone()).data(long);
        let line = Encoded::new(&fact, 1).line(true);
        let json: Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(json["channel"].as_str().unwrap().len(), MAX_TEXT);
        assert_eq!(
            (json["data"].as_str().unwrap().len(), &json["data_cut"]),
            (MAX_DATA, &true.into())
        );
    }
}
