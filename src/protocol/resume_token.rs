//! The token by which a page's successive connections are recognised as one client. It grants nothing: each channel is
//! authorized again.

use std::borrow::Cow;
use std::fmt;

use sha2::{Digest as _, Sha256};

use super::hex;

/// Digits of the time that a token may begin with: seconds since 1970, until the year 2286.
const TIME_DIGITS: usize = 10;

/// Bytes of a token's hash that are kept: as much as a token of the shortest length can be random, and a client has room
/// for no more. One more would take each of them sixteen.
const KEY_BYTES: usize = 12;

/// The part of a token, of 16 to 64 of `A-Za-z0-9_-`, that tells it from others. Anybody who knows a token can take
/// its page's place, so it is shown nowhere.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ResumeToken {
    key: [u8; KEY_BYTES],
}

/// A token as a page presents it.
#[derive(Debug, Clone)]
pub struct PresentedToken {
    pub token: ResumeToken,
    /// When its page says that it was made, in seconds since 1970: exactly ten digits and a dash in front are
    /// a time, anything else has none.
    pub made_at: Option<u64>,
}

impl PresentedToken {
    /// `None` for a text that is no token.
    pub fn parse(text: &str) -> Option<Self> {
        let token = ResumeToken::parse(text)?;
        let made = text.split_once('-').map(|(digits, _)| digits).filter(|digits| {
            digits.len() == TIME_DIGITS && digits.bytes().all(|c| c.is_ascii_digit())
        });
        Some(Self { token, made_at: made.and_then(|digits| digits.parse().ok()) })
    }
}

impl ResumeToken {
    /// The shortest token: 96 bits if it is random, so that it cannot be guessed.
    pub const MIN: usize = 16;
    /// More would only make paths longer.
    pub const MAX: usize = 64;

    /// `None` for a text that is too short, too long, or has other characters.
    pub fn parse(text: &str) -> Option<Self> {
        let is_legal = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'-');
        let fits = (Self::MIN..=Self::MAX).contains(&text.len());
        if !fits || !text.bytes().all(is_legal) {
            return None;
        }
        // Only a digest is kept, so that reading memory or Redis does not give away tokens.
        let sum = Sha256::digest(text.as_bytes());
        Some(Self { key: sum.first_chunk().copied().unwrap_or_default() })
    }

    /// The kept part, for the next process.
    pub fn to_bytes(&self) -> [u8; KEY_BYTES] {
        self.key
    }

    /// The same the other way round.
    pub fn from_bytes(key: [u8; KEY_BYTES]) -> Self {
        Self { key }
    }

    /// A name for the token in Redis and in messages between nodes, which does not reveal it.
    pub fn key(&self) -> String {
        hex::encode_hex(self.key)
    }
}

/// A path without the token in it, if it has one.
pub fn mask(path: &str) -> Cow<'_, str> {
    let Some((before, after)) = path.split_once("/resume/") else { return Cow::Borrowed(path) };
    // A token at the end of the path has nothing behind it.
    let rest = after.find('/').and_then(|end| after.get(end..)).unwrap_or_default();
    Cow::Owned(format!("{before}/resume/…{rest}"))
}

/// The part that logs may show.
impl fmt::Debug for ResumeToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A key is ASCII and longer than that; otherwise nothing of it is shown.
        write!(f, "{}…", self.key().get(..8).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_have_one_form() {
        let long = "a".repeat(64);
        for good in ["0123456789abcdef", "1764460800-0b9c2d1e-77aa", "____------AAAA00", &long] {
            assert!(ResumeToken::parse(good).is_some(), "{good}");
        }
        let longer = "a".repeat(65);
        for bad in ["", "0123456789abcde", "0123456789abcde.", "0123456789abcdé", &longer] {
            assert!(ResumeToken::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn ten_digits_and_a_dash_are_a_time() {
        let made_at = |text| PresentedToken::parse(text).unwrap().made_at;
        assert_eq!(made_at("1764460800-0123456789abcdef"), Some(1_764_460_800));
        assert_eq!(made_at("176446080-00123456789abcdef"), None);
        assert_eq!(made_at("17644608000-123456789abcdef"), None);
        assert_eq!(made_at("1764460800_0123456789abcdef"), None);
        assert_eq!(made_at("17644608o0-0123456789abcdef"), None);
    }

    #[test]
    fn its_key_tells_nothing_of_it() {
        let token = ResumeToken::parse("1764460800-0123456789abcdef").unwrap();
        assert_eq!(token.key().len(), 24);
        assert!(!token.key().contains("1764460800"));
    }

    #[test]
    fn a_path_is_shown_without_its_token() {
        for (path, shown) in [
            ("/app/key", "/app/key"),
            ("/resume/1764460800-0123456789abcdef/app/key", "/resume/…/app/key"),
            ("/ws/resume/short", "/ws/resume/…"),
        ] {
            assert_eq!(mask(path), shown);
        }
    }

    #[test]
    fn a_log_never_has_a_whole_token() {
        let token = ResumeToken::parse("1764460800-0123456789abcdef").unwrap();
        assert_eq!(format!("{token:?}"), format!("{}…", &token.key()[..8]));
    }
}
