//! Errors to clients: `pusher:error` with one of Pusher's codes, `pusher:subscription_error` in addition if a channel
//! is concerned, and which of them close the connection. The texts are those of Pusher, Reverb and Soketi, so that
//! people can search for them.

use std::borrow::Cow;

use super::auth::AuthError;
use super::channel::NameError;
use super::member::MemberError;

/// A refusal by code and text. Codes 4000–4099 tell clients not to come back, 4100–4199 to come back
/// later, 4200–4299 at once; above 4300 are errors that never close, for pusher-js would give up for ever.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Error {
    /// One of Pusher's, or of the ranges that it gives them.
    pub code: u16,
    /// For people. A close frame holds at most 123 bytes of it.
    pub message: Cow<'static, str>,
}

impl Error {
    /// `const`, so that refusals whose text is fixed allocate nothing.
    pub const fn new(code: u16, message: &'static str) -> Self {
        Self { code, message: Cow::Borrowed(message) }
    }
}

/// Refused before `connection_established`, or closed for: followed by a close frame of the same code.
pub mod close {
    use super::Error;

    pub const TLS_ONLY: Error = Error::new(4000, "Application only accepts TLS connections");
    /// Not only of a wrong key: also of one whose app was removed while it was connected.
    pub const UNKNOWN_APP: Error = Error::new(4001, "Application does not exist");
    pub const DISABLED: Error = Error::new(4003, "Application disabled");
    pub const OVER_QUOTA: Error = Error::new(4004, "Application is over connection quota");
    pub const UNSUPPORTED_PROTOCOL: Error = Error::new(4007, "Unsupported protocol version");
    pub const RESUME_TOKEN: Error = Error::new(4009, "Invalid resume token");
    pub const ORIGIN: Error = Error::new(4009, "Origin not allowed");
    pub const TERMINATED: Error = Error::new(4009, "Connection terminated by the application");
    pub const UNAUTHORIZED: Error = Error::new(4009, "Connection not authorized within timeout.");
    /// Clients come back after a while, by then perhaps to another node.
    pub const OVER_CAPACITY: Error = Error::new(4100, "Server is over capacity");
    pub const STOPPING: Error = Error::new(4100, "Server is stopping");
    pub const LOOKUP_AWAY: Error = Error::new(4100, "Application cannot be looked up");
    pub const TOO_SLOW: Error = Error::new(4100, "Connection is too slow");
    pub const RECONNECT: Error = Error::new(4200, "Reconnect requested by the application");
    /// To the older one, whose client is most often gone.
    pub const TAKEN_OVER: Error = Error::new(4200, "Taken over by a newer connection");
    pub const DRAINING: Error = Error::new(4200, "Server is shutting down");
    pub const FLOODING: Error = Error::new(4200, "Too many refused messages or pings");
    pub const NO_PONG: Error = Error::new(4201, "Pong reply not received in time");
}

/// Answered while the connection goes on.
pub const INVALID_MESSAGE: Error = Error::new(4200, "Invalid message format");
pub const INVALID_CLIENT_EVENT: Error =
    Error::new(4200, "Invalid client event (must contain channel and data)");
pub const CLIENT_EVENTS_OFF: Error =
    Error::new(4301, "The app does not have client messaging enabled.");
pub const NOT_A_MEMBER: Error =
    Error::new(4009, "The client is not a member of the specified channel.");
pub const NOT_PRIVATE: Error =
    Error::new(4301, "Client events are only accepted on private and presence channels.");
pub const NOT_TO_USERS: Error =
    Error::new(4301, "Client events are not accepted on server-to-user channels.");
pub const RATE_LIMIT: Error = Error::new(4301, "Rate limit exceeded");
pub const SIGN_IN: Error = Error::new(4009, "Connection is unauthorized");
pub const USER_DATA: Error =
    Error::new(4009, "user_data must be an object whose id is a string of 1 to 128 characters");
pub const OTHER_USER: Error = Error::new(4009, "The connection is signed in as another user");
pub const WATCHLIST_CUT: Error =
    Error::new(4302, "Watchlist limit exceeded: only the first 100 users are watched");

