//! What is told apart by its form alone: a web page from an answer of the API, an address to listen at from one to
//! connect to.

/// Whether a text is HTML.
pub(super) fn is_page(text: &str) -> bool {
    text.trim_start().starts_with('<')
}

/// Where a server that listens at `host` can be reached: one that listens everywhere listens here.
pub(super) fn reachable_host(host: &str) -> &str {
    match host {
        "0.0.0.0" => "127.0.0.1",
        "::" | "[::]" => "[::1]",
        host => host,
    }
}
