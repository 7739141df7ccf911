//! A written value and how it is parsed: numbers in a range, durations, sizes, names, lists. Sources produce values,
//! keys parse them. An error says what was expected, never the value.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use toml::de::{DeInteger, DeValue};

use super::{MemoryLimit, Network};

/// A value as it was written.
#[derive(Clone, PartialEq)]
pub(super) enum Value {
    /// `true` or `false`.
    Bool(bool),
    /// Signed, since TOML's are; no key takes a negative one.
    Integer(i64),
    /// In quotes, in a source that has types.
    Text(String),
    /// Text from a source without types, such as the environment: read as whatever the key wants.
    Raw(String),
    /// Of one type, which the key checks.
    List(Vec<Self>),
    /// In the order in which it was written.
    Table(Vec<(String, Self)>),
    /// Something that no key wants, by the name of its type.
    Other(&'static str),
}

/// The form that a key accepts, in words that follow "expected".
pub(super) type WantedForm = String;

impl Value {
    /// The value as it may be shown: URLs in it without what gives access.
    pub(super) fn without_credentials(&self) -> Self {
        match self {
            Self::Text(text) => Self::Text(without_credentials(text)),
            Self::Raw(text) => Self::Raw(without_credentials(text)),
            other => other.clone(),
        }
    }
}

impl Value {
    /// The same in JSON.
    /// For `config show --json`.
    pub(super) fn json(&self) -> serde_json::Value {
        match self {
            Self::Bool(value) => (*value).into(),
            Self::Integer(value) => (*value).into(),
            Self::Text(text) | Self::Raw(text) => text.as_str().into(),
            Self::Other(name) => (*name).into(),
            Self::List(items) => items.iter().map(Self::json).collect(),
            Self::Table(entries) => {
                let entries = entries.iter().map(|(name, value)| (name.clone(), value.json()));
                serde_json::Value::Object(entries.collect())
            }
        }
    }
}

/// As TOML, on one line.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => write!(f, "{value}"),
            Self::Integer(value) => write!(f, "{value}"),
            Self::Text(text) | Self::Raw(text) => quote(f, text),
            Self::Other(name) => f.write_str(name),
            Self::List(items) => {
                f.write_str("[")?;
                for (index, item) in items.iter().enumerate() {
                    write!(f, "{}{item}", if index == 0 { "" } else { ", " })?;
                }
                f.write_str("]")
            }
            Self::Table(entries) => {
                f.write_str("{")?;
                for (index, (name, value)) in entries.iter().enumerate() {
                    f.write_str(if index == 0 { " " } else { ", " })?;
                    quote(f, name)?;
                    write!(f, " = {value}")?;
                }
                f.write_str(if entries.is_empty() { "}" } else { " }" })
            }
        }
    }
}

/// A TOML string in double quotes, with what has to be escaped there.
fn quote(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    f.write_str("\"")?;
    for character in text.chars() {
        match character {
            '"' | '\\' => write!(f, "\\{character}")?,
            '\n' => f.write_str("\\n")?,
            '\t' => f.write_str("\\t")?,
            control if control.is_control() => write!(f, "\\u{:04x}", u32::from(control))?,
            other => write!(f, "{other}")?,
        }
    }
    f.write_str("\"")
}

/// A URL without the user, the password and the query, in which tokens are sent.
fn without_credentials(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    // Before anything else is looked for: a token in a query may hold a slash or an `@`.
    let (rest, query) = match rest.split_once('?') {
        Some((rest, _)) => (rest, "?…"),
        None => (rest, ""),
    };
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host =
        host.rsplit_once('@').map_or_else(|| host.to_owned(), |(_, host)| format!("…@{host}"));
    format!("{scheme}://{host}{path}{query}")
}

/// Strictly these two words; `1` and `yes` are refused rather than guessed.
pub(super) fn boolean(value: &Value) -> Result<bool, WantedForm> {
    match value {
        Value::Bool(value) => Ok(*value),
        Value::Raw(text) if text == "true" => Ok(true),
        Value::Raw(text) if text == "false" => Ok(false),
        _ => Err("true or false".to_owned()),
    }
}

/// A number or a truth value is refused in a source with types: it was probably meant as something else.
pub(super) fn text(value: &Value) -> Result<String, WantedForm> {
    match value {
        Value::Text(text) | Value::Raw(text) => Ok(text.clone()),
        _ => Err("text in quotes".to_owned()),
    }
}

