//! What the server shows of itself over TLS: certificates read from their files and read again when these
//! change, and the first bytes of a connection. The bytes after are `hub::tls`'s.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::ProducesTickets;
use rustls::{ServerConfig, ServerConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::config;
use crate::hub::stream::Stream;
use crate::hub::tls::Tls;

/// The answer to whoever speaks plain HTTP here.
const PLAIN: &[u8] = b"HTTP/1.1 400 Bad Request\r\n\
    Content-Type: application/json\r\n\
    Content-Length: 76\r\n\
    Connection: close\r\n\
    \r\n\
    {\"error\":\"This port speaks TLS: use https:// or wss:// instead.\",\"code\":400}";

/// The certificate in use, and where the next one comes from.
#[derive(Debug)]
pub(super) struct Certificates {
    files: config::Tls,
    current: ArcSwap<ServerConfig>,
    /// Encrypts sessions that clients may resume, also after the certificate has changed.
    tickets: Arc<dyn ProducesTickets>,
}

impl Certificates {
    /// The error says which file it is about.
    pub(super) fn read(files: &config::Tls) -> Result<Self, String> {
        let tickets = ring::Ticketer::new().map_err(|error| error.to_string())?;
        let current = ArcSwap::from_pointee(load(files, &tickets)?);
        Ok(Self { files: files.clone(), current, tickets })
    }

    /// Reads the files again. What cannot be used changes nothing.
    pub(super) fn reload(&self) -> Result<(), String> {
        self.current.store(Arc::new(load(&self.files, &self.tickets)?));
        Ok(())
    }

    /// Begins TLS on a new connection; nothing if it turns out to be none.
    pub(super) async fn shake_hands(&self, mut tcp: TcpStream) -> io::Result<Stream> {
        let mut first = [0];
        if tcp.peek(&mut first).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // A record of TLS begins with its type, 22; a method of HTTP with a letter.
        if first[0].is_ascii_alphabetic() {
            tcp.write_all(PLAIN).await?;
            tcp.shutdown().await?;
            let mut scratch = [0; 512];
            while tcp.read(&mut scratch).await? > 0 {}
            return Err(io::Error::other("plain HTTP on the TLS port"));
        }
        let session = ServerConnection::new(self.current.load_full()).map_err(io::Error::other)?;
        let mut tls = Box::new(Tls::new(tcp, session.into()));
        std::future::poll_fn(|cx| tls.poll_handshake(cx)).await?;
        Ok(Stream::Tls(tls))
    }
}

fn load(files: &config::Tls, tickets: &Arc<dyn ProducesTickets>) -> Result<ServerConfig, String> {
    let config::Tls { cert, key } = files;
    let chain = CertificateDer::pem_file_iter(cert).map_err(|error| unusable(cert, error))?;
    let chain: Vec<_> = chain.collect::<Result<_, _>>().map_err(|error| unusable(cert, error))?;
    if chain.is_empty() {
        return Err(unusable(cert, "holds no certificate in PEM form"));
    }
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| unusable(key, error))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|error| unusable(cert, error))?
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .map_err(|error| unusable(key, error))?;
    // A socket is an upgraded HTTP/1.1 request, so nothing else is on offer.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.ticketer = tickets.clone();
    Ok(config)
}

fn unusable(file: &Path, problem: impl fmt::Display) -> String {
    format!("{}: {problem}", file.display())
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
