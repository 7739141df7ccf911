//! TLS of the server: certificates, reloaded when their files change, and the first bytes of a connection. `hub::tls`
//! handles the rest.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::ProducesTickets;
use rustls::{Error, ServerConfig, ServerConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use webpki::EndEntityCert;

use super::UnusableSetting;
use super::tls_turns::HandshakeTurns;
use crate::config;
use crate::hub::stream::Stream;
use crate::hub::tls::TlsStream;

/// The response to plain HTTP on this port. Browsers and `curl` show it; a TLS alert would be unreadable there.
const PLAIN: &[u8] = b"HTTP/1.1 400 Bad Request\r\n\
    Content-Type: application/json\r\n\
    Content-Length: 76\r\n\
    Connection: close\r\n\
    \r\n\
    {\"error\":\"This port speaks TLS: use https:// or wss:// instead.\",\"code\":400}";

/// The certificate in use, and where the next one comes from.
#[derive(Debug)]
pub(super) struct Certificates {
    /// Read again on each reload; their paths are fixed.
    files: config::TlsFiles,
    /// Swapped as a whole; a handshake takes the one of its moment.
    current: ArcSwap<ServerConfig>,
    /// Encrypts sessions that clients may resume, also after the certificate has changed.
    tickets: Arc<dyn ProducesTickets>,
    /// When the first certificate of the chain expires, in seconds since 1970, for the metrics. 0: it cannot be
    /// read.
    end: Arc<AtomicU64>,
    /// When the last of them becomes valid; 0: it cannot be read.
    begin: AtomicU64,
}

impl Certificates {
    /// The error says which setting, and which file, it is about.
    /// # Errors
    /// The files cannot be used: the server does not start.
    pub(super) fn read(files: &config::TlsFiles) -> Result<Self, UnusableSetting> {
        let tickets = ring::Ticketer::new()
            .map_err(|error| UnusableSetting::new("server.tls.cert", error))?;
        let (current, times) = load(files, &tickets)?;
        let current = ArcSwap::from_pointee(current);
        let (begin, end) = (AtomicU64::new(times.0), Arc::new(AtomicU64::new(times.1)));
        Ok(Self { files: files.clone(), current, tickets, end, begin })
    }

    /// Reads the files again.
    /// # Errors
    /// As at the first reading; the certificates in use stay.
    pub(super) fn reload(&self) -> Result<(), UnusableSetting> {
        let (current, (begin, end)) = load(&self.files, &self.tickets)?;
        self.current.store(Arc::new(current));
        // Each is looked at by itself.
        self.begin.store(begin, Ordering::Relaxed);
        self.end.store(end, Ordering::Relaxed);
        Ok(())
    }

    /// When the first of the certificates ends.
    pub(super) fn end(&self) -> &Arc<AtomicU64> {
        &self.end
    }

    /// Why clients would reject the certificate today, if they would. In words for the log and for `config check`;
    /// the server starts in any case.
    pub(super) fn doubt(&self) -> Option<String> {
        let now = UnixTime::now().as_secs();
        // Relaxed: a reload writes both, and a mixture of two certificates lasts an instant.
        let (begin, end) = (self.begin.load(Ordering::Relaxed), self.end.load(Ordering::Relaxed));
        let file = self.files.cert.display();
        if end > 0 && now > end {
            let days = (now - end) / DAY_SECONDS;
            return Some(format!("{file}: the certificate has expired, {days} days ago: renew it"));
        }
        let is_early = now < begin;
        is_early.then(|| format!("{file}: the certificate is not valid yet: is the clock right?"))
    }

    /// Begins TLS on a new connection of `address`, whose turn it waits for.
    /// # Errors
    /// The client went, sent no TLS, or the handshake failed; the caller has a time limit around it.
    pub(super) async fn shake_hands(
        &self,
        mut tcp: TcpStream,
        (turns, address): (&Rc<HandshakeTurns>, IpAddr),
    ) -> io::Result<Stream> {
        let mut first = [0];
        // Only looked at: the handshake needs the byte.
        if tcp.peek(&mut first).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // A record of TLS begins with its type, 22; a method of HTTP with a letter.
        if first[0].is_ascii_alphabetic() {
            tcp.write_all(PLAIN).await?;
            tcp.shutdown().await?;
            // Until the client ends its half, so that it can read the answer.
            let mut scratch = [0; 512];
            while tcp.read(&mut scratch).await? > 0 {}
            return Err(io::Error::other("plain HTTP on the TLS port"));
        }
        // Before the session is made, which takes more memory than the connection.
        turns.wait_for_turn(address).await;
        let mut begun = turns.begin_handshake(address);
        let session = ServerConnection::new(self.current.load_full()).map_err(io::Error::other)?;
        let mut tls = Box::new(TlsStream::new(tcp, session.into()));
        tls.answer_flight()?;
        tokio::select! {
            finished = finish_handshake(&mut tls, turns, address) => finished?,
            () = begun.wait_for_end() => {
                return Err(io::Error::other("its address has too many unfinished TLS handshakes"));
            }
        }
        Ok(Stream::Tls(tls))
    }
}

/// Answers all that follows the first flight.
async fn finish_handshake(
    tls: &mut TlsStream,
    turns: &HandshakeTurns,
    address: IpAddr,
) -> io::Result<()> {
    while tls.is_handshaking() {
        poll_fn(|cx| tls.poll_flight(cx)).await?;
        turns.wait_for_turn(address).await;
        tls.answer_flight()?;
    }
    poll_fn(|cx| tls.poll_flush(cx)).await
}

/// Loads the files, and the time in which all certificates of the chain are valid, in seconds since 1970. The chain
/// is not validated, since clients may trust other roots.
fn load(
    files: &config::TlsFiles,
    tickets: &Arc<dyn ProducesTickets>,
) -> Result<(ServerConfig, (u64, u64)), UnusableSetting> {
    let config::TlsFiles { cert, key } = files;
    let text = std::fs::read(cert).map_err(|error| UnusableSetting::path(CERT, cert, &error))?;
    let chain = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| unusable(CERT, cert, error))?;
    if chain.is_empty() {
        return Err(unusable(CERT, cert, "holds no certificate in PEM form"));
    }
    let times = chain.iter().filter_map(validity);
    let times = times.reduce(|(begin, end), (b, e)| (begin.max(b), end.min(e)));
    // The key is dropped with the configuration, and nowhere else kept.
    let secret = read_key(key)?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|error| unusable(CERT, cert, error))?
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .map_err(|error| match error {
            Error::InconsistentKeys(_) => unusable(
                KEY,
                key,
                format_args!(
                    "certificate and key are not of one pair; give those that were issued together (the certificate is {})",
                    cert.display()
                ),
            ),
            Error::General(_) => unusable(
                KEY,
                key,
                "this kind of key is not supported: RSA, P-256, P-384 and Ed25519 are",
            ),
            error => unusable(CERT, cert, error),
        })?;
    // A socket is an upgraded HTTP/1.1 request, so nothing else is on offer.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Kept over reloads, so that clients resume sessions of before a renewal.
    config.ticketer = tickets.clone();
    Ok((config, times.unwrap_or_default()))
}