/// A number in a range. The error names the range.
pub(super) fn number<T: TryFrom<i64>>(
    value: &Value,
    range: RangeInclusive<i64>,
) -> Result<T, WantedForm> {
    let number = match value {
        // Also from a text, in sources without types.
        Value::Integer(number) => Some(*number),
        Value::Raw(text) => text.parse().ok(),
        _ => None,
    };
    number
        .filter(|number| range.contains(number))
        .and_then(|number| T::try_from(number).ok())
        .ok_or_else(|| format!("a whole number from {} to {}", range.start(), range.end()))
}

/// A count that may be large.
/// Up to 4,294,967,295, since counters are 32 bits wide.
pub(super) fn count<T: TryFrom<i64>>(value: &Value, least: i64) -> Result<T, WantedForm> {
    number(value, least..=i64::from(u32::MAX))
}

/// A time such as `10s`, `500ms`, `30m`, `1h`.
/// A unit is required: `30` alone would leave open of what.
///
/// # Errors
/// It has no unit, is no number, or is out of the range, which the message names.
pub(super) fn duration(
    value: &Value,
    range: RangeInclusive<Duration>,
) -> Result<Duration, WantedForm> {
    let read = match value {
        Value::Text(text) | Value::Raw(text) => parse_duration(text),
        _ => None,
    };
    read.filter(|duration| range.contains(duration)).ok_or_else(|| {
        format!(
            "a time such as \"10s\", \"500ms\" or \"30m\", from {} to {}",
            in_words(*range.start()),
            in_words(*range.end())
        )
    })
}

/// In whole seconds where it is that.
fn in_words(duration: Duration) -> String {
    match duration.as_millis() {
        milliseconds if milliseconds % 1000 == 0 => format!("{}s", duration.as_secs()),
        milliseconds => format!("{milliseconds}ms"),
    }
}

/// No fractions, no sums such as `1h30m`.
/// `None` also where the sum does not fit into 64 bits of milliseconds.
fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = split_unit(text)?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    Some(Duration::from_millis(number.checked_mul(milliseconds)?))
}

/// Bytes, as a whole number or as `100KiB`, `1MiB`.
/// Binary units only: `KB` is read by some as 1000 and by others as 1024.
///
/// # Errors
/// It is 0, more than 1 GiB, or in another unit.
pub(super) fn size(value: &Value) -> Result<usize, WantedForm> {
    let read = match value {
        Value::Integer(number) => u64::try_from(*number).ok(),
        Value::Raw(text) => text.parse().ok().or_else(|| parse_size(text)),
        Value::Text(text) => parse_size(text),
        _ => None,
    };
    // 1 GiB is beyond any message or queue that makes sense, and a slip of the unit is found.
    read.filter(|bytes| (1..=1 << 30).contains(bytes))
        .and_then(|bytes| usize::try_from(bytes).ok())
        .ok_or_else(|| "a size such as \"100KiB\" or 102400, from 1 to 1GiB".to_owned())
}

/// Memory: a share of it such as `90%`, a size, or 0.
/// 0 is no limit at all.
pub(super) fn memory(value: &Value) -> Result<MemoryLimit, WantedForm> {
    let read = match value {
        Value::Integer(0) => Some(MemoryLimit::Bytes(0)),
        Value::Raw(text) | Value::Text(text) => match text.strip_suffix('%') {
            Some(percent) => percent.parse().ok().map(MemoryLimit::Share),
            None if text == "0" => Some(MemoryLimit::Bytes(0)),
            None => parse_size(text).map(MemoryLimit::Bytes),
        },
        _ => None,
    };
    read.filter(|limit| !matches!(limit, MemoryLimit::Share(0 | 101..)))
        .ok_or_else(|| "a share such as \"90%\", a size such as \"2GiB\", or 0".to_owned())
}

/// Parses a size with a unit. A number without one is left to the caller, which takes it as bytes.
fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = split_unit(text)?;
    let bytes: u64 = match unit {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(bytes)
}

/// A blank between number and unit does no harm.
fn split_unit(text: &str) -> Option<(u64, &str)> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    Some((number.parse().ok()?, unit.trim_start()))
}

/// A list of texts; from a source without types `a,b` or as TOML writes it.
pub(super) fn texts(value: &Value) -> Result<Vec<String>, WantedForm> {
    let wanted = || "a list of texts such as [\"a\", \"b\"]".to_owned();
    match value {
        Value::List(items) => items.iter().map(|item| text(item).map_err(|_| wanted())).collect(),
        Value::Raw(raw) if raw.trim_start().starts_with('[') => match parse_value(raw) {
            // Read as TOML once; it cannot come here again as `Raw`.
            Some(list @ Value::List(_)) => texts(&list),
            _ => Err(wanted()),
        },
        Value::Raw(raw) => {
            let items = raw.split(',').map(str::trim).filter(|item| !item.is_empty());
            Ok(items.map(str::to_owned).collect())
        }
        _ => Err(wanted()),
    }
}

