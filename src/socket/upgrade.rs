//! From a request to a socket: the WebSocket handshake of RFC 6455 section 4.2, and whether the app admits the
//! socket. A refusal by the app is sent over the socket, the only place where clients can read it.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{
    CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, ORIGIN, SEC_WEBSOCKET_EXTENSIONS,
    SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use sha1::{Digest, Sha1};

use crate::app::{App, Apps};
use crate::hub::deflated::Compression;
use crate::metrics::Reason;
use crate::protocol::error::{Error, close};
use crate::protocol::extension::AcceptedExtension;
use crate::protocol::query::Query;

/// The app's decision, made while the request is at hand and carried out once the stream is.
pub type Admission = Result<Arc<App>, Error>;

/// Why there is no handshake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoHandshake {
    /// An ordinary request.
    NotAnUpgrade,
    /// A `Sec-WebSocket-Version` other than 13: answered 426.
    Version,
    /// No `Sec-WebSocket-Key`.
    NoKey,
    /// One that is not 16 bytes, or several.
    Key,
}

/// The 101 that `request` is to be answered with, to the byte. Its `Connection` is `Upgrade` alone, whatever the
/// client sent and even while the server stops: many clients compare the header as a whole. Names are written
/// in capitals, for small clients compare those too. From a trusted proxy a key may be missing, as it is over
/// HTTP/2 (RFC 8441), and is then not accepted in so many words.
pub fn shake_hands(request: &HeaderMap, is_trusted: bool) -> Result<Vec<u8>, NoHandshake> {
    if !has_token(request, &CONNECTION, "upgrade") || !has_token(request, &UPGRADE, "websocket") {
        return Err(NoHandshake::NotAnUpgrade);
    }
    if request.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(NoHandshake::Version);
    }
    let mut keys = request.get_all(SEC_WEBSOCKET_KEY).iter();
    let key = keys.next().map(|key| key.as_bytes().trim_ascii());
    // RFC 6455 section 11.3.1: no more than one.
    if keys.next().is_some() {
        return Err(NoHandshake::Key);
    }
    if key.is_none() && !is_trusted {
        return Err(NoHandshake::NoKey);
    }
    // Swift insists on an answer to what it offers; browsers fail on one they did not offer.
    switching_answer(key, pusher_protocol(request))
}

/// The 101 for a client with that key, if it has one, and that protocol, if it offers one.
pub fn switching_answer(key: Option<&[u8]>, offered: Option<&str>) -> Result<Vec<u8>, NoHandshake> {
    let mut answer = Vec::with_capacity(192);
    answer.extend_from_slice(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket",
    );
    if let Some(key) = key {
        answer.extend_from_slice(b"\r\nSec-WebSocket-Accept: ");
        push_accept(&mut answer, key)?;
    }
    if let Some(offered) = offered {
        answer.extend_from_slice(b"\r\nSec-WebSocket-Protocol: ");
        answer.extend_from_slice(offered.as_bytes());
    }
    answer.extend_from_slice(b"\r\n\r\n");
    Ok(answer)
}

/// Accepts an offer of compression for a socket that the app lets in, and adds that to the `answer`.
/// `offers` are the lines of `Sec-WebSocket-Extensions`.
pub fn accept_compression<'a>(
    app: &App,
    offers: impl IntoIterator<Item = &'a [u8]>,
    answer: &mut Vec<u8>,
) -> Compression {
    if !app.features.compression {
        return Compression::Off;
    }
    let Some(accepted) = AcceptedExtension::first_acceptable(offers) else {
        return Compression::Off;
    };
    // In front of the empty line that ends the answer.
    answer.truncate(answer.len().saturating_sub(2));
    answer.extend_from_slice(format!("Sec-WebSocket-Extensions: {accepted}\r\n\r\n").as_bytes());
    if accepted.takes_compressed() { Compression::Both } else { Compression::Incoming }
}

/// Appends what proves that `key` was read (RFC 6455, section 4.2.2).
fn push_accept(answer: &mut Vec<u8>, key: &[u8]) -> Result<(), NoHandshake> {
    // As many as may be said of what four digits of Base64 hold at most.
    let mut nonce = [0; 18];
    if STANDARD.decode_slice(key, &mut nonce) != Ok(16) {
        return Err(NoHandshake::Key);
    }
    let hash = Sha1::new().chain_update(key).chain_update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let mut proof = [0; 28];
    // 20 bytes of SHA-1 are 28 characters in Base64, exactly the length of `proof`.
    let length = STANDARD.encode_slice(hash.finalize(), &mut proof).unwrap_or_default();
    answer.extend_from_slice(proof.get(..length).unwrap_or_default());
    Ok(())
}

/// The lines of a request that offer compression.
pub fn compression_offers(request: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    request.get_all(SEC_WEBSOCKET_EXTENSIONS).iter().map(|line| line.as_bytes())
}

/// The first offer of `pusher-channels-protocol-…`, whatever its number: which version is spoken
/// stands in the query.
fn pusher_protocol(request: &HeaderMap) -> Option<&str> {
    let offers = request.get_all(SEC_WEBSOCKET_PROTOCOL).iter();
    let mut offers = offers.filter_map(|value| value.to_str().ok()).flat_map(|v| v.split(','));
    offers
        .find_map(|one| Some(one.trim()).filter(|one| one.starts_with("pusher-channels-protocol-")))
}

