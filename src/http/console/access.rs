//! Access to the debug console: for requests from this machine to a loopback name, not through a proxy, and holders
//! of the token, with five attempts a minute.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper::Version;
use hyper::header::{AUTHORIZATION, CONNECTION, COOKIE, HOST, HeaderMap, ORIGIN};
use hyper::http::request::Parts;
use hyper::http::uri::Authority;

use crate::config::{self, ConsoleAccess};
use crate::console::unix_millis;
use crate::protocol::auth::Signer;

/// How long a login lasts; seconds. A working day, so that the token is typed once a day.
pub(super) const SESSION_SECONDS: u64 = 12 * 3600;

/// The cookie that says so.
pub(super) const COOKIE_NAME: &str = "fanfare_console";

/// Wrong tokens from one address within a minute after which none is looked at.
/// Five tries a minute against 16 characters and more is no danger.
const MAX_TRIES: u32 = 5;
/// The time in which an address has its attempts at the token.
const TRIES_FOR: Duration = Duration::from_secs(60);

/// Addresses whose tries are remembered; with more, those of all count together.
/// Otherwise a flood of addresses would fill the memory, or make room for more tries.
const MAX_ADDRESSES: usize = 4096;

/// Headers that only what stands between a client and this server adds.
/// The list is of those that common proxies, CDNs and load balancers set.
const FORWARDING: [&str; 15] = [
    "forwarded",
    "via",
    "x-forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-forwarded-server",
    "x-real-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-original-forwarded-for",
    "true-client-ip",
    "cf-connecting-ip",
    "fastly-client-ip",
];

/// How a connection is there, as far as that decides.
#[derive(Debug, Clone, Copy)]
pub(super) struct Way {
    /// The address of the connection's other side.
    pub peer: IpAddr,
    /// The client, as far as proxies can be believed.
    pub client: IpAddr,
    /// Over TLS all the way from the client, as far as proxies can be believed.
    pub tls: bool,
    /// Over a Unix socket, to which only a proxy connects.
    pub unix: bool,
}

/// The decision on a request.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(super) enum Entrance {
    /// Everything is shown.
    Open,
    /// Once the token was given.
    Locked,
    /// There is no console.
    Off,
    /// Not from there; why, for a person.
    Closed(&'static str),
}

/// The result of a login.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(super) enum Login {
    /// It is the token.
    Right,
    /// It is not.
    Wrong,
    /// Not looked at.
    TooMany,
}

/// The rules, and what is remembered of those who guess.
#[derive(Debug)]
pub struct ConsoleGate {
    /// As the settings have it.
    access: ConsoleAccess,
    /// For a network that encrypts by other means.
    allow_plain_http: bool,
    /// Keyed by the token, which itself is not kept.
    signer: Signer,
    /// The id of the app that was made for this run, if there is one.
    pub(super) made_app: Option<String>,
    /// Where sockets are, if the API has an address of its own, and the console with it.
    pub(super) sockets_port: Option<u16>,
    /// Addresses with wrong tries within the last minute.
    tries: Mutex<HashMap<IpAddr, Tries>>,
}

/// The attempts of one address.
#[derive(Debug)]
struct Tries {
    /// When the first of them was.
    since: Instant,
    /// How many there were.
    wrong: u32,
}

/// The response to a visitor from elsewhere, if there is no token.
const NOT_LOOPBACK: &str = "The console is for this machine alone: open it at a loopback address, and not through a proxy. \
     console.access = \"on\" with a console.token opens it to others.";

/// The response to a login over plain HTTP.
const PLAIN: &str = "The console takes its token over HTTPS only. console.allow_plain_http = true takes it over plain HTTP \
     too, where others on the way can read it.";

impl ConsoleGate {
    /// The token is kept as the key of a MAC, so that it can be compared and not read.
    pub fn new(
        config: &config::ConsoleConfig,
        made_app: Option<String>,
        sockets_port: Option<u16>,
    ) -> Self {
        Self {
            made_app,
            sockets_port,
            access: config.access,
            allow_plain_http: config.allow_plain_http,
            signer: Signer::new(&config.token),
            tries: Mutex::default(),
        }
    }

