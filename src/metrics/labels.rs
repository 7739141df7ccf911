//! Values of labels. Each label has a closed list, so that nothing a client sends can create a new series; a value's
//! position in the list is its index in a counter array.

/// A list of labels: the values, all of them, and the words for them.
/// `Name::ALL` is the list and `word` the label, so a value that is added shows up on the metrics
/// page by itself. Example: `Limited::Reads as usize` is its place in a
/// [`CounterArray`](super::CounterArray).
macro_rules! labels {
    ($(#[$doc:meta])* $name:ident { $($(#[$value_doc:meta])* $value:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum $name { $($(#[$value_doc])* $value,)* }

        impl $name {
            /// All values, in the order of the metrics page.
            pub const ALL: &'static [Self] = &[$(Self::$value,)*];

            /// The label's text.
            pub fn label(self) -> &'static str {
                match self { $(Self::$value => $word,)* }
            }
        }
    };
}

labels! {
    /// How a connection's bytes travel.
    Transport {
        WebSocket = "websocket",
        XhrStreaming = "xhr_streaming",
        XhrPolling = "xhr_polling",
        /// By a WebSocket or by polls.
        SocketIo = "socketio",
    }
}

labels! {
    /// Why a socket ended or was not let in.
    Reason {
        /// Its client closed it.
        Client = "client",
        /// Its client went without a word.
        Lost = "lost",
        /// A breach of the WebSocket protocol.
        Protocol = "protocol",
        /// It sent text that is not UTF-8.
        Encoding = "encoding",
        /// A message was over `max_message_size`.
        TooLarge = "too_large",
        /// A backend closed the user's connections.
        Terminated = "terminated",
        /// Its backend wants it to come back with other rights.
        Reconnect = "reconnect",
        /// A newer connection of its client has come.
        TakenOver = "taken_over",
        /// It had not signed in within `authorization_timeout`.
        Unauthorized = "unauthorized",
        /// More waited for it than `outbox_bytes`.
        Slow = "slow",
        /// The server stops or hands over.
        Draining = "draining",
        /// It did not answer when it was asked for a sign of life.
        Silent = "silent",
        /// It sent nonsense without end.
        Flooding = "flooding",
        /// It said more than `messages_per_second`.
        OverRate = "over_rate",
        /// It held much while memory was used up.
        Heavy = "heavy",
        /// Its app is no more, or is disabled, since the settings were read again.
        AppRemoved = "app_removed",
        AppDisabled = "app_disabled",
        // The rest was refused before it was let in.
        /// It came without TLS to an app with `require_tls`.
        TlsOnly = "tls_only",
        /// No app has its key.
        UnknownApp = "unknown_app",
        /// Its app has `enabled = false`.
        Disabled = "disabled",
        /// Its app has as many connections as `max_connections`.
        Quota = "quota",
        /// It speaks another version of the protocol than 4 to 7.
        Version = "version",
        /// Its page is none of `allowed_origins`.
        Origin = "origin",
        /// The resume token is malformed.
        ResumeToken = "resume_token",
        /// The server has as many sockets as it may.
        Capacity = "capacity",
        /// The server takes no more, since it stops.
        Stopping = "stopping",
        /// Its address has as many connections as `connections_per_ip`.
        Address = "address",
        /// Its address opens too many sockets a second.
        Handshakes = "handshakes",
        /// The server holds as much memory as `limits.memory`.
        Memory = "memory",
        /// The app could not be looked up.
        Lookup = "lookup",
    }
}

impl Reason {
    /// The first of those that a socket is refused for.
    const FIRST_REFUSAL: usize = Self::TlsOnly as usize;

    /// Why established sockets end.
    pub fn end_reasons() -> &'static [Self] {
        // The bound is a constant within the list, so the slice exists.
        Self::ALL.get(..Self::FIRST_REFUSAL).unwrap_or_default()
    }

    /// Why sockets are refused.
    pub fn refusal_reasons() -> &'static [Self] {
        // The bound is a constant within the list, so the slice exists.
        Self::ALL.get(Self::FIRST_REFUSAL..).unwrap_or_default()
    }

    /// The code that the server closes with; `none` where the client went.
    pub fn close_code(self) -> &'static str {
        match self {
            Self::Client | Self::Lost => "none",
            Self::Protocol => "1002",
            Self::Encoding => "1007",
            Self::OverRate => "1008",
            Self::TooLarge => "1009",
            Self::TlsOnly => "4000",
            Self::UnknownApp | Self::AppRemoved => "4001",
            Self::Disabled | Self::AppDisabled => "4003",
            Self::Quota => "4004",
            Self::Version => "4007",
            Self::Terminated | Self::Unauthorized | Self::Origin | Self::ResumeToken => "4009",
            Self::Slow
            | Self::Heavy
            | Self::Capacity
            | Self::Stopping
            | Self::Address
            | Self::Handshakes
            | Self::Memory
            | Self::Lookup => "4100",
            Self::Draining | Self::Reconnect | Self::TakenOver | Self::Flooding => "4200",
            Self::Silent => "4201",
        }
    }
}

