//! Recognises responses by their form: a web page instead of the API; and the address at which to reach a server that
//! listens on every address.

/// Whether a text is HTML. The first character decides, since a proxy's error page may have any content type, and
/// no response of the API begins with `<`.
pub(super) fn is_page(text: &str) -> bool {
    text.trim_start().starts_with('<')
}

/// Where a server that listens at `host` can be reached: one that listens everywhere listens here.
pub(super) fn reachable_host(host: &str) -> &str {
    match host {
        "0.0.0.0" => "127.0.0.1",
        // With brackets, for what comes of it goes into a URL (RFC 3986 section 3.2.2).
        "::" | "[::]" => "[::1]",
        host => host,
    }
}