/// Reads a key: PKCS#8, PKCS#1 or SEC1 in PEM. An encrypted key is recognised, since the reader would only say that
/// it found none.
fn read_key(key: &Path) -> Result<PrivateKeyDer<'static>, UnusableSetting> {
    let text = std::fs::read(key).map_err(|error| UnusableSetting::path(KEY, key, &error))?;
    let is_encrypted = ["BEGIN ENCRYPTED PRIVATE KEY", "Proc-Type: 4,ENCRYPTED"]
        .iter()
        .any(|words| memchr::memmem::find(&text, words.as_bytes()).is_some());
    if is_encrypted {
        let problem = "the key is encrypted: decrypt it with openssl pkey";
        return Err(unusable(KEY, key, problem));
    }
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| match error {
        pem::Error::NoItemsFound => unusable(KEY, key, "holds no private key in PEM form"),
        error => unusable(KEY, key, error),
    })
}

/// The validity of a certificate, in seconds since 1970. Found through the verifier, which reports both times if it
/// is asked about a moment outside of them.
fn validity(certificate: &CertificateDer<'_>) -> Option<(u64, u64)> {
    let certificate = EndEntityCert::try_from(certificate).ok()?;
    let at = |seconds| {
        let time = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let usage = webpki::KeyUsage::server_auth();
        // Nothing is verified but the times, at the two ends of time.
        certificate.verify_for_usage(&[], &[], &[], time, usage, None, None).err()
    };
    let webpki::Error::CertNotValidYet { not_before, .. } = at(0)? else { return None };
    let webpki::Error::CertExpired { not_after, .. } = at(u64::MAX)? else { return None };
    Some((not_before.as_secs(), not_after.as_secs()))
}

/// The setting's name in errors.
const CERT: &str = "server.tls.cert";
/// The setting's name in errors.
const KEY: &str = "server.tls.key";

/// In seconds, as certificates count.
const DAY_SECONDS: u64 = 24 * 3600;

/// A setting's name, the file, and what is wrong: all that is needed to mend it.
fn unusable(setting: &'static str, file: &Path, problem: impl fmt::Display) -> UnusableSetting {
    UnusableSetting::new(setting, format_args!("{}: {problem}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_to_plain_http_is_as_long_as_it_says() {
        let text = std::str::from_utf8(PLAIN).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{}", body.len());
    }
}
