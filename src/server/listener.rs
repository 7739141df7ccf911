//! A listener: a TCP address, or a Unix socket for a proxy on the same machine. Binds it or takes an inherited one, and
//! manages the Unix socket's file.

use std::fmt;
use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::net::sockopt;
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};
use tokio::net;

use crate::config;
use crate::hub::stream::Stream;

/// Connections that the kernel keeps for us while we are busy; it takes no more than its own limit.
const BACKLOG: i32 = 4096;

/// The address of connections over a Unix socket, which can only come from this machine. Loopback is exempt from
/// limits by address.
const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A listening socket.
#[derive(Debug)]
pub(super) enum Listener {
    /// With an address and a port.
    Tcp(std::net::TcpListener),
    /// With a file, or passed by systemd without one that is known.
    Unix(UnixListener),
}

/// Where it listens.
#[derive(Clone, Debug)]
pub enum ListenAddress {
    /// With the port that was found, where the settings ask for any.
    Tcp(SocketAddr),
    /// None of a socket without a file.
    Unix(Option<PathBuf>),
}

impl ListenAddress {
    /// For what only TCP has, such as the port in a metric.
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(addr) => Some(*addr),
            Self::Unix(_) => None,
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(addr) => addr.fmt(f),
            Self::Unix(path) => {
                write!(f, "unix:{}", path.as_deref().unwrap_or_else(|| Path::new("")).display())
            }
        }
    }
}

/// A connection that was accepted, registered with the runtime that accepted it.
#[derive(Debug)]
pub(super) enum IncomingStream {
    /// Any client's, or a proxy's.
    Tcp(net::TcpStream),
    /// A proxy's on this machine.
    Unix(net::UnixStream),
}

/// The same without a runtime, on its way to another one.
#[derive(Debug)]
pub(super) enum UnregisteredStream {
    /// An accepted TCP connection.
    Tcp(std::net::TcpStream),
    /// An accepted connection over a Unix socket.
    Unix(UnixStream),
}

/// A listener that the runtime looks after.
#[derive(Debug)]
pub(super) enum RegisteredListener {
    Tcp(net::TcpListener),
    /// A listener on a Unix socket.
    Unix(net::UnixListener),
}

/// Listens on `addr`. A port that was in use a moment ago by a server that has ended can be used again.
///
/// # Errors
/// The address is in use or not this machine's, or the port is one for root.
pub(super) fn bind(addr: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    // Without it a restart would wait for the last connections to time out (TIME_WAIT).
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Listens on a Unix socket. A file left over from another server is replaced, but only if it is a socket on which
/// nothing answers.
///
/// # Errors
/// The file is no socket, another server answers there, or the folder cannot be written to.
pub(super) fn bind_unix(config: &config::UnixSocket) -> io::Result<UnixListener> {
    let config::UnixSocket { path, mode } = config;
    clear(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // The file gets its narrowest permissions before it has a name, so that no client connects before they are set.
    // The permissions of an unbound socket become those of its file.
    let file = File::from(OwnedFd::from(socket));
    file.set_permissions(Permissions::from_mode(0o600))?;
    let socket = Socket::from(OwnedFd::from(file));
    // The acceptor must never block.
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::unix(path)?)?;
    fs::set_permissions(path, Permissions::from_mode(*mode))?;
    socket.listen(BACKLOG)?;
    Ok(OwnedFd::from(socket).into())
}

/// Removes a stale socket at `path`. Only a socket on which nothing answers is removed: a wrong path in the
/// settings must not cost a file.
fn clear(path: &Path) -> io::Result<()> {
    let kind = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !kind.is_socket() {
        return Err(io::Error::new(ErrorKind::AlreadyExists, "the file is no socket"));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path),
        // Also where its queue is full or we may not ask.
        Ok(_) => Err(io::Error::new(ErrorKind::AddrInUse, "a server answers on it")),
        Err(error) => Err(error),
    }
}

impl Listener {
    /// A listening socket of either kind.
    /// Passed by systemd or by a process that hands over.
    pub(super) fn adopt(socket: OwnedFd) -> io::Result<Self> {
        let socket = Socket::from(socket);
        // A socket that is merely open would accept nothing, without an error.
        if !sockopt::socket_acceptconn(&socket).unwrap_or(false) {
            return Err(io::Error::other("what was passed does not listen"));
        }
        socket.set_nonblocking(true)?;
        let is_unix = socket.local_addr()?.is_unix();
        let socket = OwnedFd::from(socket);
        Ok(if is_unix { Self::Unix(socket.into()) } else { Self::Tcp(socket.into()) })
    }