labels! {
    /// Why new sockets should go elsewhere.
    Unready {
        Draining = "draining",
        /// The other nodes cannot be reached.
        Redis = "redis",
        /// They have not said yet all that they hold, since Redis has lost its data.
        Restoring = "restoring",
        Memory = "memory",
        Connections = "connections",
    }
}

labels! {
    /// The kind of text that is signed.
    Signed {
        Subscription = "subscription",
        SignIn = "sign_in",
        Request = "request",
    }
}

labels! {
    /// The reason why a signature does not hold.
    Doubt {
        /// It, or something that must be signed, is missing.
        Missing = "missing",
        /// It is of another key.
        Key = "key",
        /// It is of another version of the scheme.
        Version = "version",
        /// It is too old or too young.
        Time = "time",
        /// It signs something else, or with another secret.
        Signature = "signature",
        /// The body is not the one that was signed.
        Body = "body",
    }
}

labels! {
    /// Limits on work per second, or on memory.
    Limited {
        ClientEvents = "client_events",
        /// Everything that a client says.
        Messages = "messages",
        /// A connection comes to a presence channel and goes from it too often.
        Presence = "presence",
        /// Too much of its app waits for Redis.
        Link = "link",
        /// Events by the API, over `events_per_second`.
        Events = "events",
        /// Questions to the API, over `reads_per_second`.
        Reads = "reads",
        /// There is no memory for it.
        Memory = "memory",
        /// A connection is held up, for it asks for more than its share.
        Pace = "pace",
        /// A connection that has asked for no socket makes way for others.
        Connections = "connections",
    }
}

labels! {
    /// Bytes that are no readable HTTP request.
    Unreadable {
        /// A handshake of TLS, to a port without it.
        Tls = "tls",
        /// The preface of HTTP/2.
        Http2 = "http2",
        /// A header of the PROXY protocol, where none is expected.
        Proxy = "proxy_protocol",
        /// The head of a request was over 16 KiB.
        HeadTooLarge = "head_too_large",
        /// It had more than a hundred headers.
        TooManyHeaders = "too_many_headers",
        /// None of these.
        Garbage = "garbage",
    }
}

labels! {
    /// The route of a request to the API.
    Call {
        Events = "events",
        BatchEvents = "batch_events",
        Channels = "channels",
        Channel = "channel",
        Users = "users",
        Connections = "connections",
        Terminate = "terminate_connections",
        Unsubscribe = "unsubscribe",
        Reconnect = "reconnect",
        /// No route there is.
        Unknown = "unknown",
    }
}

labels! {
    /// How a request was answered.
    Status {
        Ok = "200",
        BadRequest = "400",
        Unauthorized = "401",
        Forbidden = "403",
        NotFound = "404",
        MethodNotAllowed = "405",
        TooLarge = "413",
        UpgradeRequired = "426",
        TooManyRequests = "429",
        Other = "other",
    }
}

impl Status {
    /// Those that the API answers with have a label of their own; the list stays closed.
    pub fn of_code(status: u16) -> Self {
        match status {
            200 => Self::Ok,
            400 => Self::BadRequest,
            401 => Self::Unauthorized,
            403 => Self::Forbidden,
            404 => Self::NotFound,
            405 => Self::MethodNotAllowed,
            413 => Self::TooLarge,
            426 => Self::UpgradeRequired,
            429 => Self::TooManyRequests,
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_in_the_list_is_the_place_in_a_tally() {
        for (place, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, place);
        }
        assert_eq!(Reason::end_reasons().last(), Some(&Reason::AppDisabled));
        assert_eq!(Reason::refusal_reasons().first(), Some(&Reason::TlsOnly));
        for status in Status::ALL.iter().filter(|status| **status != Status::Other) {
            assert_eq!(Status::of_code(status.label().parse().unwrap()), *status);
        }
    }
}