/// How long the greeting waits behind the answer to a handshake that a proxy made of an HTTP/2 stream. Apache (2.4.71)
/// holds back what it reads together with the answer until the client speaks, and pusher-js waits to be greeted
/// first; being read apart takes more than being written apart.
const GREETING_PAUSE: Duration = Duration::from_millis(20);

/// That pause, where `request` may have come by such a proxy: no client of HTTP/1 gives its handshake a body's length,
/// and few proxies say their name.
pub fn greeting_pause(request: &HeaderMap) -> Option<Duration> {
    let bridged =
        request.contains_key(CONTENT_LENGTH) || request.contains_key("x-forwarded-server");
    bridged.then_some(GREETING_PAUSE)
}

/// Whether a list in the header contains the token, in any case (RFC 9110 section 5.6.1).
fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    let mut tokens = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    tokens.any(|one| one.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

/// The facts by which an app admits a socket.
#[derive(Clone, Copy, Debug)]
pub struct HandshakeTerms<'a> {
    /// The version of the Pusher protocol that it asks for.
    pub protocol: Option<&'a str>,
    /// The page that it is of.
    pub origin: Option<&'a str>,
    /// It comes by TLS.
    pub tls: bool,
}

impl<'a> HandshakeTerms<'a> {
    /// The terms of a handshake, from its query and headers.
    pub fn new(query: &'a Query<'_>, headers: &'a HeaderMap, tls: bool) -> Self {
        // An origin that is not text matches no pattern, as if it were empty.
        let origin = headers.get(ORIGIN).map(|origin| origin.to_str().unwrap_or_default());
        Self { protocol: query.get("protocol"), origin, tls }
    }
}

/// Decides whether the app with that key admits a socket.
pub fn admit(apps: &Apps, key: &str, terms: HandshakeTerms<'_>) -> Admission {
    let app = apps.by_key(key).ok_or(close::UNKNOWN_APP)?;
    if !app.enabled {
        return Err(close::DISABLED);
    }
    // Before the origin: a page over plain HTTP has a remedy of its own.
    if app.require_tls && !terms.tls {
        return Err(close::TLS_ONLY);
    }
    // Clients of protocols 4 to 7 are in use; one that names none is taken for the newest (case H04).
    if terms.protocol.is_some_and(|protocol| !matches!(protocol, "4" | "5" | "6" | "7")) {
        return Err(close::UNSUPPORTED_PROTOCOL);
    }
    if !app.allows_origin(terms.origin) {
        return Err(close::ORIGIN);
    }
    Ok(app.clone())
}

/// The word for why a socket was not let in.
pub fn reason(error: &Error) -> Reason {
    match error.code {
        _ if *error == close::STOPPING => Reason::Stopping,
        4000 => Reason::TlsOnly,
        4001 => Reason::UnknownApp,
        4003 => Reason::Disabled,
        4004 => Reason::Quota,
        4007 => Reason::Version,
        4009 if *error == close::RESUME_TOKEN => Reason::ResumeToken,
        4100 if *error == close::LOOKUP_AWAY => Reason::Lookup,
        4100 => Reason::Handshakes,
        _ => Reason::Origin,
    }
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn offer(protocols: &[&'static str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.append(CONNECTION, HeaderValue::from_static("keep-alive, Upgrade"));
        headers.append(UPGRADE, HeaderValue::from_static("WebSocket"));
        headers.append(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        // The key and the answer to it are those of RFC 6455 section 1.3.
        headers.append(SEC_WEBSOCKET_KEY, HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ=="));
        for protocol in protocols {
            headers.append(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
        }
        headers
    }

    #[test]
    fn hands_are_shaken_as_the_rfc_has_it() {
        let answer =
            |protocols| String::from_utf8(shake_hands(&offer(protocols), false).unwrap()).unwrap();
        assert_eq!(
            answer(&[]),
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
            "no protocol that was not offered"
        );
        let offered = answer(&["chat", "x, pusher-channels-protocol-7"]);
        assert!(
            offered.ends_with("\r\nSec-WebSocket-Protocol: pusher-channels-protocol-7\r\n\r\n")
        );
        for (header, value, refusal) in [
            (UPGRADE, "h2c", NoHandshake::NotAnUpgrade),
            (SEC_WEBSOCKET_VERSION, "8", NoHandshake::Version),
            (SEC_WEBSOCKET_KEY, "dGhl", NoHandshake::Key),
        ] {
            let mut headers = offer(&[]);
            headers.insert(header, HeaderValue::from_static(value));
            assert_eq!(shake_hands(&headers, true), Err(refusal));
        }
        let mut keyless = offer(&[]);
        keyless.remove(SEC_WEBSOCKET_KEY);
        assert_eq!(shake_hands(&keyless, false), Err(NoHandshake::NoKey));
        let answer = String::from_utf8(shake_hands(&keyless, true).unwrap()).unwrap();
        assert!(answer.ends_with("\r\nUpgrade: websocket\r\n\r\n"), "{answer}");
    }
}
