//! The streams of a client's bytes: TCP, TLS over it with the tests' certificates, which are trusted by
//! nobody else, or a Unix socket.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion,
};

use super::DEADLINE;

pub enum Wire {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
    Unix(UnixStream),
}

impl Wire {
    /// Ends our half, if it is not ended already.
    pub fn finish(&self) {
        let _ = match self {
            Self::Plain(tcp) => tcp.shutdown(Shutdown::Write),
            Self::Tls(tls) => tls.sock.shutdown(Shutdown::Write),
            Self::Unix(unix) => unix.shutdown(Shutdown::Write),
        };
    }

    /// The name in the certificate that the server showed, by the test's own names: `one` or `two`.
    pub fn certificate(&self) -> Option<&'static str> {
        let Self::Tls(tls) = self else { return None };
        let shown = tls.conn.peer_certificates()?.first()?;
        ["one", "two"].into_iter().find(|name| *shown == read(name))
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // With a time limit a read is interrupted when this process was stopped and goes on, by a debugger or a shell.
        loop {
            let read = match self {
                Self::Plain(tcp) => tcp.read(buffer),
                Self::Tls(tls) => tls.read(buffer),
                Self::Unix(unix) => unix.read(buffer),
            };
            match read {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => return read,
            }
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.write(bytes),
            Self::Tls(tls) => tls.write(bytes),
            Self::Unix(unix) => unix.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(tcp) => tcp.flush(),
            Self::Tls(tls) => tls.flush(),
            Self::Unix(unix) => unix.flush(),
        }
    }
}

/// A TCP connection that gives up after [`DEADLINE`].
pub fn tcp(addr: SocketAddr) -> TcpStream {
    let tcp = TcpStream::connect(addr).unwrap();
    tcp.set_nodelay(true).unwrap();
    tcp.set_read_timeout(Some(DEADLINE)).unwrap();
    tcp.set_write_timeout(Some(DEADLINE)).unwrap();
    tcp
}

/// The same over a Unix socket.
pub fn unix(path: &Path) -> io::Result<Wire> {
    let unix = UnixStream::connect(path)?;
    unix.set_read_timeout(Some(DEADLINE))?;
    unix.set_write_timeout(Some(DEADLINE))?;
    Ok(Wire::Unix(unix))
}

/// How a client does TLS: with one version, and an offer of application protocols.
pub fn client(version: &'static SupportedProtocolVersion, protocols: &[&str]) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for name in ["one", "two"] {
        roots.add(read(name)).unwrap();
    }
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[version]);
    let mut config = config.unwrap().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    Arc::new(config)
}

/// A connection with TLS on it, its handshake done.
pub fn tls(addr: SocketAddr, config: Arc<ClientConfig>) -> io::Result<Wire> {
    let name = ServerName::try_from("localhost").unwrap();
    let session = ClientConnection::new(config, name).unwrap();
    let mut stream = StreamOwned::new(session, tcp(addr));
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(Wire::Tls(Box::new(stream)))
}

/// A file of the test certificate `name`; `end` is `crt` or `key`.
pub fn file(name: &str, end: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/certificates");
    folder.join(format!("{name}.{end}"))
}

fn read(name: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(file(name, "crt")).unwrap()
}
