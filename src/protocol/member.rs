//! Members: `user_id` and `user_info` from a subscription's `channel_data`, or `id` and `user_info` of a signed-in
//! user.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use serde_json::value::RawValue;

use super::json::{self, JsonObject};

/// A user's id: any text but the empty one. A number in `channel_data` becomes its own digits, so that
/// `1` and `"1"` are one user and `"01"` is another.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct UserId(Arc<str>);

impl UserId {
    /// Characters of the longest id, as Pusher's page on presence channels has it.
    pub const MAX: usize = 128;

    /// `None` for no text, and for more than [`UserId::MAX`] characters.
    pub fn parse(text: &str) -> Option<Self> {
        let short = text.len() <= Self::MAX || text.chars().count() <= Self::MAX;
        (short && !text.is_empty()).then(|| Self(text.into()))
    }

    /// The id's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for UserId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A user as others in a channel see it.
#[derive(Clone, Debug)]
pub struct Member {
    pub user_id: UserId,
    /// The info as raw JSON, `{}` where there was none.
    pub user_info: Box<str>,
}

/// Why there is no member in a `channel_data`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemberError {
    /// It is not a JSON object.
    NotAnObject,
    /// `user_id` is missing, empty, or neither string nor number.
    UserId,
    /// `user_id` is longer than [`UserId::MAX`] characters.
    UserIdTooLong,
    /// `user_info` is more bytes than the app allows.
    TooLarge { max: usize },
    /// `user_info` holds half a surrogate pair.
    NotUnicode,
}

impl fmt::Display for MemberError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAnObject => f.write_str("channel_data must be a JSON object"),
            Self::UserId => f.write_str("channel_data must have a user_id"),
            Self::UserIdTooLong => {
                write!(f, "A user_id must not be longer than {} characters", UserId::MAX)
            }
            Self::TooLarge { max } => {
                write!(f, "The user_info of a member must not be larger than {max} bytes")
            }
            Self::NotUnicode => f.write_str("channel_data must be Unicode"),
        }
    }
}

impl Member {
    /// Out of `channel_data`: `{"user_id": string or number, "user_info": any, optional}`.
    pub fn parse(channel_data: &str, max_info: usize) -> Result<Self, MemberError> {
        let data = JsonObject::parse(channel_data).ok_or(MemberError::NotAnObject)?;
        let id = data.get_value("user_id").ok_or(MemberError::UserId)?;
        Self::new(user_id(id)?, data.get_value("user_info"), max_info)
    }

    /// Out of the `user_data` of a sign-in, for presence channels joined without `channel_data`.
    pub fn of_user(user: &User, max_info: usize) -> Result<Self, MemberError> {
        let data = JsonObject::parse(&user.data).ok_or(MemberError::NotAnObject)?;
        Self::new(user.id.clone(), data.get_value("user_info"), max_info)
    }

    /// A member with at most `max_info` bytes of `user_info`.
    /// # Errors
    /// `user_info` is too long or malformed.
    fn new(
        user_id: UserId,
        user_info: Option<&RawValue>,
        max_info: usize,
    ) -> Result<Self, MemberError> {
        let Some(info) = user_info else { return Ok(Self { user_id, user_info: "{}".into() }) };
        // As it was sent, escapes and blanks included: that is what is kept and sent on.
        if info.get().len() > max_info {
            return Err(MemberError::TooLarge { max: max_info });
        }
        if !json::is_unicode(info) {
            return Err(MemberError::NotUnicode);
        }
        Ok(Self { user_id, user_info: info.get().into() })
    }
}

/// A number counts by its digits as they stand: `1.0` and `1` are two users.
fn user_id(value: &RawValue) -> Result<UserId, MemberError> {
    let text = match value.get().as_bytes().first() {
        Some(b'"') => json::string_text(value).ok_or(MemberError::UserId)?,
        Some(b'-' | b'0'..=b'9') => value.get().into(),
        _ => return Err(MemberError::UserId),
    };
    if text.is_empty() {
        return Err(MemberError::UserId);
    }
    UserId::parse(&text).ok_or(MemberError::UserIdTooLong)
}

/// A signed-in user.
#[derive(Clone, Debug)]
pub struct User {
    pub id: UserId,
    /// The raw text that was signed.
    pub data: Box<str>,
    /// The users that this one watches, up to the limit, and whether there were more.
    pub watchlist: Watchlist,
}

/// The users that a user watches.
#[derive(Clone, Default, Debug)]
pub struct Watchlist {
    /// The watched users, each once.
    pub ids: Vec<UserId>,
    /// More than [`Watchlist::MAX`] were given.
    pub cut: bool,
}

