//! JSON for this protocol: objects are split into members without decoding them, so that what is only forwarded stays
//! byte for byte the same; and strings are written into a buffer. Of a duplicate key the last counts.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::marker::PhantomData;

use memchr::memchr;
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use smallvec::SmallVec;

/// An object's members, undecoded, in the order they came.
#[derive(Debug)]
pub struct JsonObject<'a>(SmallVec<[(Cow<'a, str>, &'a RawValue); 8]>);

impl<'a> JsonObject<'a> {
    /// Refuses what is not JSON as a whole, and any other value than an object.
    pub fn parse(text: &'a str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// The value of `key`; a `null` counts as absent.
    pub fn get_value(&self, key: &str) -> Option<&'a RawValue> {
        let (_, value) = self.0.iter().rev().find(|(name, _)| name == key)?;
        Some(*value).filter(|value| value.get() != "null")
    }

    /// The value of `key` where it must be a string if it is there at all.
    ///
    /// # Errors
    /// It is there and is no string; a `null` counts as absent.
    pub fn get_string(&self, key: &'static str) -> Result<Option<Cow<'a, str>>, NotAString> {
        match self.get_value(key) {
            None => Ok(None),
            Some(value) => string_text(value).map(Some).ok_or(NotAString(key)),
        }
    }
}

/// A member that should have been a string.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub struct NotAString(pub &'static str);

impl<'de> Deserialize<'de> for JsonObject<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = JsonObject<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = SmallVec::new();
                while let Some((JsonKey(name), value)) = map.next_entry()? {
                    members.push((name, value));
                }
                Ok(JsonObject(members))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

/// A key, borrowed where it holds no escapes.
struct JsonKey<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for JsonKey<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = JsonKey<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(JsonKey(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(JsonKey(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// The text of a JSON string; `None` for any other value, and for one that is not Unicode (half a
/// surrogate pair).
pub fn string_text(value: &RawValue) -> Option<Cow<'_, str>> {
    // The parser has checked it as a whole, so that the quotes are its first and last bytes.
    let inner = value.get().strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('\\') {
        return serde_json::from_str(value.get()).ok().map(Cow::Owned);
    }
    Some(Cow::Borrowed(inner))
}

/// Whether every escape in `raw` stands for a character. Half a surrogate pair passes through a parser that only
/// skips it, and would break the parsers of receivers.
pub fn is_unicode(raw: &RawValue) -> bool {
    let mut rest = raw.get();
    // Every backslash of what was parsed begins an escape.
    while let Some(at) = memchr(b'\\', rest.as_bytes()) {
        rest = rest.get(at..).unwrap_or_default();
        let length = match (escaped_unit(rest), rest.get(6..).and_then(escaped_unit)) {
            (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => 12,
            (Some(0xd800..=0xdfff), _) => return false,
            (Some(_), _) => 6,
            (None, _) => 2,
        };
        // `length` was measured in `rest`, so the slice exists.
        rest = rest.get(length..).unwrap_or_default();
    }
    true
}

/// The number in the `\uXXXX` that `text` begins with.
fn escaped_unit(text: &str) -> Option<u16> {
    u16::from_str_radix(text.strip_prefix("\\u")?.get(..4)?, 16).ok()
}

/// `value` as a JSON string's token: a string's own, byte for byte, or the value's text as a string.
/// `None` if it is not Unicode.
pub fn string_token(value: &RawValue) -> Option<Cow<'_, str>> {
    if !is_unicode(value) {
        return None;
    }
    if value.get().starts_with('"') {
        return Some(Cow::Borrowed(value.get()));
    }
    let mut out = Vec::with_capacity(value.get().len() + 16);
    push_string(&mut out, value.get());
    String::from_utf8(out).ok().map(Cow::Owned)
}

/// Bytes of the text that a string's token stands for, if they are more than `max`. An escape is never
/// shorter than what it stands for, so most tokens need not be decoded to know.
pub fn longer_than(token: &str, max: usize) -> Option<usize> {
    let inner = token.len().saturating_sub(2);
    if inner <= max {
        return None;
    }
    let len = match memchr(b'\\', token.as_bytes()) {
        // Without escapes the token is as long as its text.
        None => inner,
        Some(_) => serde_json::from_str::<String>(token).map_or(inner, |text| text.len()),
    };
    (len > max).then_some(len)
}

/// A list, undecoded: an array, or an object whose keys are numbers, which PHP makes of an array from which something
/// was taken out. Its values count, in the order they came.
#[derive(Debug)]
pub struct JsonList<T>(pub Vec<T>);

impl<'a> JsonList<&'a RawValue> {
    /// The values of an array, each as its text; `None` if it is no array.
    pub fn parse(value: &'a RawValue) -> Option<Vec<&'a RawValue>> {
        serde_json::from_str::<Self>(value.get()).ok().map(|list| list.0)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for JsonList<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Items<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Items<T> {
            type Value = JsonList<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array, or an object with numbers for keys")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(JsonList(items))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut items: Vec<(Cow<'de, str>, T)> = Vec::new();
                while let Some((JsonKey(key), item)) = map.next_entry()? {
                    if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_digit()) {
                        return Err(A::Error::custom("a key that is no number"));
                    }
                    items.push((key, item));
                }
                if items.is_empty() {
                    return Err(A::Error::custom("no key at all"));
                }
                // Of a key given twice the last counts, here too.
                let mut seen = HashSet::with_capacity(items.len());
                let mut kept: Vec<T> = Vec::with_capacity(items.len());
                for (key, item) in items.into_iter().rev() {
                    if seen.insert(key) {
                        kept.push(item);
                    }
                }
                kept.reverse();
                Ok(JsonList(kept))
            }
        }
        deserializer.deserialize_any(Items(PhantomData))
    }
}

/// The body of a batch: of its members only `batch` counts, and that is read where it stands.
#[derive(Debug)]
pub struct BatchBody<'a>(pub Option<Vec<JsonObject<'a>>>);

impl<'a> BatchBody<'a> {
    /// The members of an object, each as its text; `None` if it is no object.
    pub fn parse(text: &'a str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }
}

impl<'de> Deserialize<'de> for BatchBody<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = BatchBody<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut batch = None;
                while let Some(JsonKey(name)) = map.next_key()? {
                    if name == "batch" {
                        batch = map
                            .next_value::<Option<JsonList<JsonObject<'de>>>>()?
                            .map(|list| list.0);
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(BatchBody(batch))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

/// Appends `text` as a JSON string, quotes included. Only what RFC 8259 section 7 demands is escaped.
pub fn push_string(out: &mut Vec<u8>, text: &str) {
    // Neither a text nor a vector can fail.
    let _ = serde_json::to_writer(out, text);
}

/// Appends a number in its digits.
pub fn push_number(out: &mut Vec<u8>, mut number: u64) {
    // From the last digit on; as many as the largest has.
    let mut digits = [0; 20];
    let mut used = 0;
    for place in digits.iter_mut().rev() {
        *place = b'0' + (number % 10) as u8;
        used += 1;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    // `used` counts the digits that were written from the end.
    out.extend_from_slice(digits.get(digits.len() - used..).unwrap_or_default());
}

/// `text` as it stands inside a JSON string.
pub fn escape_text(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len() + 8);
    push_string(&mut out, text);
    // `push_string` wrote both quotes, which are cut off here.
    let inner = out.get(1..out.len().saturating_sub(1)).unwrap_or_default();
    String::from_utf8_lossy(inner).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> &RawValue {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn the_last_of_two_equal_keys_counts() {
        let object = JsonObject::parse(r#"{"a":1,"b":"x","\u0061":2,"c":null}"#).unwrap();
        assert_eq!(object.get_value("a").unwrap().get(), "2");
        assert_eq!(object.get_string("b"), Ok(Some("x".into())));
        assert_eq!(object.get_string("a"), Err(NotAString("a")));
        assert!(object.get_value("c").is_none());
        assert!(JsonObject::parse("[1]").is_none());
        assert!(JsonObject::parse(r#"{"a":1}x"#).is_none());
    }

    #[test]
    fn strings_keep_their_token_and_values_become_one() {
        assert_eq!(string_token(raw(r#""a\/b""#)).unwrap(), r#""a\/b""#);
        assert_eq!(string_token(raw(r#"{"k": 1.50}"#)).unwrap(), r#""{\"k\": 1.50}""#);
        assert_eq!(string_token(raw(r#""\ud83d\ude00""#)).unwrap(), r#""\ud83d\ude00""#);
        assert!(string_token(raw(r#""\ud83d""#)).is_none());
        assert!(string_token(raw(r#"{"k":"\uDE00"}"#)).is_none());
        assert_eq!(longer_than(r#""a\u00e9\n""#, 3), Some(4));
        assert_eq!(longer_than(r#""a\u00e9\n""#, 4), None);
        assert_eq!(longer_than(r#""abc""#, 2), Some(3));
        assert_eq!(longer_than(r#""abc""#, 3), None);
    }

    #[test]
    fn phps_arrays_with_gaps_are_lists() {
        let list = |text| {
            let items = JsonList::parse(raw(text))?;
            Some(items.into_iter().map(RawValue::get).collect::<Vec<_>>().join(" "))
        };
        for (text, items) in [
            (r#"["a",2]"#, Some(r#""a" 2"#)),
            (r#"{"3":"b","1":"a"}"#, Some(r#""b" "a""#)),
            (r#"{"0":"a","1":"b","0":"c"}"#, Some(r#""b" "c""#)),
            ("{}", None),
            ("[]", Some("")),
            (r#"{"a":1}"#, None),
            (r#"{"":1}"#, None),
            (r#"{"-1":1}"#, None),
            ("1", None),
            (r#""a""#, None),
        ] {
            assert_eq!(list(text).as_deref(), items, "{text}");
        }
    }

    #[test]
    fn a_batch_is_read_where_it_stands() {
        let batch = |text| BatchBody::parse(text).map(|batch| batch.0.map(|events| events.len()));
        assert_eq!(batch(r#"{"a":[1],"batch":[{"name":1},{}]}"#), Some(Some(2)));
        assert_eq!(batch(r#"{"batch":[{}],"batch":[]}"#), Some(Some(0)));
        assert_eq!(batch(r#"{"batch":null}"#), Some(None));
        assert_eq!(batch("{}"), Some(None));
        assert_eq!(batch(r#"{"batch":[1]}"#), None);
        assert_eq!(batch(r#"{"batch":{}}"#), None);
        assert_eq!(batch(r#"{"batch":{"0":{},"2":{}}}"#), Some(Some(2)));
        assert_eq!(batch(r#"{"batch":{"0":{},"x":{}}}"#), None);
        assert_eq!(batch("[]"), None);
    }

    #[test]
    fn numbers_are_written_as_ever() {
        for number in [0, 9, 10, 1203, u64::MAX] {
            let mut out = Vec::new();
            push_number(&mut out, number);
            assert_eq!(out, number.to_string().as_bytes());
        }
    }

    #[test]
    fn what_is_escaped_reads_back() {
        let all: String = (0..0x250_u32).filter_map(char::from_u32).collect();
        let mut out = Vec::new();
        push_string(&mut out, &all);
        assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), all);
        assert_eq!(format!("\"{}\"", escape_text(&all)).into_bytes(), out);
    }

    #[test]
    fn a_pair_of_surrogates_in_deep_json_was_taken_for_half_a_one() {
        let deep = |inner: &str| format!("{}{inner}{}", "[".repeat(500), "]".repeat(500));
        let is_right = |text: &str| {
            let raw: &RawValue = serde_json::from_str(text).unwrap();
            is_unicode(raw)
        };
        for right in [r#""a""#, r#""\ud83c\udf89""#, r#""\\ud800""#, r#""\\\ud83c\uDF89\u0041\n""#]
        {
            assert!(is_right(right) && is_right(&deep(right)), "{right}");
        }
        for wrong in
            [r#""\ud83c""#, r#""\udf89\ud83c""#, r#""\\\ud83c\u0041""#, r#""\ud83c\ud83c\udf89""#]
        {
            assert!(!is_right(wrong) && !is_right(&deep(wrong)), "{wrong}");
        }
    }
}
