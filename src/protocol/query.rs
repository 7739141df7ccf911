//! Query parameters of a request, and the string that is signed. SDKs write and sort them in several ways and sign one
//! of them; `auth.rs` finds out which.

use std::borrow::Cow;

use memchr::{memchr, memchr2_iter};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use smallvec::SmallVec;

/// The parameters of a request's query, percent-decoded, in the order they came.
#[derive(Debug, Default)]
pub struct Query<'a> {
    /// The query as it was sent.
    raw: &'a str,
    /// Names and values, decoded.
    pairs: SmallVec<[(Cow<'a, str>, Cow<'a, str>); 8]>,
    /// Where the first `auth_signature` is in the raw text.
    signature: Option<usize>,
    /// The pairs of [`SIGNING`], of several the last.
    signing: [Option<u32>; SIGNING.len()],
    /// There are others.
    asks: bool,
    /// There is a `%` in it, or a `+` that is a blank.
    is_encoded: bool,
    /// How a `+` is decoded.
    plus: PlusMeaning,
}

/// The values of some parameters, as [`Query::get`] finds them; none of a query with percent signs.
pub fn find_plain<'a, const N: usize>(
    query: &'a str,
    names: [&str; N],
) -> Option<[Option<&'a str>; N]> {
    if memchr(b'%', query.as_bytes()).is_some() {
        return None;
    }
    let mut found = [None; N];
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let place = names.iter().zip(&mut found).find(|(one, _)| one.eq_ignore_ascii_case(name));
        if let Some((_, place)) = place {
            *place = Some(value);
        }
    }
    Some(found)
}

/// The meaning of a `+`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum PlusMeaning {
    /// Itself, as RFC 3986 has it.
    #[default]
    Plus,
    /// A blank, as forms have it, and what many languages make of a query.
    Blank,
}

/// The parameters that a signed request has for the sake of its signature, as [`SigningParameter`] has them.
const SIGNING: [&str; 5] =
    ["auth_key", "auth_timestamp", "auth_version", "auth_signature", "body_md5"];

/// One of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SigningParameter {
    Key,
    Timestamp,
    Version,
    Signature,
    BodyMd5,
}

impl<'a> Query<'a> {
    /// Splits at `&` and the first `=`; `+` stays a plus. Bytes that are not UTF-8 become replacement characters,
    /// so that a signature over them cannot match.
    pub fn parse(query: &'a str) -> Self {
        Self::parse_with(query, PlusMeaning::Plus)
    }

    /// The same with that meaning of a `+`.
    pub fn parse_with(query: &'a str, plus: PlusMeaning) -> Self {
        let bytes = query.as_bytes();
        let has_blank = plus == PlusMeaning::Blank && memchr(b'+', bytes).is_some();
        let is_encoded = has_blank || memchr(b'%', bytes).is_some();
        let mut parsed = Self { raw: query, is_encoded, plus, ..Self::default() };
        let (mut start, mut equals) = (0, None);
        for at in memchr2_iter(b'&', b'=', bytes) {
            if bytes.get(at) == Some(&b'=') {
                equals.get_or_insert(at);
            } else {
                parsed.add(start, equals.take(), at);
                start = at + 1;
            }
        }
        parsed.add(start, equals, bytes.len());
        parsed
    }

    /// Adds the pair from `start` to `end`, whose `=` is at `equals` if it has one.
    fn add(&mut self, start: usize, equals: Option<usize>, end: usize) {
        if start == end {
            return;
        }
        let text = |from, to| {
            // Both places were found in `raw`, so the slice exists.
            let raw = self.raw.get(from..to).unwrap_or_default();
            match self.plus {
                PlusMeaning::Blank if raw.contains('+') => {
                    Cow::Owned(percent_decode(&raw.replace('+', " ")).into_owned())
                }
                _ if self.is_encoded => percent_decode(raw),
                _ => Cow::Borrowed(raw),
            }
        };
        let name = text(start, equals.unwrap_or(end));
        let value = equals.map_or(Cow::Borrowed(""), |equals| text(equals + 1, end));
        if self.signature.is_none() && equals.is_some() && name == "auth_signature" {
            self.signature = Some(start);
        }
        let exact = SIGNING.iter().position(|one| *one == name);
        match exact.or_else(|| SIGNING.iter().position(|one| one.eq_ignore_ascii_case(&name))) {
            Some(at) => {
                if let Some(place) = self.signing.get_mut(at) {
                    *place = u32::try_from(self.pairs.len()).ok();
                }
            }
            None => self.asks = true,
        }
        self.pairs.push((name, value));
    }

    /// Whether there are parameters beside those of the signature.
    pub fn asks(&self) -> bool {
        self.asks
    }

    /// The value of what is there for the signature, as [`Self::get`] finds it.
    pub fn signing_value(&self, parameter: SigningParameter) -> Option<&str> {
        let place = self.signing.get(parameter as usize).copied().flatten()?;
        self.pairs.get(place as usize).map(|(_, value)| &**value)
    }

    /// The value of `name`; of several, the last. Names count without regard to case (case A11).
    pub fn get(&self, name: &str) -> Option<&str> {
        let mut found = self.pairs.iter().rev().filter(|(key, _)| key.eq_ignore_ascii_case(name));
        found.next().map(|(_, value)| &**value)
    }

