//! Advice for `fanfare doctor`: takes an error's text, or a response that another program must have sent, and says what
//! to do.

use super::client::ApiResponse;

/// Open files below which a server cannot carry a crowd.
/// The kernel's own default of the hard limit, so a lower one was set on purpose.
pub(super) const MIN_OPEN_FILES: u64 = 4096;

/// The remedy for a low limit on open files.
pub(super) const MORE_OPEN_FILES: &str = "may be open, and each connection is one: raise LimitNOFILE= (systemd), minfds (supervisor) or ulimit -n";

/// Adds a remedy to the error of a connection or a request. The text is matched, since the causes come from the
/// resolver, TLS and hyper in one string. An unrecognised error is returned as it is.
pub(super) fn with_hint(error: &str) -> String {
    let advice = if error.contains("nothing listens") {
        ": start it, or look at server.host and server.port, or give its address with --url"
    } else if error.contains("lookup address") {
        ": the name is not known here; correct it (REVERB_HOST, --url), or the DNS"
    } else if error.contains("UnknownIssuer") {
        ": the certificate's issuer is not trusted here; does server.tls.cert (or the proxy's certificate) hold the whole chain?"
    } else if error.contains("CaUsedAsEndEntity") {
        ": the certificate is an authority's (CA:TRUE), not a server's; sign one for the server with it, or make one by openssl req -x509 … -addext basicConstraints=critical,CA:FALSE"
    } else if error.contains("xpired") {
        ": renew the certificate"
    } else if error.contains("not valid for name") {
        ": the certificate is for another name; use that name, or one certificate for this"
    } else if error.contains("UnrecognisedName") {
        ": no certificate there is for this name; use another name, or give the proxy one for it"
    } else if error.contains("end of file") || error.contains("reset by peer") {
        if error.starts_with("https:") {
            ": it hangs up on TLS; does it speak TLS there, with a certificate and its key?"
        } else {
            ": it hangs up; is it another program's port, or one that wants TLS (https://)?"
        }
    } else if error.contains("no answer") {
        ": a firewall drops what is sent there, or the server is stuck"
    } else if error.contains("unreachable") || error.contains("No route") {
        ": this machine has no way there; is the address right, and the network up?"
    } else {
        ""
    };
    format!("{error}{advice}")
}

/// Why a server refused a socket that was opened with this `Origin`, with what to do about it.
/// Codes from 4000 to 4099 say that connecting again will not help, from 4100 on that it may
/// ("Error codes" of Pusher's protocol reference).
pub(super) fn explain_refusal(code: u16, reason: &str, origin: Option<&str>) -> String {
    let advice = match (code, origin) {
        (4001, _) => "the server has no app with this key".to_owned(),
        (4003, _) => "the app is disabled: set enabled = true for it".to_owned(),
        (4004, _) => "raise the app's max_connections, or close some".to_owned(),
        (4009, None) => {
            "the app lets in pages of some origins alone: try one of its allowed_origins with --origin https://HOST".to_owned()
        }
        (4009, Some(origin)) => {
            format!("add {origin} to the app's allowed_origins, or try another with --origin")
        }
        (4000, _) => "the app takes sockets over TLS alone: use https://, or let the proxy say X-Forwarded-Proto: https and stand in trusted_proxies".to_owned(),
        (4100, _) => "it has no room, or is stopping".to_owned(),
        _ => return format!("the server refuses with {code} {reason}"),
    };
    format!("the server refuses with {code} {reason}: {advice}")
}

/// Why a server would not start, with what to do about it.
/// Only what a file system says needs a hint: all other errors of settings say what is expected.
pub(super) fn explain_start_error(problem: &str) -> String {
    let advice = if problem.contains("ermission denied") {
        ": let the server's user read it (chgrp fanfare, chmod 640), and whoever runs this"
    } else if problem.contains("o such file") || problem.contains("(os error 2)") {
        ": correct the path"
    } else {
        ""
    };
    format!("{problem}{advice}")
}

/// Why an answer to `GET /up` cannot be the server's own, if it cannot. `tls` says whether it came over TLS.
/// `/up` never redirects and never answers 502 to 504, so whatever does stands in front.
pub(super) fn not_the_server(answer: &ApiResponse, tls: bool) -> Option<String> {
    let body = String::from_utf8_lossy(&answer.body);
    // Ours, nginx's and Apache's words for the same.
    let plain = ["This port speaks TLS", "plain HTTP request was sent", "speaking plain HTTP"];
    let sentence = match answer.status {
        301 | 302 | 303 | 307 | 308 => {
            let to = answer.location.as_deref().unwrap_or("another address");
            format!(
                "it sends visitors on to {to}, where neither sockets nor backends follow: give that address to both, or let the proxy pass these paths on"
            )
        }
        502..=504 => format!("a proxy answers {} for it: the proxy cannot reach it", answer.status),
        400 if plain.iter().any(|words| body.contains(words)) && tls => {
            "a proxy speaks plain HTTP to it where it speaks TLS: let the proxy use https://, or leave TLS to the proxy and server.tls out".to_owned()
        }
        400 if plain.iter().any(|words| body.contains(words)) => {
            "This port speaks TLS: use https://, and wss:// for clients".to_owned()
        }
        _ => return None,
    };
    Some(sentence)
}