/// A table of texts; from a source without types as TOML writes it.
pub(super) fn pairs(value: &Value) -> Result<Vec<(String, String)>, WantedForm> {
    let wanted = || "a table of texts such as { Name = \"value\" }".to_owned();
    match value {
        Value::Table(entries) => entries
            .iter()
            .map(|(name, value)| Ok((name.clone(), text(value).map_err(|_| wanted())?)))
            .collect(),
        Value::Raw(raw) => match parse_value(raw) {
            Some(table @ Value::Table(_)) => pairs(&table),
            _ => Err(wanted()),
        },
        _ => Err(wanted()),
    }
}

/// One of a few words.
/// The message lists all of them.
///
/// # Errors
/// It is none of the words.
pub(super) fn choice<T: Copy>(value: &Value, choices: &[(&str, T)]) -> Result<T, WantedForm> {
    let written = text(value).ok();
    let found = choices.iter().find(|(name, _)| written.as_deref() == Some(*name));
    found.map(|(_, choice)| *choice).ok_or_else(|| {
        let names: Vec<String> = choices.iter().map(|(name, _)| format!("{name:?}")).collect();
        format!("one of {}", names.join(", "))
    })
}

/// An address or a host's name to listen on, an IPv6 address without its brackets.
pub(super) fn host(value: &Value) -> Result<String, WantedForm> {
    // Something that is no text cannot be a host; the empty text is refused below.
    let written = text(value).unwrap_or_default();
    let bare = written.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let host = bare.unwrap_or(&written);
    // As host names are made, and with `_`, which container names have.
    let label = |label: &str| {
        !label.is_empty() && label.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
    };
    if host.parse::<IpAddr>().is_ok() || (bare.is_none() && host.split('.').all(label)) {
        return Ok(host.to_owned());
    }
    Err("an address or a host's name, without a port".to_owned())
}

/// A prefix of routes, with a slash in front and none at the end, or empty.
pub(super) fn path(value: &Value) -> Result<String, WantedForm> {
    // `ws`, `/ws` and `/ws/` are the same.
    let written = text(value).ok();
    let trimmed = written.as_deref().map(|path| path.trim_matches('/'));
    match trimmed {
        Some("") => Ok(String::new()),
        Some(path) if path.split('/').all(is_segment) => Ok(format!("/{path}")),
        _ => Err("the start of a URL's path such as \"/ws\", or \"\"".to_owned()),
    }
}

/// Characters that need no escape in a path (RFC 3986 section 3.3), and none that a router would read otherwise.
fn is_segment(segment: &str) -> bool {
    !matches!(segment, "" | "." | "..")
        && segment.chars().all(|c| c.is_ascii_alphanumeric() || "-._~!$&'()*+,;=:@".contains(c))
}

/// Networks as `10.0.0.0/8`; a bare address is a network of its own.
///
/// # Errors
/// One of them is no address, or the bits behind the slash are too many.
pub(super) fn networks(value: &Value) -> Result<Vec<Network>, WantedForm> {
    let wanted = || "a list of networks such as [\"10.0.0.0/8\", \"::1\"]".to_owned();
    let parse = |text: &String| text.parse().map_err(|()| wanted());
    texts(value).map_err(|_| wanted())?.iter().map(parse).collect()
}

/// A value as TOML writes it, or nothing if it is not one.
pub(super) fn parse_value(text: &str) -> Option<Value> {
    // For defaults, and for lists in sources without types.
    DeValue::parse(text).ok().map(|value| to_value(value.get_ref()))
}

/// A value that is read.
/// Numbers with a point and dates become something that no key takes, with a name for the message.
pub(super) fn to_value(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::Boolean(value) => Value::Bool(*value),
        DeValue::Integer(integer) => whole_number(integer),
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Float(_) => Value::Other("a number with a point"),
        DeValue::Datetime(_) => Value::Other("a date"),
        DeValue::Array(items) => {
            Value::List(items.iter().map(|item| to_value(item.get_ref())).collect())
        }
        DeValue::Table(table) => Value::Table(
            table
                .iter()
                .map(|(name, value)| (name.get_ref().to_string(), to_value(value.get_ref())))
                .collect(),
        ),
    }
}

/// TOML has hexadecimal, octal and binary ones too.
fn whole_number(integer: &DeInteger<'_>) -> Value {
    i64::from_str_radix(integer.as_str(), integer.radix())
        .map_or(Value::Other("a number out of reach"), Value::Integer)
}

#[cfg(test)]
mod tests;
