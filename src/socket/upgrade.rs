//! From a request to a socket: the WebSocket handshake of RFC 6455 section 4.2, and whether the app lets
//! the socket in. A refusal by the app is told over the socket, for that is the only place where clients
//! can read it.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{
    CONNECTION, HeaderMap, HeaderName, HeaderValue, ORIGIN, SEC_WEBSOCKET_ACCEPT,
    SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use sha1::{Digest, Sha1};

use crate::app::{App, Apps};
use crate::metrics::Reason;
use crate::protocol::error::{Error, close};
use crate::protocol::query::Query;

/// Who gets in, decided while the request is at hand and carried out once the stream is.
pub type Admission = Result<Arc<App>, Error>;

/// Why there is no handshake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoHandshake {
    /// An ordinary request.
    NotAnUpgrade,
    /// A `Sec-WebSocket-Version` other than 13: answered 426.
    Version,
    /// No `Sec-WebSocket-Key`, or not 16 bytes of it.
    Key,
}

/// The headers of the 101 that `request` is to be answered with.
pub fn shake_hands(request: &HeaderMap) -> Result<Vec<(HeaderName, HeaderValue)>, NoHandshake> {
    if !has_token(request, &CONNECTION, "upgrade") || !has_token(request, &UPGRADE, "websocket") {
        return Err(NoHandshake::NotAnUpgrade);
    }
    if request.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(NoHandshake::Version);
    }
    let key = request.get(SEC_WEBSOCKET_KEY).ok_or(NoHandshake::Key)?.as_bytes().trim_ascii();
    if STANDARD.decode(key).map_or(0, |key| key.len()) != 16 {
        return Err(NoHandshake::Key);
    }
    let accept = Sha1::new()
        .chain_update(key)
        .chain_update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11")
        .finalize();
    let accept = HeaderValue::try_from(STANDARD.encode(accept)).map_err(|_| NoHandshake::Key)?;
    let mut headers = vec![
        (CONNECTION, HeaderValue::from_static("Upgrade")),
        (UPGRADE, HeaderValue::from_static("websocket")),
        (SEC_WEBSOCKET_ACCEPT, accept),
    ];
    // Swift insists on an answer to what it offers; browsers fail on one they did not offer.
    headers.extend(pusher_protocol(request).map(|offered| (SEC_WEBSOCKET_PROTOCOL, offered)));
    Ok(headers)
}

fn pusher_protocol(request: &HeaderMap) -> Option<HeaderValue> {
    let offers = request.get_all(SEC_WEBSOCKET_PROTOCOL).iter();
    let mut offers = offers.filter_map(|value| value.to_str().ok()).flat_map(|v| v.split(','));
    let ours = offers.find(|one| one.trim().starts_with("pusher-channels-protocol-"))?;
    HeaderValue::from_str(ours.trim()).ok()
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|one| one.trim().eq_ignore_ascii_case(token))
}

/// Whether the app with that key lets in a socket that asks with these parameters and headers.
pub fn admit(
    apps: &Apps,
    key: &str,
    query: &Query<'_>,
    headers: &HeaderMap,
    tls: bool,
) -> Admission {
    let app = apps.by_key(key).ok_or(close::UNKNOWN_APP)?;
    if !app.enabled {
        return Err(close::DISABLED);
    }
    if app.require_tls && !tls {
        return Err(close::TLS_ONLY);
    }
    // Clients of protocols 4 to 7 are in use; one that names none is taken for the newest (case H04).
    if query.get("protocol").is_some_and(|protocol| !matches!(protocol, "4" | "5" | "6" | "7")) {
        return Err(close::UNSUPPORTED_PROTOCOL);
    }
    let origin = headers.get(ORIGIN).map(|origin| origin.to_str().unwrap_or_default());
    if !app.allows_origin(origin) {
        return Err(close::ORIGIN);
    }
    Ok(app.clone())
}

/// The word for why [`admit`] refused.
pub fn reason(error: &Error) -> Reason {
    match error.code {
        4000 => Reason::TlsOnly,
        4001 => Reason::UnknownApp,
        4003 => Reason::Disabled,
        4007 => Reason::Version,
        4100 => Reason::Lookup,
        _ => Reason::Origin,
    }
}

#[cfg(test)]
mod tests {
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
        let answer = shake_hands(&offer(&[])).unwrap();
        assert_eq!(answer.len(), 3, "no protocol that was not offered");
        assert_eq!(answer[2].1, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        let answer = shake_hands(&offer(&["chat", "x, pusher-channels-protocol-7"])).unwrap();
        assert_eq!(answer[3].1, "pusher-channels-protocol-7");
        for (header, value, refusal) in [
            (UPGRADE, "h2c", NoHandshake::NotAnUpgrade),
            (SEC_WEBSOCKET_VERSION, "8", NoHandshake::Version),
            (SEC_WEBSOCKET_KEY, "dGhl", NoHandshake::Key),
        ] {
            let mut headers = offer(&[]);
            headers.insert(header, HeaderValue::from_static(value));
            assert_eq!(shake_hands(&headers), Err(refusal));
        }
    }
}
