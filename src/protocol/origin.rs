//! Allowed origins, matched against the `Origin` header of browsers (RFC 6454 section 6.1): a host, a host with its
//! port, or a whole origin, each as a pattern.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

/// One of an app's allowed origins; `*` in it stands for any characters.
#[derive(Clone, PartialEq, Eq)]
pub struct OriginPattern {
    /// In small letters.
    text: Box<str>,
    /// Its form, determined when the settings are read.
    form: PatternForm,
}

/// The form of a pattern, determined once when the settings are read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum PatternForm {
    /// `*`.
    Any,
    /// `null`: pages without an origin, such as files and sandboxed frames.
    Null,
    /// A whole origin, its port left out where it is the scheme's own.
    Whole,
    /// A scheme alone, `file://`: of whatever host.
    Scheme,
    /// A host with its port, of any scheme.
    HostAndPort,
    /// A host, of any scheme and port.
    Host,
}

impl fmt::Debug for OriginPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

impl fmt::Display for OriginPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// An `Origin` header taken apart.
/// `scheme://host[:port]`, as browsers send it (RFC 6454 section 6.2).
struct Origin<'a> {
    /// `http`, `https`, or an app's own scheme.
    scheme: &'a str,
    /// The host, in lower case.
    host: &'a str,
    /// The port, if it is written.
    port: Option<&'a str>,
}

impl<'a> Origin<'a> {
    /// Splits an `Origin` header; `None` without a scheme.
    fn parse(text: &'a str) -> Option<Self> {
        let (scheme, place) = text.split_once("://")?;
        // `split` yields at least one piece, so the default is never used.
        let place = place.split('/').next().unwrap_or_default();
        let (host, port) = host_and_port(place);
        Some(Self { scheme, host, port })
    }

    /// The port that the page came from: browsers leave out the scheme's own, so `https://a` is
    /// 443.
    fn own_port(&self) -> Option<&'a str> {
        self.port.or_else(|| default_port(self.scheme))
    }
}

/// Those of RFC 9110 and RFC 6455; other schemes have none.
fn default_port(scheme: &str) -> Option<&'static str> {
    match scheme {
        "http" | "ws" => Some("80"),
        "https" | "wss" => Some("443"),
        _ => None,
    }
}

/// Divides `host:port`. An IPv6 address keeps its brackets.
fn host_and_port(place: &str) -> (&str, Option<&str>) {
    match place.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (place, None),
    }
}

impl OriginPattern {
    /// Whether a page of `origin`, the header in lower case, may connect.
    fn allows(&self, origin: &str) -> bool {
        let text = &*self.text;
        if matches!(self.form, PatternForm::Any) {
            return true;
        }
        if matches!(self.form, PatternForm::Null) {
            return origin == text;
        }
        let Some(written) = Origin::parse(origin) else { return false };
        match self.form {
            PatternForm::Any | PatternForm::Null => false,
            PatternForm::Scheme => origin.starts_with(text),
            PatternForm::Host => !written.host.is_empty() && matches_pattern(text, written.host),
            PatternForm::HostAndPort => written
                .own_port()
                .is_some_and(|port| matches_pattern(text, &format!("{}:{port}", written.host))),
            PatternForm::Whole => {
                let Origin { scheme, host, port } = written;
                let bare = format!("{scheme}://{host}");
                let is_own = port.is_none() || port == default_port(scheme);
                (is_own && matches_pattern(text, &bare))
                    || written_port(&bare, port.or_else(|| default_port(scheme)))
                        .is_some_and(|with_port| matches_pattern(text, &with_port))
            }
        }
    }

    /// An `Origin` that it allows.
    /// For `doctor`, which opens a socket as a page of that origin would.
    pub fn example(&self) -> String {
        let text = self.text.replace('*', "example");
        match self.form {
            PatternForm::Any => "https://example.com".to_owned(),
            PatternForm::Null => text,
            PatternForm::Whole => text.replace(":example", ":8080"),
            PatternForm::Scheme if text == "file://" => text,
            PatternForm::Scheme => format!("{text}localhost"),
            PatternForm::Host => format!("https://{text}"),
            PatternForm::HostAndPort => format!("http://{}", text.replace(":example", ":8080")),
        }
    }
}