    /// Else it is by where the request comes from.
    pub(super) fn is_by_token(&self) -> bool {
        self.access == ConsoleAccess::On
    }

    /// Decides whether a request may come in. The time it takes does not depend on how much of a wrong token is
    /// right.
    pub(super) fn admit(&self, parts: &Parts, way: Way) -> Entrance {
        match self.access {
            ConsoleAccess::Off => Entrance::Off,
            ConsoleAccess::Loopback if is_direct(parts, way) => Entrance::Open,
            ConsoleAccess::Loopback => Entrance::Closed(NOT_LOOPBACK),
            ConsoleAccess::On => {
                if !way.tls && !self.allow_plain_http && !is_direct(parts, way) {
                    return Entrance::Closed(PLAIN);
                }
                // A cookie costs no try; a bearer token does.
                let is_known = self.has_session(&parts.headers)
                    || bearer(&parts.headers)
                        .is_some_and(|token| self.log_in(token, way.client) == Login::Right);
                if is_known { Entrance::Open } else { Entrance::Locked }
            }
        }
    }

    /// Looks at a token, unless too many wrong ones came from there.
    /// Counted by address, so that one guesser does not lock everybody out.
    pub(super) fn log_in(&self, token: &str, client: IpAddr) -> Login {
        let now = Instant::now();
        let mut tries = self.tries.lock().unwrap_or_else(PoisonError::into_inner);
        tries.retain(|_, tries| now.duration_since(tries.since) < TRIES_FOR);
        let address = network(client);
        let is_crowded = tries.len() >= MAX_ADDRESSES && !tries.contains_key(&address);
        let address = if is_crowded { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { address };
        let of_address = tries.entry(address).or_insert(Tries { since: now, wrong: 0 });
        // Also where it would have been right: else guessing could go on.
        if of_address.wrong >= MAX_TRIES {
            return Login::TooMany;
        }
        if self.is_token(token) {
            tries.remove(&address);
            return Login::Right;
        }
        of_address.wrong += 1;
        Login::Wrong
    }

    /// In constant time: what is compared are MACs, and not the tokens.
    fn is_token(&self, token: &str) -> bool {
        const WORD: &str = "fanfare console token";
        self.signer.verify(&[WORD], &Signer::new(token).sign(&[WORD]))
    }

    /// The value of a login cookie: when it expires, and a MAC over that. The server keeps no sessions, and a
    /// restart ends none.
    pub(super) fn session(&self) -> String {
        let end = (unix_millis() / 1000 + SESSION_SECONDS).to_string();
        format!("{end}.{}", self.signer.sign(&[SESSION, &end]))
    }

    /// Whether the request carries a cookie of this gate that has not expired.
    fn has_session(&self, headers: &HeaderMap) -> bool {
        // A browser may send several cookies of the name, with different paths.
        let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
        let mut pairs = cookies.flat_map(|text| text.split(';')).filter_map(|pair| {
            let (name, value) = pair.trim().split_once('=')?;
            (name == COOKIE_NAME).then_some(value)
        });
        pairs.any(|value| {
            let Some((end, mac)) = value.split_once('.') else { return false };
            let is_over = end.parse::<u64>().is_ok_and(|seconds| seconds <= unix_millis() / 1000);
            self.signer.verify(&[SESSION, end], mac) && !is_over
        })
    }
}

/// Another text than the token's own, so that neither stands for the other.
const SESSION: &str = "fanfare console session until ";

/// For commands, which keep no cookies.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The network that attempts are counted for: an IPv6 /64 has more addresses than there are attempts.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

/// Whether a request came straight from this machine to a loopback address, as far as can be seen. Proxies on this
/// machine come from loopback too, and a foreign site's name may resolve to this address.
pub(super) fn is_direct(parts: &Parts, way: Way) -> bool {
    let headers = &parts.headers;
    // nginx speaks HTTP/1.0 by default, and if it is configured for WebSockets it sends an upgrade with each
    // request. So HTTP/1.0, or an `Upgrade` that is not for a WebSocket, is taken as the sign of a proxy on this
    // machine.
    let is_like_proxy = parts.version == Version::HTTP_10
        || headers.get_all(CONNECTION).iter().any(|value| {
            // A header that is not text names no proxy.
            let text = value.to_str().unwrap_or_default();
            text.split(',').any(|word| word.trim().eq_ignore_ascii_case("upgrade"))
        });
    !way.unix
        && way.peer.to_canonical().is_loopback()
        && !is_like_proxy
        && !FORWARDING.iter().any(|name| headers.contains_key(*name))
        // A page on this machine's own browser may have been led here under a stranger's name (DNS rebinding).
        && parts.uri.authority().is_none_or(is_loopback_name)
        && host(headers).is_some_and(|host| is_loopback_name(&host))
}

/// The only `Host` of a request. Several are a sign of request smuggling, and count as none.
pub(super) fn host(headers: &HeaderMap) -> Option<Authority> {
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next()?.to_str().ok()?;
    if hosts.next().is_some() || host.contains('@') {
        return None;
    }
    host.parse().ok()
}

/// By name: a name that resolves to loopback is not enough.
fn is_loopback_name(authority: &Authority) -> bool {
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    match host.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().is_loopback(),
        Err(_) => host.eq_ignore_ascii_case("localhost"),
    }
}

