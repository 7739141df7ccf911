//! An app is a tenant: a backend publishes to it and clients connect to it. Its id, key, secret and limits are here;
//! connections and counts are not. An app is immutable; a reload replaces all of them at once, and holders of an old
//! one may continue to use it.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::protocol::auth::Signer;
use crate::protocol::channel::{Access, ChannelName};
use crate::protocol::origin::{self, OriginPattern};

/// The public name of an app in HTTP paths: `/apps/{id}/…`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct AppId(Arc<str>);

impl AppId {
    /// Any text: the settings have checked that it can stand in a path.
    pub fn new(id: &str) -> Self {
        Self(id.into())
    }

    /// For paths, logs and keys in Redis.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for AppId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AppId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One tenant. Everything is public because any value that `config` lets through is legal.
#[derive(Clone, Debug)]
pub struct App {
    /// By which backends name it; never given to clients.
    pub id: AppId,
    /// The public name in socket paths and in front of signatures: `/app/{key}`.
    pub key: Box<str>,
    /// Signs and verifies with the app's secret, which it never shows.
    pub signer: Signer,
    /// For people only.
    pub name: Box<str>,
    /// A disabled app refuses sockets with 4003 and requests with 403.
    pub enabled: bool,
    /// Sockets of a plain connection are refused with 4000.
    pub require_tls: bool,
    /// The pages that may connect.
    pub allowed_origins: Vec<OriginPattern>,
    /// Silence after which a client should ping, announced in `connection_established`; seconds.
    pub activity_timeout: u32,
    /// Whether clients may send each other events, and on which channels.
    pub client_events: ClientEvents,
    /// Optional features that the app has turned on.
    pub features: Features,
    /// Limits on its clients and its backend.
    pub limits: AppLimits,
    /// Endpoints that are notified of events, each through a queue of its own.
    pub webhooks: Vec<Webhook>,
}

/// Which clients may send client events ("whispers").
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ClientEvents {
    /// Nobody: each is refused with 4301.
    None,
    /// Subscribers of private and presence channels, as Pusher Channels has it.
    #[default]
    Private,
    /// Subscribers of any channel, as Reverb and Soketi have it.
    Members,
}

/// Features that an app may turn on.
#[derive(Clone, Debug)]
pub struct Features {
    /// Tell subscribers how many they are.
    pub subscription_count: bool,
    /// Tell signed-in users which of the users they watch are online.
    pub watchlist: bool,
    /// Close a connection that has neither signed in nor joined a private channel by then; zero: off.
    pub authorization_timeout: Duration,
    /// How long a cache channel keeps its last event.
    pub cache_ttl: Duration,
    /// For how long a disconnected client may come back and receive the events it missed. Zero turns this off.
    pub resume: Duration,
    /// Accept permessage-deflate.
    pub compression: bool,
    /// Whether clients of laravel-echo-server may connect.
    pub socketio: SocketIo,
}

/// Clients of laravel-echo-server.
#[derive(Clone)]
pub struct SocketIo {
    /// They are let in.
    pub enabled: bool,
    /// The backend's URL that authorizes subscriptions to private and presence channels. Empty refuses them all.
    pub auth_url: String,
    /// How long that may take.
    pub auth_timeout: Duration,
}

/// A URL may have credentials in it.
impl fmt::Debug for SocketIo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SocketIo").field("enabled", &self.enabled).finish_non_exhaustive()
    }
}

impl Default for SocketIo {
    fn default() -> Self {
        Self { enabled: false, auth_url: String::new(), auth_timeout: Duration::from_secs(10) }
    }
}