/// `bare` with the port behind it, where there is one.
fn written_port(bare: &str, port: Option<&str>) -> Option<String> {
    port.map(|port| format!("{bare}:{port}"))
}

/// Whether one of `patterns` allows a page with this `Origin` header.
pub fn allowed(patterns: &[OriginPattern], origin: Option<&str>) -> bool {
    if patterns.iter().any(|pattern| pattern.form == PatternForm::Any) {
        return true;
    }
    let Some(origin) = origin.map(str::to_ascii_lowercase) else { return false };
    patterns.iter().any(|pattern| pattern.allows(&origin))
}

/// Whether one of `patterns` other than `*` allows the page.
#[cfg(feature = "socketio")]
pub fn named(patterns: &[OriginPattern], origin: &str) -> bool {
    let origin = origin.to_ascii_lowercase();
    let named =
        |pattern: &OriginPattern| pattern.form != PatternForm::Any && pattern.allows(&origin);
    patterns.iter().any(named)
}

/// Why a pattern matches no origin that a browser sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NeverMatches(&'static str);

impl fmt::Display for NeverMatches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl FromStr for OriginPattern {
    /// A sentence that says why, for the error of the setting.
    type Err = NeverMatches;

    fn from_str(written: &str) -> Result<Self, NeverMatches> {
        let text = written.to_ascii_lowercase();
        let new = |text: &str, form| Ok(Self { text: text.into(), form });
        match text.as_str() {
            "*" => return new("*", PatternForm::Any),
            "null" => return new("null", PatternForm::Null),
            _ => {}
        }
        if !text.is_ascii() {
            return Err(NeverMatches("browsers send such names in ASCII, as xn--…"));
        }
        let Some((scheme, place)) = text.split_once("://") else {
            if text.parse::<Ipv6Addr>().is_ok() {
                return new(&format!("[{text}]"), PatternForm::Host);
            }
            let (host, port) = host_and_port(&text);
            check_host(host)?;
            let Some(port) = port else { return new(&text, PatternForm::Host) };
            check_port(port)?;
            return new(&text, PatternForm::HostAndPort);
        };
        let is_scheme = |c: char| c.is_ascii_alphanumeric() || "+-.*".contains(c);
        if scheme.is_empty() || !scheme.chars().all(is_scheme) {
            return Err(NeverMatches("no scheme of a page is written so"));
        }
        // People copy it out of the address bar.
        let place = place.strip_suffix('/').unwrap_or(place);
        if place.is_empty() {
            if default_port(scheme).is_some() {
                return Err(NeverMatches("a host is missing behind the scheme; * is any"));
            }
            return new(&format!("{scheme}://"), PatternForm::Scheme);
        }
        let (host, port) = host_and_port(place);
        check_host(host)?;
        port.map_or(Ok(()), check_port)?;
        let port = port.filter(|port| Some(*port) != default_port(scheme));
        let bare = format!("{scheme}://{host}");
        new(&written_port(&bare, port).unwrap_or(bare), PatternForm::Whole)
    }
}

/// Characters of a host's name, `*`, or an IPv6 address in brackets.
fn check_host(host: &str) -> Result<(), NeverMatches> {
    let inner = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    if let Some(address) = inner {
        let is_pattern = address.contains('*') || address.parse::<Ipv6Addr>().is_ok();
        return is_pattern.then_some(()).ok_or(NeverMatches("this is no IPv6 address"));
    }
    if host.contains('/') {
        return Err(NeverMatches("an origin has no path"));
    }
    let is_host = |c: char| c.is_ascii_alphanumeric() || "-._*".contains(c);
    if host.is_empty() || !host.chars().all(is_host) {
        return Err(NeverMatches("this is no host's name"));
    }
    Ok(())
}

/// A port of a pattern: 1 to 65535, or `*`.
fn check_port(port: &str) -> Result<(), NeverMatches> {
    let is_port = port == "*" || port.parse::<u16>().is_ok_and(|port| port > 0);
    is_port.then_some(()).ok_or(NeverMatches("this is no port"))
}

