//! The trace of one event: the id by which a backend, its proxies and its tracing know the request that published it.
//! Parsed from headers here; logged and forwarded elsewhere.

use std::fmt;
use std::sync::Arc;

/// Characters of an `X-Request-Id`.
const MAX_REQUEST_ID: usize = 128;

/// Characters of a trace-id.
const TRACE_ID: usize = 32;

/// Characters of a `traceparent` of version 00; W3C Trace Context, section 3.2.
const TRACEPARENT: usize = 55;

/// The trace-id of `traceparent`, the text of `X-Request-Id`, or both with a blank between: visible ASCII.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trace(Arc<str>);

impl Trace {
    /// The trace that the values of two headers give. A value that is not well-formed counts as none.
    pub fn from_headers(request_id: Option<&[u8]>, traceparent: Option<&[u8]>) -> Option<Self> {
        match (traceparent.and_then(trace_id), request_id.and_then(request_name)) {
            (Some(trace), Some(request)) => Some(Self(format!("{trace} {request}").into())),
            (Some(one), None) | (None, Some(one)) => Some(Self(one.into())),
            (None, None) => None,
        }
    }

    /// The trace that another node has passed on.
    pub fn parse(text: &str) -> Option<Self> {
        let is_trace = (1..=TRACE_ID + 1 + MAX_REQUEST_ID).contains(&text.len())
            && text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
        is_trace.then(|| Self(text.into()))
    }

    /// The trace's text, for logs and the console.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Visible ASCII of a bounded length: it goes into logs.
fn request_name(value: &[u8]) -> Option<&str> {
    let fits = (1..=MAX_REQUEST_ID).contains(&value.len());
    let text = std::str::from_utf8(value).ok()?;
    (fits && text.bytes().all(|byte| byte.is_ascii_graphic())).then_some(text)
}

/// Versions after 00 may be longer, and begin in the same way; there is no version ff.
fn trace_id(value: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(value).ok()?;
    let (first, more) = text.split_at_checked(TRACEPARENT)?;
    let mut fields = first.split('-');
    let (version, trace) = (fields.next()?, fields.next()?);
    let (parent, flags) = (fields.next()?, fields.next()?);
    let is_hex = |field: &str, length: usize| {
        field.len() == length && field.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let is_named = |field: &str| field.bytes().any(|byte| byte != b'0');
    let ends_well = more.is_empty() || (version != "00" && more.starts_with('-'));
    let is_whole = is_hex(version, 2) && version != "ff" && is_hex(trace, TRACE_ID);
    (is_whole && is_hex(parent, 16) && is_hex(flags, 2) && ends_well)
        .then_some(trace)
        .filter(|trace| is_named(trace) && is_named(parent))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    fn read(request_id: Option<&str>, traceparent: Option<&str>) -> Option<String> {
        let trace =
            Trace::from_headers(request_id.map(str::as_bytes), traceparent.map(str::as_bytes))?;
        assert_eq!(Trace::parse(trace.as_str()), Some(trace.clone()));
        Some(trace.to_string())
    }

    #[test]
    fn both_headers_are_read() {
        assert_eq!(read(None, None), None);
        assert_eq!(read(Some("r-1"), None).as_deref(), Some("r-1"));
        assert_eq!(read(None, Some(PARENT)).as_deref(), Some(TRACE));
        assert_eq!(read(Some("r-1"), Some(PARENT)), Some(format!("{TRACE} r-1")));
        let longest = "~".repeat(MAX_REQUEST_ID);
        assert_eq!(read(Some(&longest), Some(PARENT)), Some(format!("{TRACE} {longest}")));
    }

    #[test]
    fn what_is_not_well_formed_counts_as_none() {
        let long = "x".repeat(MAX_REQUEST_ID + 1);
        for wrong in ["", "a b", "a\tb", "\u{7f}", "ü", &long] {
            assert_eq!(read(Some(wrong), None), None, "{wrong:?}");
        }
        let none = "0".repeat(32);
        for wrong in [
            "",
            &PARENT[..54],
            &format!("{PARENT}-00"),
            &PARENT.replace("00-4", "ff-4"),
            &PARENT.to_uppercase(),
            &PARENT.replace(TRACE, &none),
            &PARENT.replace("00f067aa0ba902b7", &none[..16]),
            &PARENT.replace('-', "_"),
            &PARENT.replace("-01", "+01"),
        ] {
            assert_eq!(read(None, Some(wrong)), None, "{wrong:?}");
            assert_eq!(read(Some("r"), Some(wrong)).as_deref(), Some("r"), "{wrong:?}");
        }
        let newer = format!("{}-more", PARENT.replace("00-4", "01-4"));
        assert_eq!(read(None, Some(&newer)).as_deref(), Some(TRACE));
        assert_eq!(Trace::parse("a\nb"), None);
        assert_eq!(Trace::parse(&"x".repeat(162)), None);
    }
}
