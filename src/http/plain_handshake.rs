//! Fast path for handshakes as browsers send them without a proxy: answered without parsing the head into a request.
//! Anything refused or unusual is left untouched for `handshake.rs`.

use std::time::Instant;

use httparse::Header;

use super::exchange::is_one_host;
use super::handshake::Upgrade;
use super::{AddressRole, HttpService};
use crate::protocol::query::find_plain;
use crate::protocol::resume_token::PresentedToken;
use crate::socket::upgrade::{self, HandshakeTerms};

/// A `GET` as it came.
#[derive(Clone, Copy, Debug)]
pub struct PlainHandshake<'a> {
    /// Path and query.
    pub target: &'a str,
    pub headers: &'a [Header<'a>],
}

/// The headers that a handshake needs.
#[derive(Debug, Default)]
struct HandshakeHeaders<'a> {
    /// `Host`, which a request must have once.
    host: Option<&'a [u8]>,
    /// `Connection`, which must name `upgrade`.
    connection: Option<&'a [u8]>,
    /// `Upgrade`, which must be `websocket`.
    upgrade: Option<&'a [u8]>,
    /// `Sec-WebSocket-Version`, which must be 13.
    version: Option<&'a [u8]>,
    /// `Sec-WebSocket-Key`: 16 random bytes in Base64.
    key: Option<&'a [u8]>,
    /// `Origin`: the page, if it is a browser.
    origin: Option<&'a [u8]>,
    /// `Sec-WebSocket-Extensions`: the offers of compression.
    extensions: Option<&'a [u8]>,
}

impl<'a> HandshakeHeaders<'a> {
    /// None where one is there twice, or there is one that only some clients send.
    fn find(headers: &'a [Header<'a>]) -> Option<Self> {
        let mut found = Self::default();
        for Header { name, value } in headers {
            // By length first, for most are none of these.
            let place = match name.len() {
                4 if name.eq_ignore_ascii_case("host") => &mut found.host,
                10 if name.eq_ignore_ascii_case("connection") => &mut found.connection,
                7 if name.eq_ignore_ascii_case("upgrade") => &mut found.upgrade,
                21 if name.eq_ignore_ascii_case("sec-websocket-version") => &mut found.version,
                17 if name.eq_ignore_ascii_case("sec-websocket-key") => &mut found.key,
                6 if name.eq_ignore_ascii_case("origin") => &mut found.origin,
                24 if name.eq_ignore_ascii_case("sec-websocket-extensions") => {
                    &mut found.extensions
                }
                22 if name.eq_ignore_ascii_case("sec-websocket-protocol") => return None,
                // As of proxies that carry HTTP/2.
                14 if name.eq_ignore_ascii_case("content-length") => return None,
                18 if name.eq_ignore_ascii_case("x-forwarded-server") => return None,
                _ => continue,
            };
            if place.replace(*value).is_some() {
                return None;
            }
        }
        Some(found)
    }

    /// Whether they ask for a WebSocket of version 13.
    fn ask_for_socket(&self) -> bool {
        let mut tokens =
            self.connection.into_iter().flat_map(|all| all.split(|byte| *byte == b','));
        self.host.is_some_and(is_one_host)
            && tokens.any(|token| token.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
            && self.upgrade.is_some_and(|name| name.eq_ignore_ascii_case(b"websocket"))
            && self.version == Some(b"13")
    }
}

impl HttpService {
    /// The socket that a plain handshake asks for, if it is let in. Else nothing has happened, and nothing is counted.
    pub fn upgrade_plain(&self, request: PlainHandshake<'_>) -> Option<Upgrade> {
        let (path, query) = request.target.split_once('?').unwrap_or((request.target, ""));
        let (shared, http) = (&self.http.node.shared, &self.http);
        let is_trusted = http.trusted_proxies.iter().any(|network| network.contains(self.peer));
        if self.role == AddressRole::Api || is_trusted {
            return None;
        }
        let inner = path.strip_prefix(&*http.prefix)?;
        let (token, key) = match inner.strip_prefix("/app/") {
            Some(key) => (None, key),
            None => {
                let (token, key) = inner.strip_prefix("/resume/")?.split_once("/app/")?;
                (Some(token).filter(|token| is_plain(token)), key)
            }
        };
        // Of other characters, some make a target that is none.
        if !is_plain(key)
            || !query.bytes().all(|byte| is_plain_byte(byte) || b"=&+,:".contains(&byte))
        {
            return None;
        }
        let headers = HandshakeHeaders::find(request.headers)?;
        if !headers.ask_for_socket() {
            return None;
        }
        let mut answer = upgrade::switching_answer(Some(headers.key?.trim_ascii()), None).ok()?;
        let [protocol, client] = find_plain(query, ["protocol", "client"])?;
        let is_ascii = headers.origin.is_none_or(<[u8]>::is_ascii);
        let origin =
            headers.origin.map(std::str::from_utf8).transpose().ok().filter(|_| is_ascii)?;
        let terms = HandshakeTerms { protocol, origin, tls: self.tls };
        let app = upgrade::admit(&shared.apps.load(), key, terms).ok()?;
        let resumes = match inner.starts_with("/resume/") && !app.features.resume.is_zero() {
            true => Some(PresentedToken::parse(token?)?),
            false => None,
        };
        // Last, for it counts.
        if !shared.addresses.handshakes.admit(self.peer, Instant::now()) {
            return None;
        }
        let compression = upgrade::accept_compression(&app, headers.extensions, &mut answer);
        Some(Upgrade {
            admission: Ok(app),
            resumes,
            address: self.peer,
            answer,
            compression,
            pause: None,
            asked: None,
            answers_pings: client == Some("js"),
        })
    }
}

/// Whether a byte needs no decoding (RFC 3986 section 2.3, "unreserved").
fn is_plain_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte)
}

/// Whether a part of the path needs no decoding.
fn is_plain(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(is_plain_byte)
}
