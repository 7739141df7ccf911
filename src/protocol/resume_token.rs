//! The name that a page gives itself so that its connections can be told to be one client after the other. A
//! token opens nothing: each channel is authorized anew.

use std::borrow::{Borrow, Cow};
use std::fmt;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::hex;

/// Digits of the time that a token may begin with: seconds since 1970, until the year 2286.
const TIME_DIGITS: usize = 10;

/// 16 to 64 of `A-Za-z0-9_-`. Whoever knows it can take its place, so it is shown nowhere in full.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ResumeToken(Arc<str>);

impl ResumeToken {
    pub const MIN: usize = 16;
    pub const MAX: usize = 64;

    pub fn parse(text: &str) -> Option<Self> {
        let is_legal = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'-');
        let fits = (Self::MIN..=Self::MAX).contains(&text.len());
        (fits && text.bytes().all(is_legal)).then(|| Self(text.into()))
    }

    /// All of it, for a process that goes on in this one's place.
    pub fn text(&self) -> &str {
        &self.0
    }

    /// What stands for it where others may look: in Redis, and in what nodes say to each other.
    pub fn key(&self) -> String {
        let sum = Sha256::digest(self.0.as_bytes());
        hex::encode_hex(sum.get(..16).unwrap_or_default())
    }

    /// When its page says that it was made, in seconds since 1970: exactly ten digits and a dash in front are
    /// a time, anything else has none.
    pub fn made_at(&self) -> Option<u64> {
        let (digits, _) = self.0.split_once('-')?;
        let is_time = digits.len() == TIME_DIGITS && digits.bytes().all(|c| c.is_ascii_digit());
        is_time.then(|| digits.parse().ok()).flatten()
    }
}

/// A path without the token in it, if it has one.
pub fn mask(path: &str) -> Cow<'_, str> {
    let Some((before, after)) = path.split_once("/resume/") else { return Cow::Borrowed(path) };
    let rest = after.find('/').and_then(|end| after.get(end..)).unwrap_or_default();
    Cow::Owned(format!("{before}/resume/…{rest}"))
}

impl Borrow<str> for ResumeToken {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// What logs may have of it.
impl fmt::Debug for ResumeToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = self.0.get(self.0.len() - 4..).unwrap_or_default();
        write!(f, "…{end}")
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