/// Whether all of `text` matches `pattern`, in which `*` stands for any number of characters: `*.example.com`
/// matches `a.example.com` and `a.b.example.com`, not `example.com`.
fn matches_pattern(pattern: &str, text: &str) -> bool {
    let Some((head, mut pattern)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(head) else { return false };
    // The first place of each part will do: what follows can only have more room behind it.
    while let Some((part, rest)) = pattern.split_once('*') {
        let Some(at) = text.find(part) else { return false };
        // `at` is where the part was found, so the rest behind it exists.
        text = text.get(at + part.len()..).unwrap_or_default();
        pattern = rest;
    }
    text.ends_with(pattern)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(written: &str) -> OriginPattern {
        written.parse().unwrap_or_else(|error| panic!("{written}: {error}"))
    }

    #[test]
    fn what_people_write_allows_the_pages_they_mean() {
        for (written, allowed_origins, refused) in [
            (
                "laravel.com",
                &["http://laravel.com", "https://laravel.com:8443", "HTTP://Laravel.COM"][..],
                &["http://a.laravel.com", "null", "laravel.com", "http://laravel.com.evil.test"][..],
            ),
            (
                "*.Example.org",
                &["http://a.example.org", "https://a.b.example.org:1"],
                &["http://example.org", "http://example.org.evil.test"],
            ),
            (
                "https://app.example.test",
                &["https://app.example.test", "https://app.example.test:443"],
                &["http://app.example.test", "https://app.example.test:8443"],
            ),
            (
                "https://app.example.test:8443",
                &["https://app.example.test:8443"],
                &["https://app.example.test", "http://app.example.test:8443"],
            ),
            (
                "https://app.example.test:443/",
                &["https://app.example.test"],
                &["http://app.example.test"],
            ),
            ("https://*.example.test", &["https://a.example.test"], &["http://a.example.test"]),
            (
                "localhost:3000",
                &["http://localhost:3000", "https://LOCALHOST:3000"],
                &["http://localhost", "http://localhost:30000"],
            ),
            ("app.test:80", &["http://app.test"], &["https://app.test"]),
            (
                "http://localhost:*",
                &["http://localhost:3000", "http://localhost"],
                &["https://localhost:3000"],
            ),
            ("null", &["null"], &["http://null.test", "file://"]),
            ("file://", &["file://"], &["null", "http://file"]),
            ("capacitor://", &["capacitor://localhost"], &["http://localhost"]),
            ("capacitor://localhost", &["capacitor://localhost"], &["capacitor://other"]),
            ("::1", &["http://[::1]:3000"], &["http://[::2]"]),
            ("http://[::1]:3000", &["http://[::1]:3000"], &["http://[::1]"]),
        ] {
            let patterns = [pattern(written)];
            for origin in allowed_origins {
                assert!(allowed(&patterns, Some(origin)), "{written} should allow {origin}");
            }
            for origin in refused {
                assert!(!allowed(&patterns, Some(origin)), "{written} should refuse {origin}");
            }
            assert!(!allowed(&patterns, None), "{written}");
            assert!(allowed(&patterns, Some(&patterns[0].example())), "{written}");
        }
        assert!(allowed(&[pattern("*")], None));
        assert!(!allowed(&[], Some("http://a.test")));
    }

    #[test]
    fn what_can_never_match_is_refused() {
        for written in [
            "",
            "https://",
            "http://app.test/path",
            "app.test/path",
            "app test",
            "https://user@app.test",
            "app.test:port",
            "app.test:70000",
            "https:app.test",
            "\"app.test\"",
            "bücher.test",
            "[::z]",
            "://app.test",
            "https://app.test?x",
            "a.test,b.test",
        ] {
            assert!(written.parse::<OriginPattern>().is_err(), "{written}");
        }
    }

    #[test]
    fn patterns_match_in_full() {
        assert!(matches_pattern("a*c*e", "abcde"));
        assert!(matches_pattern("*", ""));
        assert!(!matches_pattern("a*c", "abcd"));
        assert!(!matches_pattern("a*a", "a"));
    }
}
