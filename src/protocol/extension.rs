//! Negotiation of `permessage-deflate` (RFC 7692, section 7.1): what a client offers, and what is accepted.
//! `deflate.rs` has the compression.

use std::fmt;

/// The offer that was accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AcceptedExtension {
    /// The largest window that the client has for us, if it names one.
    server_max_window_bits: Option<u8>,
}

/// The window that our messages are compressed with.
const WINDOW_BITS: u8 = 15;

impl AcceptedExtension {
    /// The first good offer in the values of `Sec-WebSocket-Extensions`, whose several lines are one list
    /// (RFC 6455, section 9.1).
    pub fn first_acceptable<'a>(lines: impl IntoIterator<Item = &'a [u8]>) -> Option<Self> {
        lines.into_iter().find_map(|line| {
            let line = std::str::from_utf8(line).ok()?;
            split_unquoted(line, ',').find_map(Self::of_offer)
        })
    }

    /// Parses one offer; `None` if it is for another extension or malformed (RFC 7692 section 7.1).
    fn of_offer(offer: &str) -> Option<Self> {
        let mut parts = split_unquoted(offer, ';');
        if parts.next()?.trim_matches(WHITESPACE) != "permessage-deflate" {
            return None;
        }
        let (mut window, mut seen) = (None, Vec::new());
        for part in parts {
            let (name, value) = match part.split_once('=') {
                Some((name, value)) => (name, Some(unquote(value.trim_matches(WHITESPACE))?)),
                None => (part, None),
            };
            let name = name.trim_matches(WHITESPACE);
            // Section 7.1: an offer that names a parameter twice is declined.
            if seen.contains(&name) {
                return None;
            }
            seen.push(name);
            match (name, value) {
                ("server_no_context_takeover" | "client_no_context_takeover", None) => {}
                ("client_max_window_bits", None) => {}
                ("client_max_window_bits", Some(value)) => {
                    window_bits(value)?;
                }
                ("server_max_window_bits", Some(value)) => window = Some(window_bits(value)?),
                _ => return None,
            }
        }
        Some(Self { server_max_window_bits: window })
    }

    /// Whether the client accepts the window with which messages are compressed. Otherwise it gets plain messages,
    /// since each message is compressed once for all clients.
    pub fn takes_compressed(self) -> bool {
        self.server_max_window_bits.is_none_or(|bits| bits >= WINDOW_BITS)
    }
}

/// As it stands in the answer to the handshake. Neither side remembers a message for the next.
impl fmt::Display for AcceptedExtension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("permessage-deflate; server_no_context_takeover; client_no_context_takeover")?;
        self.server_max_window_bits
            .map_or(Ok(()), |bits| write!(f, "; server_max_window_bits={bits}"))
    }
}

/// Optional whitespace, as RFC 9110 section 5.6.3 has it.
const WHITESPACE: [char; 2] = [' ', '\t'];

/// The parts between `separator`s that do not stand in quotes. One whose quotes do not end is the last.
fn split_unquoted(list: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    list.split(move |c| {
        let escapes = is_quoted && c == '\\' && !is_escaped;
        if c == '"' && !is_escaped {
            is_quoted = !is_quoted;
        }
        is_escaped = escapes;
        c == separator && !is_quoted
    })
}

/// A value without the quotes that it may stand in (RFC 6455, section 9.1). One with escapes is no number,
/// and those of a number need none.
fn unquote(value: &str) -> Option<&str> {
    match value.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"'),
        None => Some(value),
    }
}

