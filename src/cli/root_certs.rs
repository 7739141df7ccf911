//! The root certificates that commands trust: the system's, wherever the distribution keeps them, or those of
//! `SSL_CERT_FILE`. Opens TLS connections with them.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use tokio::net::TcpStream;
use webpki::EndEntityCert;

use crate::hub::stream::Stream;
use crate::hub::tls::TlsStream;

/// Debian and Alpine, Fedora, SUSE, macOS and BSD.
/// Go's `crypto/x509` looks there, too.
const FILES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// How long before its end a certificate is worth a word.
const SOON: Duration = Duration::from_secs(14 * 24 * 3600);

/// The protocols of HTTP that are offered over TLS, the wanted one first.
pub(super) const HTTP1: &[&[u8]] = &[b"http/1.1"];
/// As a browser offers them (ALPN, RFC 7301).
pub(super) const HTTP2: &[&[u8]] = &[b"h2", b"http/1.1"];

/// A TLS connection and what came of making it.
pub(super) struct TlsAttempt {
    /// The stream, after the TLS handshake.
    pub stream: Stream,
    /// In less than two weeks: a renewal that works comes a month before.
    pub ends_soon: bool,
    /// Whether HTTP/2 was negotiated.
    pub is_http2: bool,
}

/// Opens TLS to `host` with an offer of these protocols. Whether the certificate expires soon is found by
/// validating it again as of two weeks from now, which covers every certificate of the chain.
///
/// # Errors
/// This machine has no root certificates, or the server's certificate is not signed by one of them or is for
/// another host.
pub(super) async fn connect_tls(
    tcp: TcpStream,
    host: &str,
    protocols: &[&[u8]],
) -> io::Result<TlsAttempt> {
    let roots = Arc::new(load_roots()?);
    // Named outright: a process-wide default would be a race with the server's own choice in tests.
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots.clone());
    let mut config = config.with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let session =
        ClientConnection::new(Arc::new(config), name.clone()).map_err(io::Error::other)?;
    let mut tls = Box::new(TlsStream::new(tcp, session.into()));
    std::future::poll_fn(|cx| tls.poll_handshake(cx)).await?;
    let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider).build();
    let then = UnixTime::since_unix_epoch(Duration::from_secs(UnixTime::now().as_secs()) + SOON);
    let ends = match (verifier, tls.peer_certificates()) {
        (Ok(verifier), [own, others @ ..]) => {
            verifier.verify_server_cert(own, others, &name, &[], then).is_err()
        }
        _ => false,
    };
    let is_http2 = tls.alpn_protocol() == Some(b"h2");
    Ok(TlsAttempt { stream: Stream::Tls(tls), ends_soon: ends, is_http2 })
}

/// A name that the first certificate in a file is for.
/// A server on this machine is reached as `127.0.0.1`, which its certificate is hardly ever for.
pub(super) fn name_in(file: &Path) -> Option<String> {
    let certificate = CertificateDer::pem_file_iter(file).ok()?.next()?.ok()?;
    let certificate = EndEntityCert::try_from(&certificate).ok()?;
    let name = certificate.valid_dns_names().next()?;
    // One with an asterisk is for whatever stands in its place.
    Some(name.strip_prefix("*.").map_or_else(|| name.to_owned(), |rest| format!("any.{rest}")))
}

/// Those of `SSL_CERT_FILE`, or else the system's.
/// The variable is OpenSSL's, so a private authority is named as for `curl`. A certificate that
/// cannot be read is left out; the bundles of systems hold some.
fn load_roots() -> io::Result<RootCertStore> {
    let given = std::env::var("SSL_CERT_FILE").ok();
    let file = given
        .as_deref()
        // A file whose folder may not be read counts as missing; the next candidate is tried.
        .or_else(|| FILES.into_iter().find(|file| std::fs::exists(file).unwrap_or_default()));
    let file = file.ok_or_else(|| io::Error::other("no trusted certificates are installed"))?;
    let found = CertificateDer::pem_file_iter(file).map_err(io::Error::other)?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.filter_map(Result::ok));
    Ok(roots)
}
