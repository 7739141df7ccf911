//! Input on an HTTP/1.1 port that is not a request: recognises what it is, and answers with an explanation, where hyper
//! would send an empty response or none.

use tokio::io::AsyncWriteExt;

use crate::hub::stream::Stream;
use crate::metrics::Unreadable;

/// Bytes of the largest request head.
pub(super) const MAX_HEAD: usize = 16 << 10;

/// Headers that hyper reads at most.
/// Its own default, named here for the message.
const MAX_HEADERS: usize = 100;

/// The kind of what was left in the buffer when reading it failed; `None` where the client only went.
pub(super) fn classify(error: &hyper::Error, left: &[u8]) -> Option<Unreadable> {
    if left.starts_with(b"PRI * HTTP/2") {
        return Some(Unreadable::Http2);
    }
    if !error.is_parse() {
        return None;
    }
    Some(match left {
        // The record of a handshake, of any version of TLS (RFC 8446, section 5.1).
        [0x16, 3, ..] => Unreadable::Tls,
        _ if left.starts_with(b"PROXY ") => Unreadable::Proxy,
        // The second version's, of which hyper has passed over the empty lines.
        _ if left.trim_ascii_start().starts_with(b"\0\r\nQUIT\n") => Unreadable::Proxy,
        _ if error.is_parse_too_large() && left.len() >= MAX_HEAD => Unreadable::HeadTooLarge,
        _ if error.is_parse_too_large() => Unreadable::TooManyHeaders,
        _ => Unreadable::Garbage,
    })
}

/// The status, and the explanation for the response and the log.
pub(super) fn words(kind: Unreadable) -> (u16, &'static str, String) {
    const BAD: (u16, &str) = (400, "Bad Request");
    const FIELDS: (u16, &str) = (431, "Request Header Fields Too Large");
    let ((status, reason), text) = match kind {
        Unreadable::Tls => (
            BAD,
            "This port speaks HTTP without TLS: connect with http or ws, or set server.tls."
                .to_owned(),
        ),
        Unreadable::Http2 => (
            (505, "HTTP Version Not Supported"),
            "This port speaks HTTP/1.1, not HTTP/2: set the proxy to HTTP/1.1 for its backend."
                .to_owned(),
        ),
        Unreadable::Proxy => (
            BAD,
            "A header of the PROXY protocol came: set server.proxy_protocol and \
             server.trusted_proxies, or have the proxy leave it out."
                .to_owned(),
        ),
        Unreadable::HeadTooLarge => {
            (FIELDS, format!("The head of a request may have {MAX_HEAD} bytes."))
        }
        Unreadable::TooManyHeaders => {
            (FIELDS, format!("A request may have {MAX_HEADERS} headers."))
        }
        Unreadable::Garbage => (BAD, "This is no request of HTTP/1.1.".to_owned()),
    };
    (status, reason, text)
}

/// Sends the response, which the client may not be able to read.
pub(super) async fn answer(stream: &mut Stream, kind: Unreadable) {
    let (status, reason, text) = words(kind);
    let body = serde_json::json!({ "error": text, "code": status }).to_string();
    let answer = format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    );
    if stream.write_all(answer.as_bytes()).await.is_ok() {
        // The client may have gone; the connection is closed in either case.
        let _ = stream.flush().await;
    }
}

/// Whether `bytes` are the empty response that hyper writes by itself to an unreadable request. Our own responses
/// of such a status have a content type.
pub(super) fn is_empty_refusal(bytes: &[u8]) -> bool {
    let status = bytes.strip_prefix(b"HTTP/1.").and_then(|rest| rest.get(2..5));
    matches!(status, Some(b"400" | b"414" | b"431"))
        && memchr::memmem::find(bytes, b"content-type").is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hypers_own_refusals_are_told_from_ours() {
        assert!(is_empty_refusal(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n"));
        assert!(is_empty_refusal(b"HTTP/1.0 431 x\r\nconnection: close\r\n\r\n"));
        for ours in [
            &b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n\r\n{}"[..],
            b"HTTP/1.1 204 No Content\r\n\r\n",
            b"",
        ] {
            assert!(!is_empty_refusal(ours));
        }
    }
}
