//! The token by which a page's successive connections are recognised as one client. It grants nothing: each channel is
//! authorized again.

use std::borrow::Cow;
use std::fmt;

use sha2::{Digest as _, Sha256};

use super::hex;

/// Digits of the time that a token may begin with: seconds since 1970, until the year 2286.
const TIME_DIGITS: usize = 10;

/// 16 to 64 of `A-Za-z0-9_-`. Anybody who has the token can resume in its client's place, so it is never shown in
/// full. Only a digest is kept, which also takes less memory.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ResumeToken {
    /// Half of the token's SHA-256.
    key: [u8; 16],
    /// 0: it does not say.
    made: u32,
    /// The token's last characters, for logs.
    end: [u8; 4],
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
        let made = text.split_once('-').map(|(digits, _)| digits).filter(|digits| {
            digits.len() == TIME_DIGITS && digits.bytes().all(|c| c.is_ascii_digit())
        });
        // Ten digits may be more than there are seconds until 2106: then it is of the far future all the same.
        let made = made.map_or(0, |digits| digits.parse().unwrap_or(u32::MAX));
        // Only a digest is kept, so that reading memory or Redis does not give away tokens.
        let sum = Sha256::digest(text.as_bytes());
        let key = sum.first_chunk().copied().unwrap_or_default();
        // A digest has 32 bytes, so its first 16 exist. A very short token has no end to remember.
        let end = text.as_bytes().last_chunk().copied().unwrap_or_default();
        Some(Self { key, made, end })
    }

    /// The kept part, for the next process.
    pub fn to_bytes(&self) -> [u8; 24] {
        let mut bytes = [0; 24];
        let parts = self.key.iter().copied().chain(self.made.to_be_bytes()).chain(self.end);
        bytes.iter_mut().zip(parts).for_each(|(byte, part)| *byte = part);
        bytes
    }

    /// The same the other way round.
    pub fn from_bytes(bytes: [u8; 24]) -> Self {
        let (key, rest) = bytes.split_first_chunk().unwrap_or((&[0; 16], &[]));
        // The array has 24 bytes: 16 of the key, then the time and the token's end.
        let made = rest.first_chunk().copied().unwrap_or_default();
        let end = rest.last_chunk().copied().unwrap_or_default();
        Self { key: *key, made: u32::from_be_bytes(made), end }
    }

    /// A name for the token in Redis and in messages between nodes, which does not reveal it.
    pub fn key(&self) -> String {
        hex::encode_hex(self.key)
    }

    /// When its page says that it was made, in seconds since 1970: exactly ten digits and a dash in front are
    /// a time, anything else has none.
    pub fn made_at(&self) -> Option<u64> {
        (self.made > 0).then(|| self.made.into())
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
        write!(f, "…{}", String::from_utf8_lossy(&self.end))
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
        let made_at = |text| ResumeToken::parse(text).unwrap().made_at();
        assert_eq!(made_at("1764460800-0123456789abcdef"), Some(1_764_460_800));
        assert_eq!(made_at("176446080-00123456789abcdef"), None);
        assert_eq!(made_at("17644608000-123456789abcdef"), None);
        assert_eq!(made_at("1764460800_0123456789abcdef"), None);
        assert_eq!(made_at("17644608o0-0123456789abcdef"), None);
    }

    #[test]
    fn its_key_tells_nothing_of_it() {
        let token = ResumeToken::parse("1764460800-0123456789abcdef").unwrap();
        assert_eq!((token.key(), token.key().len()), (token.key(), 32));
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
        assert_eq!(format!("{token:?}"), "…cdef");
    }
}
