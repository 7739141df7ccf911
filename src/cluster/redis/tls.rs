//! TLS to Redis with a private CA and client certificates. The files are read for each new connection, so that renewed
//! ones apply from the next on; if they cannot be used, the last good ones are kept.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use redis::{
    Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisResult,
    TlsCertificates,
};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use tracing::warn;

/// The beginning of a PEM text; anything else is the path of a file.
const PEM: &str = "-----BEGIN";

/// How connections to Redis are secured.
pub struct RedisTls {
    /// The files or texts to read.
    sources: TlsSources,
    /// As they were read last without a fault; none where nothing is set.
    last: Mutex<Option<TlsCertificates>>,
}

/// The certificates to load: each the path of a PEM file or a PEM text; empty for none.
#[derive(Clone, Default)]
pub struct TlsSources {
    /// `cluster.tls.ca`: a file, or the text of one.
    pub ca: String,
    /// `cluster.tls.cert`, the same.
    pub cert: String,
    /// `cluster.tls.key`, the same.
    pub key: String,
}

/// A file that is of no use, and whose setting it is.
#[derive(Debug)]
pub struct UnusableTlsFile {
    /// The setting to correct.
    pub setting: &'static str,
    /// The file that could not be used.
    pub file: PathBuf,
    /// Why it could not be used.
    pub error: io::Error,
}

/// A key may stand in the settings themselves.
impl fmt::Debug for RedisTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisTls").finish_non_exhaustive()
    }
}

impl RedisTls {
    /// Reads what the settings name.
    ///
    /// # Errors
    /// A file cannot be read or holds nothing in PEM form, or a certificate does not fit its key.
    pub fn new(sources: TlsSources) -> Result<Arc<Self>, UnusableTlsFile> {
        let last = Mutex::new(read(&sources)?);
        Ok(Arc::new(Self { sources, last }))
    }

    /// A client for one server, or for a Sentinel, with the certificates as they are now.
    pub(super) fn client(&self, to: impl IntoConnectionInfo) -> RedisResult<Client> {
        let to: ConnectionInfo = to.into_connection_info()?;
        if !matches!(to.addr(), ConnectionAddr::TcpTls { .. }) {
            return Client::open(to);
        }
        match self.current() {
            Some(certificates) => Client::build_with_tls(to, certificates),
            None => Client::open(to),
        }
    }

    /// Read again for each connection, so that renewed certificates need no restart.
    fn current(&self) -> Option<TlsCertificates> {
        let now = read(&self.sources);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match now {
            Ok(certificates) => last.clone_from(&certificates),
            Err(UnusableTlsFile { setting, file, error }) => {
                let file = file.display();
                warn!("{setting}: {file}: {error}; the certificate read before stays in use");
            }
        }
        last.clone()
    }
}

/// `None` where nothing is set and the system's roots decide.
fn read(sources: &TlsSources) -> Result<Option<TlsCertificates>, UnusableTlsFile> {
    let TlsSources { ca, cert, key } = sources;
    let (ca_name, cert_name, key_name) = ("cluster.tls.ca", "cluster.tls.cert", "cluster.tls.key");
    let root_cert = (!ca.is_empty()).then(|| text(ca_name, ca)).transpose()?;
    let mut roots = RootCertStore::empty();
    for issuer in certificates(ca_name, ca, root_cert.as_deref())? {
        roots.add(issuer).map_err(|error| unusable(ca_name, ca, io::Error::other(error)))?;
    }
    if cert.is_empty() {
        return Ok(
            root_cert.map(|root| TlsCertificates { client_tls: None, root_cert: Some(root) })
        );
    }
    let (client_cert, client_key) = (text(cert_name, cert)?, text(key_name, key)?);
    let chain = certificates(cert_name, cert, Some(&client_cert))?;
    let secret = PrivateKeyDer::from_pem_slice(&client_key).map_err(|_| {
        let problem = "holds no private key in PEM form that can be read without a passphrase";
        unusable(key_name, key, io::Error::other(problem))
    })?;
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(cert_name, cert, io::Error::other(error)))?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, secret)
        .map_err(|error| {
            let problem = format!("certificate and key do not fit together: {error}");
            unusable(key_name, key, io::Error::other(problem))
        })?;
    let client_tls = Some(ClientTlsConfig { client_cert, client_key });
    Ok(Some(TlsCertificates { client_tls, root_cert }))
}

/// The certificates of a PEM text, one at least; none where there is no text.
fn certificates(
    setting: &'static str,
    written: &str,
    text: Option<&[u8]>,
) -> Result<Vec<CertificateDer<'static>>, UnusableTlsFile> {
    let Some(text) = text else { return Ok(Vec::new()) };
    let wrong = || io::Error::other("holds no certificate in PEM form");
    match CertificateDer::pem_slice_iter(text).collect::<Result<Vec<_>, _>>() {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(unusable(setting, written, wrong())),
    }
}

/// The content of a file, unless the setting is the content already.
fn text(setting: &'static str, written: &str) -> Result<Vec<u8>, UnusableTlsFile> {
    if written.trim_start().starts_with(PEM) {
        return Ok(written.as_bytes().to_vec());
    }
    std::fs::read(written).map_err(|error| unusable(setting, written, error))
}

/// Never with a key's text in it.
fn unusable(setting: &'static str, written: &str, error: io::Error) -> UnusableTlsFile {
    let file = if written.trim_start().starts_with(PEM) { "the text" } else { written };
    UnusableTlsFile { setting, file: file.into(), error }
}
