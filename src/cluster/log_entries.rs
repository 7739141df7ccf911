//! Entries of the webhook logs as texts: channels and members that are held or not, and how they were told before a
//! failover. `scripts/webhook_log.rs` writes them; `webhook/cluster_log.rs` has the texts of other facts.

use crate::protocol::channel::ChannelName;
use crate::protocol::member::UserId;

/// One entry, by its place in the log.
#[derive(Debug)]
pub struct LogEntry {
    /// The entry's id in the stream, by which it is deleted.
    pub id: Box<str>,
    /// The entry's JSON.
    pub text: String,
}

/// How the webhooks know a channel or member.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ToldAs {
    /// It is gone, or was never there.
    Ended,
    /// It is there.
    Begun,
    /// Nobody knows: the last word was being posted.
    Unknown,
}

impl ToldAs {
    /// Each of them, at the place of its digit in the log.
    const ALL: [Self; 3] = [Self::Ended, Self::Begun, Self::Unknown];

    /// Its digit in the log.
    pub(super) fn digit(self) -> u64 {
        self as u64
    }

    /// The one with that digit.
    pub(super) fn of_digit(digit: u64) -> Option<Self> {
        Self::ALL.get(usize::try_from(digit).ok()?).copied()
    }

    /// Reads a digit of the log.
    pub(super) fn parse(digit: &str) -> Option<Self> {
        Self::of_digit(digit.parse().ok()?)
    }
}

/// The name under which a channel, or a user in one, is held.
pub(super) fn name_of(channel: &ChannelName, user: Option<&UserId>) -> String {
    match user {
        None => format!("c{channel}"),
        // No channel's name has a line's end.
        Some(user) => format!("m{channel}\n{}", user.as_str()),
    }
}

/// Reads a text of the log that says what is held or is not: whether it is, the channel, and the user.
pub fn parse_held(text: &str) -> Option<(bool, ChannelName, Option<UserId>)> {
    let (sign, name) = text.split_at_checked(1)?;
    let (kind, name) = name.split_at_checked(1)?;
    let is = match sign {
        "+" => true,
        "-" => false,
        _ => return None,
    };
    let (channel, user) = match kind {
        "c" => (name, None),
        "m" => {
            let (channel, user) = name.split_once('\n')?;
            (channel, Some(UserId::parse(user)?))
        }
        _ => return None,
    };
    Some((is, ChannelName::parse(channel, usize::MAX).ok()?, user))
}

/// A channel, or a user in it, that was told to be there or not over a server that was replaced since, and whether it is
/// there now.
pub type RestatedHold = (ToldAs, bool, ChannelName, Option<UserId>);

/// Reads a text of the log that says how something was told before a failover.
pub fn parse_restated(text: &str) -> Option<RestatedHold> {
    let (digits, name) = text.strip_prefix('?')?.split_at_checked(2)?;
    let (told, is) = digits.split_at_checked(1)?;
    let sign = if is == "1" { '+' } else { '-' };
    let (is, channel, user) = parse_held(&format!("{sign}{name}"))?;
    Some((ToldAs::parse(told)?, is, channel, user))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_were_written() {
        let channel = ChannelName::parse("presence-a", 200).unwrap();
        let user = UserId::parse("7\n\"x").unwrap();
        let text = format!("-{}", name_of(&channel, Some(&user)));
        assert_eq!(parse_held(&text), Some((false, channel.clone(), Some(user))));
        assert_eq!(
            parse_held(&format!("+{}", name_of(&channel, None))),
            Some((true, channel, None))
        );
        for other in ["", "+", "+x", "+c#y", "!cx", "+mx", "Xcache-a"] {
            assert_eq!(parse_held(other), None, "{other}");
        }
        let restated = |told, is| Some((told, is, ChannelName::parse("a", 200).unwrap(), None));
        assert_eq!(parse_restated("?01ca"), restated(ToldAs::Ended, true));
        assert_eq!(parse_restated("?10ca"), restated(ToldAs::Begun, false));
        assert_eq!(parse_restated("?21ca"), restated(ToldAs::Unknown, true));
        for other in ["", "?", "?0", "?01", "?31ca", "+01ca", "?01a"] {
            assert_eq!(parse_restated(other), None, "{other}");
        }
    }

    #[test]
    fn digits_are_read_as_they_were_written() {
        for told in ToldAs::ALL {
            assert_eq!(ToldAs::parse(&told.digit().to_string()), Some(told));
        }
        assert_eq!(ToldAs::parse("3"), None);
        assert_eq!(ToldAs::parse(""), None);
    }
}