    /// Where clients find it.
    pub(super) fn address(&self) -> io::Result<ListenAddress> {
        // As the kernel has it: the settings may say port 0.
        Ok(match self {
            Self::Tcp(listener) => ListenAddress::Tcp(listener.local_addr()?),
            Self::Unix(listener) => {
                ListenAddress::Unix(listener.local_addr()?.as_pathname().map(Path::to_owned))
            }
        })
    }

    /// For the process that takes over. Both accept until this one stops.
    pub(super) fn duplicate(&self) -> io::Result<OwnedFd> {
        match self {
            Self::Tcp(listener) => listener.as_fd().try_clone_to_owned(),
            Self::Unix(listener) => listener.as_fd().try_clone_to_owned(),
        }
    }

    /// Must be called on the thread whose runtime is to look after it.
    pub(super) fn register(self) -> io::Result<RegisteredListener> {
        Ok(match self {
            Self::Tcp(listener) => {
                // Frames are small, and must not wait for an acknowledgement (RFC 896). Linux gives this to all that are
                // accepted, which saves each a system call.
                SockRef::from(&listener).set_tcp_nodelay(true)?;
                RegisteredListener::Tcp(net::TcpListener::from_std(listener)?)
            }
            Self::Unix(listener) => {
                RegisteredListener::Unix(net::UnixListener::from_std(listener)?)
            }
        })
    }
}

impl RegisteredListener {
    /// The peer of a Unix socket is taken to be this machine.
    pub(super) async fn accept(&self) -> io::Result<(IncomingStream, SocketAddr)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((IncomingStream::Tcp(stream), peer))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((IncomingStream::Unix(stream), LOCAL))
            }
        }
    }
}

impl IncomingStream {
    /// Takes it off the acceptor's runtime.
    pub(super) fn into_bare(self) -> io::Result<UnregisteredStream> {
        Ok(match self {
            Self::Tcp(stream) => UnregisteredStream::Tcp(stream.into_std()?),
            Self::Unix(stream) => UnregisteredStream::Unix(stream.into_std()?),
        })
    }
}

impl From<IncomingStream> for Stream {
    fn from(incoming: IncomingStream) -> Self {
        match incoming {
            IncomingStream::Tcp(stream) => Self::Tcp(stream),
            IncomingStream::Unix(stream) => Self::Unix(stream),
        }
    }
}

impl UnregisteredStream {
    /// Registers it with the runtime of the thread that calls this.
    pub(super) fn register(self) -> io::Result<IncomingStream> {
        Ok(match self {
            Self::Tcp(stream) => IncomingStream::Tcp(net::TcpStream::from_std(stream)?),
            Self::Unix(stream) => IncomingStream::Unix(net::UnixStream::from_std(stream)?),
        })
    }
}

/// The file of a socket that is ours to remove.
#[derive(Debug)]
pub(super) struct SocketFile {
    /// Absolute, for the process may change its directory.
    path: PathBuf,
    /// Device and inode: another server may have put its own in the place.
    identity: (u64, u64),
}

impl SocketFile {
    /// That of a listener at `address`, if it is the one that the settings ask for.
    pub(super) fn of(address: &ListenAddress, config: Option<&config::UnixSocket>) -> Option<Self> {
        let ListenAddress::Unix(Some(path)) = address else { return None };
        if config.is_none_or(|config| config.path != *path) {
            return None;
        }
        let path = std::path::absolute(path).ok()?;
        Some(Self { identity: identity(&path)?, path })
    }

    /// Another server's socket at the path stays.
    pub(super) fn remove(&self) {
        if identity(&self.path) == Some(self.identity) {
            // Gone by now is as good.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Device and inode, which no other file has at the same time.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = fs::symlink_metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_accepted_waits_for_no_acknowledgement() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let listener = Listener::Tcp(listener).register().unwrap();
        let _client = std::net::TcpStream::connect(address).unwrap();
        let (IncomingStream::Tcp(stream), _) = listener.accept().await.unwrap() else { panic!() };
        assert!(stream.nodelay().unwrap());
    }
}