impl Watchlist {
    /// Pusher's limit; those beyond it are left out and answered with 4302.
    pub const MAX: usize = 100;
}

impl Watchlist {
    /// Parses a watchlist, each user once. Backends with numeric ids list numbers. Entries that cannot be an id are
    /// skipped, since they are no reason to refuse the sign-in.
    fn parse(list: &RawValue) -> Self {
        // Something that is not a list watches nobody.
        let all = json::JsonList::parse(list).unwrap_or_default();
        let mut watchlist = Self::default();
        for id in all.into_iter().filter_map(|id| user_id(id).ok()) {
            if watchlist.ids.contains(&id) {
                continue;
            }
            if watchlist.ids.len() == Self::MAX {
                watchlist.cut = true;
                break;
            }
            watchlist.ids.push(id);
        }
        watchlist
    }
}

impl User {
    /// Out of `user_data`: the id must be a string (case U03).
    pub fn parse(user_data: &str) -> Option<Self> {
        let data = JsonObject::parse(user_data)?;
        let id = UserId::parse(&json::string_text(data.get_value("id")?)?)?;
        if data.get_value("user_info").is_some_and(|info| !json::is_unicode(info)) {
            return None;
        }
        // Without a watchlist nobody is watched.
        let watchlist = data.get_value("watchlist").map(Watchlist::parse).unwrap_or_default();
        Some(Self { id, data: user_data.into(), watchlist })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(data: &str) -> Result<(String, String), MemberError> {
        let member = Member::parse(data, 20)?;
        Ok((member.user_id.to_string(), member.user_info.to_string()))
    }

    #[test]
    fn ids_are_strings_or_numbers_and_keep_their_digits() {
        let ok = |id: &str, info: &str| Ok((id.to_owned(), info.to_owned()));
        assert_eq!(parsed(r#"{"user_id":10}"#), ok("10", "{}"));
        assert_eq!(parsed(r#"{"user_id":"01","user_info":null}"#), ok("01", "{}"));
        assert_eq!(parsed(r#"{"user_id": 12345678901234567890123}"#).unwrap().0.len(), 23);
        assert_eq!(
            parsed(r#"{"user_id":"a\"b","user_info": {"x": 1} }"#),
            ok("a\"b", r#"{"x": 1}"#)
        );
        assert_eq!(parsed(r#"{"user_id":1,"user_info":true}"#), ok("1", "true"));
        for bad in [r#"{"user_id":""}"#, r#"{"user_id":null}"#, r#"{"user_id":true}"#, "{}"] {
            assert_eq!(parsed(bad), Err(MemberError::UserId), "{bad}");
        }
        assert_eq!(parsed("[1]"), Err(MemberError::NotAnObject));
        let long = format!(r#"{{"user_id":"{}"}}"#, "é".repeat(129));
        assert_eq!(parsed(&long), Err(MemberError::UserIdTooLong));
        assert!(parsed(&long.replacen('é', "", 1)).is_ok());
    }

    #[test]
    fn infos_are_bounded() {
        let info = |n: usize| format!(r#"{{"user_id":1,"user_info":"{}"}}"#, "x".repeat(n));
        assert!(parsed(&info(18)).is_ok());
        assert_eq!(parsed(&info(19)), Err(MemberError::TooLarge { max: 20 }));
    }

    #[test]
    fn users_have_string_ids_and_short_watchlists() {
        assert!(User::parse(r#"{"id":7}"#).is_none());
        assert!(User::parse(r#"{"id":""}"#).is_none());
        for (list, watched) in [
            (r#"[1,"b",2,"1"]"#, &["1", "b", "2"][..]),
            (r#"[null,"",{},true,"b"]"#, &["b"][..]),
            ("{}", &[][..]),
            (r#"{"0":"a","2":"b"}"#, &["a", "b"][..]),
            ("null", &[][..]),
        ] {
            let user = User::parse(&format!(r#"{{"id":"7","watchlist":{list}}}"#)).unwrap();
            assert_eq!(user.watchlist.ids.iter().map(UserId::as_str).collect::<Vec<_>>(), watched);
            assert!(!user.watchlist.cut);
        }
        let ids: Vec<String> = (0..101).map(|n| n.to_string()).collect();
        let user = User::parse(&format!(r#"{{"id":"7","watchlist":{}}}"#, serde_json::json!(ids)))
            .unwrap();
        assert!(user.watchlist.cut);
        assert_eq!(user.watchlist.ids.len(), 100);
    }
}