/// Every bound of an app. A zero in a field whose comment says so means no limit.
#[derive(Clone, Debug)]
pub struct AppLimits {
    /// Sockets at a time; 0: no limit.
    pub max_connections: usize,
    /// Client events that a connection may send at once, which come back evenly over `client_events_seconds`;
    /// 0: no limit.
    pub client_events_per_second: u32,
    /// At least 1.
    pub client_events_seconds: u32,
    /// Messages of any kind that a connection may send at once, which come back evenly over
    /// `messages_seconds`; 0: no limit.
    pub messages_per_second: u32,
    /// At least 1.
    pub messages_seconds: u32,
    /// Whether a client over `messages_per_second` is closed instead of having its message refused.
    pub messages_close: bool,
    /// Events a second through the API; 0: no limit.
    pub events_per_second: u32,
    /// Queries a second through the API; 0: no limit.
    pub reads_per_second: u32,
    /// Bytes of one message from a client, all its fragments together.
    pub max_message_size: usize,
    /// Bytes of an event's data.
    pub max_event_data: usize,
    /// Bytes of a client event's data.
    pub max_client_event_data: usize,
    /// Characters of an event's name.
    pub max_event_name: usize,
    /// Characters of a channel's name.
    pub max_channel_name: usize,
    /// Channels that one event may go to.
    pub max_channels_per_event: usize,
    /// Channels that one connection may be subscribed to.
    pub max_channels_per_connection: usize,
    /// Bytes that are counted for all that one connection is subscribed to.
    pub subscription_bytes: usize,
    /// Events in one batch.
    pub max_batch: usize,
    /// Distinct users in one presence channel.
    pub max_presence_members: usize,
    /// Bytes of a member's `user_info`.
    pub max_member_size: usize,
    /// Bytes of one presence channel's roster, as a new member receives it.
    pub presence_bytes: usize,
    /// Bytes that the cached events of all its channels may take, about.
    pub cache_bytes: usize,
    /// Bytes of the events that are kept for clients that come back, all channels together.
    pub resume_bytes: usize,
    /// Bytes queued for one connection before it is closed as too slow.
    pub outbox_bytes: usize,
    /// Bytes of the smallest event that is compressed.
    pub compression_min: usize,
    /// How far a request's timestamp may be off, either way; zero: unchecked.
    pub timestamp_tolerance: Duration,
}

impl AppLimits {
    /// The limits of each presence channel.
    pub fn presence_bounds(&self) -> PresenceBounds {
        PresenceBounds { members: self.max_presence_members, bytes: self.presence_bytes }
    }
}

/// A presence channel has no room for a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelFull {
    /// It has as many as it may.
    Members,
    /// The roster has its most bytes.
    Bytes,
}

/// The limits of one presence channel.
#[derive(Clone, Copy, Debug)]
pub struct PresenceBounds {
    /// Distinct users, however many connections each has.
    pub members: usize,
    /// Bytes of the roster, as a new member receives it.
    pub bytes: usize,
}

impl PresenceBounds {
    /// Checks a roster of `members` members and `bytes` bytes against these bounds.
    /// # Errors
    /// The limit that would be exceeded.
    pub fn check_size(self, members: usize, bytes: usize) -> Result<(), ChannelFull> {
        if members > self.members {
            return Err(ChannelFull::Members);
        }
        if bytes > self.bytes { Err(ChannelFull::Bytes) } else { Ok(()) }
    }
}

/// Where an app's happenings are posted to.
#[derive(Clone, Default)]
pub struct Webhook {
    /// Where its events are posted; may hold credentials in front of the host.
    pub url: String,
    /// The events that it asks for. Events that no webhook asks for are not collected at all.
    pub events: Vec<WebhookEvent>,
    /// Only channels whose name begins so; empty: all.
    pub channel_prefix: String,
    /// Only channels whose name ends so; empty: all.
    pub channel_suffix: String,
    /// Sent with each request, for a receiver that wants a token.
    pub headers: Vec<(String, String)>,
    /// How long happenings are gathered into one request; zero: one request each.
    pub batch: Duration,
}

/// URL and headers are where a receiver's credentials stand, so neither is shown.
impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhook")
            .field("events", &self.events)
            .field("channel_prefix", &self.channel_prefix)
            .field("channel_suffix", &self.channel_suffix)
            .field("batch", &self.batch)
            .finish_non_exhaustive()
    }
}

/// The happenings a webhook can ask for, by Pusher's names.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum WebhookEvent {
    /// A channel has its first subscriber.
    ChannelOccupied,
    /// It has had none for three seconds.
    ChannelVacated,
    /// A user has joined a presence channel, with its first connection.
    MemberAdded,
    /// Its last connection has left, three seconds ago.
    MemberRemoved,
    /// A client has sent an event.
    ClientEvent,
    /// Somebody has subscribed to a cache channel that has no event.
    CacheMiss,
    /// How many subscribers a channel has.
    SubscriptionCount,
}

impl App {
    /// An app with every setting at its default.
    pub fn new(id: &str, key: &str, secret: &str) -> Self {
        Self {
            id: AppId::new(id),
            key: key.into(),
            signer: Signer::new(secret),
            name: "".into(),
            enabled: true,
            require_tls: false,
            allowed_origins: "*".parse().into_iter().collect(),
            activity_timeout: 30,
            client_events: ClientEvents::default(),
            features: Features::default(),
            limits: AppLimits::default(),
            webhooks: Vec::new(),
        }
    }

    /// From how many bytes on an event on this channel is compressed for clients that agreed on compression; `None`
    /// for never. Encrypted data does not shrink, and its compressed length could tell something about it.
    pub fn compression_min(&self, channel: &ChannelName) -> Option<usize> {
        let may = self.features.compression && channel.kind().access != Access::Encrypted;
        may.then_some(self.limits.compression_min)
    }

