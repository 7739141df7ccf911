//! Whom the commands trust: the certificates of the system, in the one file where each system keeps them.

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
use crate::hub::tls::Tls;

/// Debian and Alpine, Fedora, SUSE, macOS and BSD.
const FILES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// How long before its end a certificate is worth a word.
const SOON: Duration = Duration::from_secs(14 * 24 * 3600);

/// TLS to `host`, and whether its certificate ends soon.
pub(super) async fn secure(tcp: TcpStream, host: &str) -> io::Result<(Stream, bool)> {
    let roots = Arc::new(roots()?);
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots.clone());
    let mut config = config.with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let session =
        ClientConnection::new(Arc::new(config), name.clone()).map_err(io::Error::other)?;
    let mut tls = Box::new(Tls::new(tcp, session.into()));
    std::future::poll_fn(|cx| tls.poll_handshake(cx)).await?;
    let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider).build();
    let then = UnixTime::since_unix_epoch(Duration::from_secs(UnixTime::now().as_secs()) + SOON);
    let ends = match (verifier, tls.peer_certificates()) {
        (Ok(verifier), [own, others @ ..]) => {
            verifier.verify_server_cert(own, others, &name, &[], then).is_err()
        }
        _ => false,
    };
    Ok((Stream::Tls(tls), ends))
}

/// A name that the first certificate in a file is for.
pub(super) fn name_in(file: &Path) -> Option<String> {
    let certificate = CertificateDer::pem_file_iter(file).ok()?.next()?.ok()?;
    let certificate = EndEntityCert::try_from(&certificate).ok()?;
    let name = certificate.valid_dns_names().next()?;
    // One with an asterisk is for whatever stands in its place.
    Some(name.strip_prefix("*.").map_or_else(|| name.to_owned(), |rest| format!("any.{rest}")))
}

/// Those of `SSL_CERT_FILE`, or else the system's.
fn roots() -> io::Result<RootCertStore> {
    let given = std::env::var("SSL_CERT_FILE").ok();
    let file = given
        .as_deref()
        .or_else(|| FILES.into_iter().find(|file| std::fs::exists(file).unwrap_or_default()));
    let file = file.ok_or_else(|| io::Error::other("no trusted certificates are installed"))?;
    let found = CertificateDer::pem_file_iter(file).map_err(io::Error::other)?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.filter_map(Result::ok));
    Ok(roots)
}