/// Whether a browser says that the request comes from a page of another origin: by `Sec-Fetch-Site`, otherwise by
/// `Origin`. Programs send neither.
pub(super) fn is_from_elsewhere(headers: &HeaderMap) -> bool {
    let site = headers.get("sec-fetch-site").and_then(|value| value.to_str().ok());
    if site.is_some_and(|site| !matches!(site, "same-origin" | "none")) {
        return true;
    }
    let mut origins = headers.get_all(ORIGIN).iter();
    let Some(origin) = origins.next() else { return false };
    let place = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
    let place = place.and_then(|(_, place)| place.parse::<Authority>().ok());
    let is_own = match (place, host(headers)) {
        (Some(place), Some(host)) => place == host,
        _ => false,
    };
    !is_own || origins.next().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::Request;

    const LOOPBACK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const TOKEN: &str = "sixteen letters!";

    fn parts(headers: &[(&str, &str)]) -> Parts {
        let request = Request::get("/console");
        let with = |request: hyper::http::request::Builder, (name, value): &(&str, &str)| {
            request.header(*name, *value)
        };
        headers.iter().fold(request, with).body(()).unwrap().into_parts().0
    }

    fn way(peer: IpAddr) -> Way {
        Way { peer, client: peer, tls: false, unix: false }
    }

    #[test]
    fn only_who_comes_straight_from_this_machine_is_direct() {
        for host in ["localhost", "LOCALHOST:8080", "127.0.0.1", "127.1.2.3:1", "[::1]:8080"] {
            assert!(is_direct(&parts(&[("host", host)]), way(LOOPBACK)), "{host}");
        }
        for host in ["example.test", "localhost.example.test", "10.0.0.1", "0.0.0.0", "x@localhost"]
        {
            assert!(!is_direct(&parts(&[("host", host)]), way(LOOPBACK)), "{host}");
        }
        let twice = parts(&[("host", "localhost"), ("host", "localhost")]);
        assert!(!is_direct(&twice, way(LOOPBACK)));
        assert!(!is_direct(&parts(&[]), way(LOOPBACK)), "no host");
        for name in FORWARDING {
            let forwarded = parts(&[("host", "localhost"), (name, "127.0.0.1")]);
            assert!(!is_direct(&forwarded, way(LOOPBACK)), "{name}");
        }
        let local = parts(&[("host", "localhost")]);
        assert!(!is_direct(&local, way("10.0.0.1".parse().unwrap())));
        assert!(is_direct(&local, way("::ffff:127.0.0.1".parse().unwrap())));
        assert!(!is_direct(&local, Way { unix: true, ..way(LOOPBACK) }));
        assert!(!is_direct(
            &parts(&[("host", "localhost"), ("connection", "Upgrade")]),
            way(LOOPBACK)
        ));
        let mut old = parts(&[("host", "localhost")]);
        old.version = Version::HTTP_10;
        assert!(!is_direct(&old, way(LOOPBACK)));
    }

    #[test]
    fn a_page_of_another_origin_is_known_by_what_its_browser_says() {
        for (headers, is_foreign) in [
            (&[("host", "localhost:1")][..], false),
            (&[("host", "localhost:1"), ("origin", "http://localhost:1")], false),
            (&[("host", "localhost:1"), ("origin", "http://localhost:2")], true),
            (&[("host", "localhost:1"), ("origin", "null")], true),
            (&[("host", "localhost:1"), ("sec-fetch-site", "cross-site")], true),
            (&[("host", "localhost:1"), ("sec-fetch-site", "same-site")], true),
            (&[("host", "localhost:1"), ("sec-fetch-site", "none")], false),
        ] {
            assert_eq!(is_from_elsewhere(&parts(headers).headers), is_foreign, "{headers:?}");
        }
    }

    fn by_token() -> ConsoleGate {
        ConsoleGate::new(
            &config::ConsoleConfig {
                access: ConsoleAccess::On,
                token: TOKEN.to_owned(),
                allow_plain_http: false,
            },
            None,
            None,
        )
    }

    #[test]
    fn a_guesser_has_five_tries_a_minute() {
        let gate = by_token();
        assert_eq!(gate.log_in(TOKEN, LOOPBACK), Login::Right);
        for _ in 0..MAX_TRIES {
            assert_eq!(gate.log_in("sixteen letters?", LOOPBACK), Login::Wrong);
        }
        assert_eq!(gate.log_in(TOKEN, LOOPBACK), Login::TooMany);
        let other = "10.0.0.1".parse().unwrap();
        assert_eq!(gate.log_in(TOKEN, other), Login::Right);
        // A network of IPv6 is one guesser.
        for last in 0..MAX_TRIES {
            let address = format!("2001:db8::{last}").parse().unwrap();
            assert_eq!(gate.log_in("wrong", address), Login::Wrong);
        }
        assert_eq!(gate.log_in(TOKEN, "2001:db8::ffff".parse().unwrap()), Login::TooMany);
    }

    #[test]
    fn a_session_is_known_by_its_cookie_and_no_other() {
        let gate = by_token();
        let session = gate.session();
        let entrance = |cookie: &str| {
            let cookie = format!("other=1; {COOKIE_NAME}={cookie}");
            gate.admit(&parts(&[("host", "localhost"), ("cookie", &cookie)]), way(LOOPBACK))
        };
        assert_eq!(entrance(&session), Entrance::Open);
        let (end, mac) = session.split_once('.').unwrap();
        let later = end.parse::<u64>().unwrap() + 1;
        for forged in [format!("{later}.{mac}"), format!("{end}."), String::new(), end.to_owned()] {
            assert_eq!(entrance(&forged), Entrance::Locked, "{forged}");
        }
        let past = format!("1.{}", gate.signer.sign(&[SESSION, "1"]));
        assert_eq!(entrance(&past), Entrance::Locked, "it has ended");
        let other = ConsoleGate::new(
            &config::ConsoleConfig {
                token: "another token, too".to_owned(),
                access: ConsoleAccess::On,
                allow_plain_http: false,
            },
            None,
            None,
        );
        assert_eq!(entrance(&other.session()), Entrance::Locked);
    }

    #[test]
    fn a_token_is_not_taken_in_the_clear_from_elsewhere() {
        let gate = by_token();
        let bearer = format!("Bearer {TOKEN}");
        let parts = parts(&[("host", "ws.example.test"), ("authorization", &bearer)]);
        let far = way("10.0.0.1".parse().unwrap());
        assert!(matches!(gate.admit(&parts, far), Entrance::Closed(_)));
        assert_eq!(gate.admit(&parts, Way { tls: true, ..far }), Entrance::Open);
        let told = ConsoleGate { allow_plain_http: true, ..by_token() };
        assert_eq!(told.admit(&parts, far), Entrance::Open);
    }
}