/// Why a subscription is refused. The connection stays, and the refusal leaves no trace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SubscriptionError {
    /// The name breaks the rule in the text.
    Name(NameError),
    /// `auth` is missing or does not hold.
    Auth(AuthError),
    /// A presence channel without `channel_data`, on a connection that has not signed in.
    NoMember,
    /// `channel_data` names no member.
    Member(MemberError),
    /// `#server-to-user-…` of another user.
    NotThatUser,
    /// A backend has taken the right to the channel back.
    Withdrawn,
    /// The connection has as many channels as it may.
    TooManyChannels { max: usize },
    /// The channels of the connection take their most bytes (`subscription_bytes`).
    TooManyBytes { max: usize },
    /// A presence channel is full.
    TooManyMembers { max: usize },
    /// The roster has its most bytes (`presence_bytes`).
    RosterTooLarge { max: usize },
    /// The server has no memory for it just now.
    NoMemory,
    /// This field of a subscription is no string.
    Mistyped(&'static str),
}

impl SubscriptionError {
    /// The `type` in `pusher:subscription_error`.
    pub fn error_type(&self) -> &'static str {
        match self {
            Self::Name(_) | Self::Mistyped(_) => "ValidationError",
            Self::Auth(_) | Self::NoMember | Self::NotThatUser | Self::Withdrawn => "AuthError",
            Self::Member(MemberError::TooLarge { .. })
            | Self::TooManyChannels { .. }
            | Self::TooManyBytes { .. }
            | Self::TooManyMembers { .. }
            | Self::RosterTooLarge { .. }
            | Self::NoMemory => "LimitReached",
            Self::Member(_) => "ValidationError",
        }
    }

    /// The `status` there: 401 is what Soketi says and clients compare, the others are Pusher's codes.
    pub fn status(&self) -> u16 {
        match self {
            Self::Auth(_) | Self::NoMember | Self::NotThatUser => 401,
            Self::Withdrawn => 403,
            Self::Name(_) | Self::Mistyped(_) => 4009,
            Self::Member(MemberError::TooLarge { .. }) => 4301,
            Self::Member(_) => 4009,
            Self::TooManyChannels { .. }
            | Self::TooManyBytes { .. }
            | Self::TooManyMembers { .. }
            | Self::RosterTooLarge { .. } => 4004,
            Self::NoMemory => close::OVER_CAPACITY.code,
        }
    }

    /// For people: names `channel` where the hosted service does.
    pub fn error_text(&self, channel: &str) -> String {
        match self {
            Self::Name(error) => error.to_string(),
            Self::Auth(AuthError::Missing) => {
                format!("Auth info required to subscribe to {channel}")
            }
            Self::Auth(AuthError::Key) => "Invalid key in subscription auth data".to_owned(),
            Self::Auth(AuthError::Signature) => format!(
                "Invalid signature: it must be the hex of HMAC-SHA256 over \
                 socket_id:{channel}, and :channel_data where that is sent"
            ),
            Self::NoMember => {
                "channel_data or a signed-in user is required to join a presence channel".to_owned()
            }
            Self::Member(error) => error.to_string(),
            Self::NotThatUser => {
                format!("Only the signed-in user itself may subscribe to {channel}")
            }
            Self::Withdrawn => "Access was withdrawn.".to_owned(),
            Self::TooManyChannels { max } => {
                format!("A connection may be subscribed to {max} channels")
            }
            Self::TooManyMembers { max } => {
                format!("The channel already has its {max} members")
            }
            Self::TooManyBytes { max } => {
                format!("The channels of a connection may take {max} bytes, names and all")
            }
            Self::RosterTooLarge { max } => {
                format!(
                    "The members of a channel may take {max} bytes, and {channel} has no room for one more"
                )
            }
            Self::NoMemory => close::OVER_CAPACITY.message.into_owned(),
            Self::Mistyped(field) => format!("{field} must be a string"),
        }
    }

    /// The code of the `pusher:error` that goes with it, for clients that understand only that. A withdrawal
    /// has none: Pysher leaves on those, and its connection is to stay.
    pub fn error_code(&self) -> Option<u16> {
        // A malformed subscription is answered with 4200, like any other malformed frame.
        (!matches!(self, Self::Withdrawn | Self::Mistyped(_))).then_some(4009)
    }
}
