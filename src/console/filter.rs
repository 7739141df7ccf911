//! Filters of a feed. A text with `*` is a pattern in which that matches any characters; any other text must be equal.

use super::fact::{ConsoleFact, Kind};
use crate::protocol::socket_id::SocketId;

/// The conditions of a filter; those left out match everything.
#[derive(Debug, Default)]
pub struct Filter {
    app: Option<String>,
    channel: Option<String>,
    event: Option<String>,
    user: Option<String>,
    /// `Some(None)` is an id that cannot be read, and matches no socket.
    socket: Option<Option<SocketId>>,
    kinds: Vec<Kind>,
}

impl Filter {
    /// Reads the parameters `app`, `channel`, `event`, `user`, `socket` and `kind`, which may be several with commas
    /// between. The error names a kind that there is none of.
    ///
    /// # Errors
    /// A kind that is not one of [`Kind::ALL`].
    pub fn parse<'q>(get: impl Fn(&str) -> Option<&'q str>) -> Result<Self, String> {
        let text = |name| get(name).filter(|text| !text.is_empty()).map(str::to_owned);
        // No `kind` means all kinds.
        let words = text("kind").unwrap_or_default();
        let words = words.split(',').map(str::trim).filter(|word| !word.is_empty());
        let kind = |word: &str| {
            let found = Kind::ALL.iter().find(|(_, one)| *one == word);
            found.map(|(kind, _)| *kind).ok_or_else(|| {
                let all: Vec<_> = Kind::ALL.iter().map(|(_, word)| *word).collect();
                format!("There is no kind {word:?}; there are {}.", all.join(", "))
            })
        };
        Ok(Self {
            app: text("app"),
            channel: text("channel"),
            event: text("event"),
            user: text("user"),
            socket: text("socket").map(|id| SocketId::parse(&id)),
            kinds: words.map(kind).collect::<Result<_, _>>()?,
        })
    }

    /// Whether every fact of the kind matches.
    pub(super) fn takes_all(&self, kind: Kind) -> bool {
        let any = [&self.app, &self.channel, &self.event, &self.user];
        any.iter().all(|one| one.is_none()) && self.socket.is_none() && self.takes_kind(kind)
    }

    /// Whether facts of the kind can match.
    pub(super) fn takes_kind(&self, kind: Kind) -> bool {
        self.kinds.is_empty() || self.kinds.contains(&kind)
    }

    /// Whether a fact meets all conditions.
    pub(super) fn matches(&self, fact: &ConsoleFact<'_>) -> bool {
        let texts = [
            (&self.app, &fact.app),
            (&self.channel, &fact.channel),
            (&self.event, &fact.event),
            (&self.user, &fact.user),
        ];
        self.takes_kind(fact.kind)
            && self.socket.is_none_or(|socket| socket.is_some() && socket == fact.socket)
            && texts.iter().all(|(pattern, text)| {
                pattern.as_ref().is_none_or(|pattern| matches_pattern(pattern, text))
            })
    }
}

/// Whether `text` matches `pattern`, in which `*` stands for any characters.
fn matches_pattern(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    // Text before the first `*` must stand at the beginning; without a `*` it is the whole pattern.
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        // `at` is where the part was found, so the rest behind it exists.
        rest = rest.get(at + part.len()..).unwrap_or_default();
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_is_any_characters() {
        for (pattern, text, is_match) in [
            ("orders", "orders", true),
            ("orders", "orders-1", false),
            ("", "", true),
            ("*", "", true),
            ("private-*", "private-a", true),
            ("private-*", "privat", false),
            ("*-chat", "presence-chat", true),
            ("*e*a*", "presence-chat", true),
            ("a*a", "a", false),
            ("a*a", "aa", true),
            ("a**b", "ab", true),
        ] {
            assert_eq!(matches_pattern(pattern, text), is_match, "{pattern:?} {text:?}");
        }
    }

    #[test]
    fn what_is_left_out_is_not_looked_at() {
        let filter = |pairs: &'static [(&str, &str)]| {
            let get = |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, v)| *v);
            Filter::parse(get).unwrap()
        };
        let socket = SocketId { node: 1, number: 2 };
        let fact =
            ConsoleFact::new(Kind::Whispered).app("1").channel("c").event("e").socket(socket);
        for (pairs, is_match) in [
            (&[][..], true),
            (&[("app", "1"), ("channel", "c*"), ("event", "")], true),
            (&[("kind", "published, whispered")], true),
            (&[("kind", "published")], false),
            (&[("socket", "1.2")], true),
            (&[("socket", "nonsense")], false),
            (&[("user", "ann")], false),
        ] {
            assert_eq!(filter(pairs).matches(&fact), is_match, "{pairs:?}");
        }
        let wrong = Filter::parse(|name| (name == "kind").then_some("nonsense"));
        assert!(wrong.unwrap_err().contains("published"));
    }
}