    /// All values of the array `name`: each `name[]=value` and `name[2]=value`, as PHP has it, and `name=a,b`
    /// split at its commas.
    pub fn list(&self, name: &str) -> Vec<&str> {
        let mut all = Vec::new();
        for (key, value) in &self.pairs {
            if array_name(key).is_some_and(|key| key.eq_ignore_ascii_case(name)) {
                all.push(&**value);
            } else if key.eq_ignore_ascii_case(name) {
                all.extend(value.split(',').filter(|item| !item.is_empty()));
            }
        }
        all
    }

    /// The names that were given, as they came.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.pairs.iter().map(|(name, _)| &**name)
    }

    /// The two pieces of the raw text around `auth_signature`, if what is signed is just those: nothing is
    /// encoded, and the names are in lower case and in order, as most SDKs send them.
    pub(super) fn as_signed(&self) -> Option<(&'a str, &'a str)> {
        let plain = |name: &str| !name.bytes().any(|b| b.is_ascii_uppercase() || b == b'[');
        if self.is_encoded || !self.names().all(plain) {
            return None;
        }
        let names = || self.names().filter(|name| *name != "auth_signature");
        if !names().zip(names().skip(1)).all(|(name, next)| name <= next) {
            return None;
        }
        let (before, rest) = self.raw.split_at_checked(self.signature?)?;
        let end = memchr(b'&', rest.as_bytes());
        // Nothing behind the signature means that it is the last parameter.
        let after = end.and_then(|end| rest.get(end + 1..)).unwrap_or_default();
        match (before.strip_suffix('&'), after) {
            (Some(before), "") => Some((before, "")),
            (Some(_), after) => Some((before, after)),
            (None, after) if before.is_empty() => Some(("", after)),
            (None, _) => None,
        }
    }

    /// The text that is signed for a request to `path`, as most SDKs build it.
    pub fn string_to_sign(&self, method: &str, path: &str) -> String {
        self.strings_to_sign(method, path).0
    }

    /// The text that is signed for a request to `path`, in two readings: arrays as one `k[]=v` each, or, if there
    /// are any, as `k=v,v`.
    pub(super) fn strings_to_sign(&self, method: &str, path: &str) -> (String, Option<String>) {
        let mut pairs: Vec<(Cow<'_, str>, &str)> = Vec::with_capacity(self.pairs.len());
        for (name, value) in &self.pairs {
            if name.eq_ignore_ascii_case("auth_signature") {
                continue;
            }
            let lower = if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
                Cow::Owned(name.to_ascii_lowercase())
            } else {
                Cow::Borrowed(&**name)
            };
            pairs.push((lower, value));
        }
        // Stable, so that the values of an array keep their order.
        pairs.sort_by(|a, b| a.0.cmp(&b.0));
        let plain = join(method, path, pairs.iter().map(|(name, value)| (&**name, *value)));
        if !pairs.iter().any(|(name, _)| name.ends_with("[]")) {
            return (plain, None);
        }
        // Sorted by names, since `a[]` and `a` need not be neighbours, and then each name's values. So a query of
        // many names, which anybody may send, costs no more than sorting it.
        let mut bare: Vec<(&str, &str)> = pairs
            .iter()
            .map(|(name, value)| (name.strip_suffix("[]").unwrap_or(name), *value))
            .collect();
        bare.sort_by(|a, b| a.0.cmp(b.0));
        let mut joined: Vec<(&str, String)> = Vec::with_capacity(bare.len());
        for (name, value) in bare {
            match joined.last_mut() {
                Some((last, values)) if *last == name => {
                    values.push(',');
                    values.push_str(value);
                }
                _ => joined.push((name, value.to_owned())),
            }
        }
        let joined = join(method, path, joined.iter().map(|(name, value)| (*name, value.as_str())));
        (plain, Some(joined))
    }
}

/// The name in `name[]` and `name[2]`.
fn array_name(key: &str) -> Option<&str> {
    let (name, index) = key.strip_suffix(']')?.split_once('[')?;
    index.bytes().all(|byte| byte.is_ascii_digit()).then_some(name)
}

/// `POST\n/apps/3/events\nauth_key=…&auth_timestamp=…`: three lines, the values not encoded.
fn join<'p>(method: &str, path: &str, pairs: impl Iterator<Item = (&'p str, &'p str)>) -> String {
    let mut text = String::with_capacity(256);
    text.push_str(method);
    text.push('\n');
    text.push_str(path);
    text.push('\n');
    for (index, (name, value)) in pairs.enumerate() {
        if index > 0 {
            text.push('&');
        }
        text.push_str(name);
        text.push('=');
        text.push_str(value);
    }
    text
}

/// Everything but the unreserved characters of RFC 3986, section 2.3.
const CODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// `text` as one segment of a path or one value of a query.
pub fn percent_encode(text: &str) -> String {
    utf8_percent_encode(text, CODED).to_string()
}

/// Replaces each `%XX`; what is not such a triple stays as it is.
pub fn percent_decode(text: &str) -> Cow<'_, str> {
    percent_decode_str(text).decode_utf8_lossy()
}
