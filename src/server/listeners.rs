//! The server's listeners: one for everything, or one for sockets and one for the HTTP API. Binds them, takes over
//! inherited ones, and passes them to a successor.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::listener::{self, ListenAddress, Listener, SocketFile};
use super::resolve;
use crate::config::{self, UnixSocket};
use crate::http::AddressRole;

/// Listeners that were there before the server, and go on when it ends.
/// From systemd, or from the process whose place this one takes.
#[derive(Debug, Default)]
pub struct PassedListeners {
    /// For sockets, and for the API where it has none of its own.
    pub sockets: Option<OwnedFd>,
    /// For the API alone, on no other address then, whatever the settings say.
    pub api: Option<OwnedFd>,
    /// Whether another process removes the socket files.
    pub leave_files: bool,
    /// Whether the previous process sends the state of its clients before this one accepts.
    pub clients_follow: bool,
}

/// The listeners, as far as the server needs them after they were given to the acceptor.
#[derive(Debug)]
pub(super) struct ListenerSet {
    /// For sockets, and for everything where the API has no address of its own.
    pub sockets: KeptListener,
    /// For the API, if it has one.
    pub api: Option<KeptListener>,
}

/// One listener, without the right to accept.
#[derive(Debug)]
pub(super) struct KeptListener {
    /// As it is connected to.
    pub address: ListenAddress,
    /// A duplicate, for a process that takes over.
    listener: OwnedFd,
    /// Removed at the end.
    file: Option<SocketFile>,
}

impl KeptListener {
    /// Taken before the listener is given to the acceptor.
    fn of(listener: &Listener, file: Option<&UnixSocket>) -> io::Result<Self> {
        let address = listener.address()?;
        let file = SocketFile::of(&address, file);
        Ok(Self { address, listener: listener.duplicate()?, file })
    }
}

impl ListenerSet {
    /// Listens at the addresses of the settings, or on what was passed in their place. The listeners are to
    /// be accepted on, each in its role.
    /// # Errors
    /// An address is in use, not this machine's, or needs rights that the process does not have.
    pub(super) fn open(
        config: &config::ServerConfig,
        passed: PassedListeners,
    ) -> io::Result<(Self, Vec<(Listener, AddressRole)>)> {
        // A file of systemd's, or of the process before, is theirs to remove.
        let ours = |is_passed: bool| !(is_passed && passed.leave_files);
        let (sockets_file_is_ours, api_file_is_ours) =
            (ours(passed.sockets.is_some()), ours(passed.api.is_some()));
        let sockets = match passed.sockets {
            // Systemd's address counts, whatever the settings say.
            Some(socket) => adopt(socket, config.tls.is_some())?,
            None => bind(&config.host, config.port, config.unix_socket.as_ref())?,
        };
        let api_file = config.api.as_ref().and_then(|api| api.unix_socket.as_ref());
        let api = match (passed.api, &config.api) {
            (Some(socket), _) => Some(adopt(socket, false)?),
            (None, Some(api)) => Some(bind(&api.host, api.port, api_file)?),
            (None, None) => None,
        };
        let all = Self {
            sockets: KeptListener::of(
                &sockets,
                config.unix_socket.as_ref().filter(|_| sockets_file_is_ours),
            )?,
            api: api
                .as_ref()
                .map(|api| KeptListener::of(api, api_file.filter(|_| api_file_is_ours)))
                .transpose()?,
        };
        let open = match api {
            Some(api) => vec![(sockets, AddressRole::Sockets), (api, AddressRole::Api)],
            None => vec![(sockets, AddressRole::Both)],
        };
        Ok((all, open))
    }

    /// The listeners, for another process.
    pub(super) fn duplicate(&self) -> io::Result<PassedListeners> {
        let duplicate = |kept: &KeptListener| kept.listener.as_fd().try_clone_to_owned();
        let api = self.api.as_ref().map(duplicate).transpose()?;
        Ok(PassedListeners {
            sockets: Some(duplicate(&self.sockets)?),
            api,
            ..PassedListeners::default()
        })
    }

    /// Leaves the files of Unix sockets where they are: another process listens there.
    pub(super) fn leave_files(&mut self) {
        self.sockets.file = None;
        if let Some(api) = &mut self.api {
            api.file = None;
        }
    }

    /// Only those that are still this process's: see [`SocketFile`].
    pub(super) fn remove_files(&self) {
        let all = [Some(&self.sockets), self.api.as_ref()];
        all.into_iter()
            .flatten()
            .filter_map(|kept| kept.file.as_ref())
            .for_each(SocketFile::remove);
    }
}

/// Takes over a socket that systemd or the process before has opened.
///
/// # Errors
/// It does not listen, or is a Unix socket where TLS is to be spoken: the proxy that connects there
/// would speak plain HTTP.
fn adopt(socket: OwnedFd, speaks_tls: bool) -> io::Result<Listener> {
    let listener = Listener::adopt(socket)?;
    if speaks_tls && matches!(listener, Listener::Unix(_)) {
        return Err(io::Error::other("no TLS is spoken on the Unix socket that was passed"));
    }
    Ok(listener)
}

/// A new listener: at the Unix socket, if there is one, in the place of host and port.
fn bind(host: &str, port: u16, unix: Option<&UnixSocket>) -> io::Result<Listener> {
    if let Some(unix) = unix {
        let bound = listener::bind_unix(unix).map(Listener::Unix);
        let path = unix.path.display();
        return bound.map_err(|error| io::Error::other(format!("{path}: {error}")));
    }
    let bound = resolve(host, port).and_then(listener::bind).map(Listener::Tcp);
    bound.map_err(|error| {
        let advice = match error.kind() {
            io::ErrorKind::PermissionDenied if port < 1024 => {
                "; ports below 1024 need CAP_NET_BIND_SERVICE"
            }
            io::ErrorKind::AddrNotAvailable => "; this machine has no such address",
            _ => "",
        };
        io::Error::other(format!("{host}:{port}: {error}{advice}"))
    })
}