/// Section 7.1.2.1: 8 to 15, without leading zeros.
fn window_bits(value: &str) -> Option<u8> {
    let is_plain = value.bytes().all(|byte| byte.is_ascii_digit()) && !value.starts_with('0');
    value.parse().ok().filter(|bits| is_plain && (8..=WINDOW_BITS).contains(bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";

    fn accepted(lines: &[&str]) -> Option<String> {
        AcceptedExtension::first_acceptable(lines.iter().map(|line| line.as_bytes()))
            .map(|one| one.to_string())
    }

    #[test]
    fn good_offers_are_accepted() {
        for offer in [
            "permessage-deflate",
            // Chromium and Firefox, Node's ws, Python's websockets.
            "permessage-deflate; client_max_window_bits",
            "permessage-deflate;server_no_context_takeover;client_no_context_takeover",
            "permessage-deflate; client_max_window_bits=8",
            "permessage-deflate; client_max_window_bits = \"15\"",
            // Safari once.
            "x-webkit-deflate-frame, permessage-deflate",
            "foo; a=\"x, permessage-deflate; b\", permessage-deflate",
            " permessage-deflate ,",
            ",, permessage-deflate; bad, permessage-deflate",
        ] {
            assert_eq!(accepted(&[offer]).as_deref(), Some(BOTH), "{offer}");
        }
        assert_eq!(accepted(&["foo", "bar,permessage-deflate"]).as_deref(), Some(BOTH));
        assert_eq!(
            accepted(&["permessage-deflate; x", "permessage-deflate"]).as_deref(),
            Some(BOTH)
        );
    }

    #[test]
    fn a_window_is_named_and_kept_to() {
        for (offer, bits) in [
            ("permessage-deflate; server_max_window_bits=15", 15),
            ("permessage-deflate; server_max_window_bits=\"10\"", 10),
            ("permessage-deflate; client_max_window_bits; server_max_window_bits=8", 8),
            (
                "permessage-deflate; server_max_window_bits=9, permessage-deflate; server_max_window_bits=15",
                9,
            ),
        ] {
            let one = AcceptedExtension::first_acceptable([offer.as_bytes()]).unwrap();
            assert_eq!(
                one.to_string(),
                format!("{BOTH}; server_max_window_bits={bits}"),
                "{offer}"
            );
            assert_eq!(one.takes_compressed(), bits == 15, "{offer}");
        }
        assert!(
            AcceptedExtension::first_acceptable([&b"permessage-deflate"[..]])
                .unwrap()
                .takes_compressed()
        );
    }

    #[test]
    fn other_offers_are_passed_over() {
        for parameters in [
            "x",
            "x=1",
            "",
            "server_no_context_takeover=1",
            "server_no_context_takeover=",
            "client_no_context_takeover=\"\"",
            "client_no_context_takeover; client_no_context_takeover",
            "server_no_context_takeover; server_no_context_takeover",
            "client_max_window_bits; client_max_window_bits=9",
            "server_max_window_bits",
            "server_max_window_bits=",
            "server_max_window_bits=7",
            "server_max_window_bits=16",
            "server_max_window_bits=010",
            "server_max_window_bits=08",
            "server_max_window_bits=+9",
            "server_max_window_bits=-9",
            "server_max_window_bits=9.0",
            "server_max_window_bits=256",
            "server_max_window_bits=9; server_max_window_bits=9",
            "server_max_window_bits=\"9",
            "server_max_window_bits=9\"",
            "client_max_window_bits=7",
            "client_max_window_bits=16",
            "client_max_window_bits=015",
            "client_max_window_bits=",
            "Server_No_Context_Takeover",
        ] {
            let offer = format!("permessage-deflate; {parameters}");
            assert_eq!(accepted(&[&offer]), None, "{offer}");
            let both = format!("{offer}, permessage-deflate");
            let is_open = parameters.matches('"').count() % 2 == 1;
            assert_eq!(accepted(&[&both]).is_some(), !is_open, "{both}");
        }
        for other in
            ["", "deflate", "x-webkit-deflate-frame", "permessage-deflate2", "permessage-bzip2"]
        {
            assert_eq!(accepted(&[other]), None, "{other}");
        }
        assert_eq!(AcceptedExtension::first_acceptable([&b"permessage-deflate; \xff"[..]]), None);
    }
}
