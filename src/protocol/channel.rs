//! Channel names, and the type of channel that a name's prefix decides. `ChannelName::parse` checks a name once.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

/// A user's own channel; the rest is the id.
const SERVER_TO_USER: &str = "#server-to-user-";

/// The prefix of the topics on which nodes announce that a user is online; the user's id follows. `parse` refuses a
/// `#` there, so no client can name them.
const ONLINE: &str = "presence-#online-";

/// A legal channel name; cheap to clone.
/// An `Arc`, since channels are keys in many tables and travel between threads.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ChannelName(Arc<str>);

/// The properties that follow from a channel's name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChannelKind {
    /// Which signature it takes, if any.
    pub access: Access,
    /// Whether the channel keeps its last event for later subscribers.
    pub cache: bool,
}

/// Which clients may subscribe.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Anybody.
    Public,
    /// Clients with a signature.
    Private,
    /// As private; the payload is opaque and must be left so.
    Encrypted,
    /// As private, and the subscribers know of each other.
    Presence,
    /// The user of that name, signed in.
    ServerToUser,
}

/// Why a name is not legal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NameError {
    /// Of no length, or `#server-to-user-` without a user.
    Empty,
    /// In characters, as the limit is meant.
    TooLong { max: usize },
    /// The first one that is not allowed, for the message.
    Character(char),
}

/// A sentence for the client that chose the name.
impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("A channel name must not be empty"),
            Self::TooLong { max } => {
                write!(f, "A channel name must not be longer than {max} characters")
            }
            Self::Character(c) => write!(
                f,
                "A channel name may only contain letters, digits and _-=@,.; but has {c:?}"
            ),
        }
    }
}

impl ChannelName {
    /// Accepts 1 to `max` characters of `A-Za-z0-9_-=@,.;`, the set that every SDK accepts. A `#` is legal only in
    /// `#server-to-user-…`, where a user's id follows: any text without control characters.
    /// # Errors
    /// The fault of the name, in words for the client.
    pub fn parse(text: &str, max: usize) -> Result<Self, NameError> {
        check_name(text, max).map(|()| Self(text.into()))
    }

    /// The topic on which nodes announce that a user is online: the user is its only member.
    pub fn online_topic(user: &str) -> Self {
        Self(format!("{ONLINE}{user}").into())
    }

    /// A name that another node gave: one that [`Self::parse`] accepts at any length, or [`Self::online_topic`].
    /// Limits of length are the sender's; its settings may be others.
    ///
    /// # Errors
    /// It has characters that no channel's name may have, or none at all.
    pub fn of_node(text: &str) -> Result<Self, NameError> {
        if text.starts_with(ONLINE) { Ok(Self(text.into())) } else { Self::parse(text, usize::MAX) }
    }

    /// The user of [`Self::online_topic`].
    pub fn online_user(&self) -> Option<&str> {
        self.0.strip_prefix(ONLINE)
    }

    /// For frames and tables.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Read off the name each time: cheaper than a place for it in every table.
    pub fn kind(&self) -> ChannelKind {
        ChannelKind::of_name(&self.0)
    }

    /// The user whose own channel this is.
    pub fn own_user(&self) -> Option<&str> {
        self.0.strip_prefix(SERVER_TO_USER)
    }
}

/// Checks a name without keeping it.
fn check_name(text: &str, max: usize) -> Result<(), NameError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-=@,.;".contains(c);
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    // Bytes first: fewer bytes cannot be more characters.
    if text.len() > max && text.chars().count() > max {
        return Err(NameError::TooLong { max });
    }
    let bad = match text.strip_prefix(SERVER_TO_USER) {
        Some("") => return Err(NameError::Empty),
        Some(user) => user.chars().find(|c| c.is_control()),
        None => text.chars().find(|&c| !plain(c)),
    };
    bad.map_or(Ok(()), |c| Err(NameError::Character(c)))
}

impl ChannelKind {
    /// By anchored prefix, the longest first (case S12): `cache-private-x` is a public cache channel.
    /// The order matters: `private-encrypted-cache-x` has three of them.
    pub fn of_name(name: &str) -> Self {
        let kind = |access, cache| Self { access, cache };
        if let Some(rest) = name.strip_prefix("private-") {
            if let Some(rest) = rest.strip_prefix("encrypted-") {
                return kind(Access::Encrypted, rest.starts_with("cache-"));
            }
            return kind(Access::Private, rest.starts_with("cache-"));
        }
        if let Some(rest) = name.strip_prefix("presence-") {
            return kind(Access::Presence, rest.starts_with("cache-"));
        }
        if name.starts_with(SERVER_TO_USER) {
            return kind(Access::ServerToUser, false);
        }
        kind(Access::Public, name.starts_with("cache-"))
    }

    /// Whether its subscribers are members that see each other.
    pub fn is_presence(self) -> bool {
        self.access == Access::Presence
    }
}

/// So that tables can be asked with a text.
impl Borrow<str> for ChannelName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_have_names_that_clients_cannot_spell() {
        let name = ChannelName::online_topic("7\u{1}");
        assert_eq!(name.online_user(), Some("7\u{1}"));
        assert!(name.kind().is_presence() && !name.kind().cache);
        assert_eq!(ChannelName::of_node(name.as_str()), Ok(name.clone()));
        assert_eq!(ChannelName::parse(name.as_str(), 200), Err(NameError::Character('#')));
        assert_eq!(ChannelName::of_node("presence-x").unwrap().online_user(), None);
        assert_eq!(ChannelName::of_node("a b"), Err(NameError::Character(' ')));
    }

    #[test]
    fn kinds_go_by_the_longest_prefix() {
        for (name, access, cache) in [
            ("room", Access::Public, false),
            ("public-room", Access::Public, false),
            ("cache-room", Access::Public, true),
            ("cache-private-room", Access::Public, true),
            ("private-room", Access::Private, false),
            ("private-cache-room", Access::Private, true),
            ("private-encrypted-room", Access::Encrypted, false),
            ("private-encrypted-cache-room", Access::Encrypted, true),
            ("private-encryptedroom", Access::Private, false),
            ("presence-room", Access::Presence, false),
            ("presence-cache-room", Access::Presence, true),
            ("privateroom", Access::Public, false),
            ("#server-to-user-7", Access::ServerToUser, false),
        ] {
            assert_eq!(ChannelKind::of_name(name), ChannelKind { access, cache }, "{name}");
        }
    }

    #[test]
    fn names_are_checked_in_characters_and_length() {
        let longest = "x".repeat(200);
        for good in ["a", "A-Za-z0-9_-=@,.;", &longest, "#server-to-user-auth0|7 é"] {
            assert!(ChannelName::parse(good, 200).is_ok(), "{good}");
        }
        for (bad, why) in [
            ("", NameError::Empty),
            ("#server-to-user-", NameError::Empty),
            ("bad name", NameError::Character(' ')),
            ("#room", NameError::Character('#')),
            ("é", NameError::Character('é')),
            ("#server-to-user-\n", NameError::Character('\n')),
            (&format!("{longest}x"), NameError::TooLong { max: 200 }),
        ] {
            assert_eq!(ChannelName::parse(bad, 200), Err(why), "{bad}");
        }
        let user = ChannelName::parse("#server-to-user-7", 200).map(|n| n.own_user() == Some("7"));
        assert_eq!(user, Ok(true));
    }
}