    /// Whether a pattern names the origin `origin` itself, rather than allowing every origin.
    #[cfg(feature = "socketio")]
    pub fn names_origin(&self, origin: &str) -> bool {
        origin::named(&self.allowed_origins, origin)
    }

    /// Whether a socket with the `Origin` header `origin` may connect. Browsers always send the header. A client
    /// without it is no browser, and is let in.
    pub fn allows_origin(&self, origin: Option<&str>) -> bool {
        origin::allowed(&self.allowed_origins, origin)
    }
}

/// As [`AppLimits`]: what `config/keys.rs` has where nothing is set.
impl Default for Features {
    fn default() -> Self {
        Self {
            subscription_count: false,
            watchlist: false,
            authorization_timeout: Duration::ZERO,
            cache_ttl: Duration::from_secs(30 * 60),
            resume: Duration::ZERO,
            compression: false,
            socketio: SocketIo::default(),
        }
    }
}

/// Each is the default of its row in `config/keys.rs`; a test compares the two.
impl Default for AppLimits {
    fn default() -> Self {
        Self {
            max_connections: 0,
            client_events_per_second: 10,
            client_events_seconds: 1,
            messages_per_second: 0,
            messages_seconds: 1,
            messages_close: false,
            events_per_second: 0,
            reads_per_second: 0,
            max_message_size: 100 << 10,
            max_event_data: 100 << 10,
            max_client_event_data: 10 << 10,
            max_event_name: 200,
            max_channel_name: 200,
            max_channels_per_event: 100,
            max_channels_per_connection: 10_000,
            subscription_bytes: 512 << 10,
            max_batch: 10,
            max_presence_members: 10_000,
            max_member_size: 10 << 10,
            presence_bytes: 4 << 20,
            cache_bytes: 64 << 20,
            resume_bytes: 64 << 20,
            outbox_bytes: 1 << 20,
            compression_min: 512,
            timestamp_tolerance: Duration::from_secs(600),
        }
    }
}

/// All apps, by id and by key. Immutable: a reload builds a new set, and readers keep the set that they loaded.
#[derive(Clone, Default, Debug)]
pub struct Apps {
    /// As the HTTP API names them.
    by_id: HashMap<AppId, Arc<App>>,
    /// As sockets name them.
    by_key: HashMap<Box<str>, Arc<App>>,
}

/// Two apps that claim the same id or key.
#[derive(Debug, PartialEq, Eq)]
pub enum Duplicate {
    /// An app's id, which requests to the API name.
    Id(String),
    /// An app's key, which sockets name.
    Key(String),
}

impl Apps {
    /// All apps of the settings, or of a database.
    ///
    /// # Errors
    /// The first id or key that is given twice.
    pub fn new(apps: impl IntoIterator<Item = App>) -> Result<Self, Duplicate> {
        let mut all = Self::default();
        for app in apps {
            let app = Arc::new(app);
            if all.by_key.insert(app.key.clone(), app.clone()).is_some() {
                return Err(Duplicate::Key(app.key.to_string()));
            }
            if all.by_id.insert(app.id.clone(), app.clone()).is_some() {
                return Err(Duplicate::Id(app.id.to_string()));
            }
        }
        Ok(all)
    }

    /// These, and of `others` those whose id and key are free.
    pub fn with_others<'a>(&self, others: impl IntoIterator<Item = &'a Arc<App>>) -> Self {
        let mut all = self.clone();
        for app in others {
            if !all.by_id.contains_key(&app.id) && !all.by_key.contains_key(&app.key) {
                all.by_key.insert(app.key.clone(), app.clone());
                all.by_id.insert(app.id.clone(), app.clone());
            }
        }
        all
    }

    /// The app that a request to the API is for.
    pub fn by_id(&self, id: &str) -> Option<&Arc<App>> {
        self.by_id.get(id)
    }

    /// The app that a socket is for.
    pub fn by_key(&self, key: &str) -> Option<&Arc<App>> {
        self.by_key.get(key)
    }

    /// In no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<App>> {
        self.by_id.values()
    }

    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there is no app.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_or_key_given_twice_is_refused() {
        let twice = |a: App, b: App| Apps::new([a, b]).err();
        assert_eq!(
            twice(App::new("1", "k", "s"), App::new("1", "l", "s")),
            Some(Duplicate::Id("1".to_owned()))
        );
        assert_eq!(
            twice(App::new("1", "k", "s"), App::new("2", "k", "s")),
            Some(Duplicate::Key("k".to_owned()))
        );
    }
}
