//! The log line "listening": where, for which apps and from which source, and how many sockets fit.
//! `bin/fanfare/banner.rs` prints what a server without apps adds.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tracing::field::display;
use tracing::{info, warn};

use super::listeners::ListenerSet;
use super::tls::Certificates;
use crate::config::{self, Config};
use crate::node::ServerState;

/// The facts in the line "listening".
pub(super) struct Announcement {
    workers: usize,
    /// The path in front of all routes.
    path: String,
    /// Where the apps come from.
    app_sources: String,
}

impl Announcement {
    /// Copied before the settings are taken apart for the threads.
    pub(super) fn new(config: &Config) -> Self {
        let workers = config.server.workers.max(1);
        let (path, app_sources) = (config.server.path.clone(), config.app_sources.clone());
        Self { workers, path, app_sources }
    }

    /// Says that the server listens, and whether its certificate is of no use to clients.
    pub(super) fn log_start(
        self,
        listeners: &ListenerSet,
        shared: &ServerState,
        certificates: Option<&Certificates>,
    ) {
        let Self { workers, path, app_sources } = self;
        let (apps, room) = (shared.apps.load().len(), shared.capacity.max_connections());
        let memory = shared.capacity.max_memory();
        let (address, api) =
            (&listeners.sockets.address, listeners.api.as_ref().map(|api| &api.address));
        let url = address.tcp().map(|addr| local_url(addr, certificates.is_some(), &path));
        let (api, url) = (api.map(display), url.map(display));
        let version = config::VERSION;
        info!(addr = %address, url, api, workers, version, apps, from = app_sources, room, memory, "listening");
        if let Some(doubt) = certificates.and_then(Certificates::doubt) {
            warn!("server.tls.cert: {doubt}");
        }
    }
}

/// The URL by which the server is reached from its own machine.
fn local_url(addr: SocketAddr, is_tls: bool, path: &str) -> String {
    let ip = match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let scheme = if is_tls { "https" } else { "http" };
    format!("{scheme}://{}{path}", SocketAddr::new(ip, addr.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_an_address_that_one_can_go_to() {
        for (addr, is_tls, path, url) in [
            ("127.0.0.1:8080", false, "", "http://127.0.0.1:8080"),
            ("0.0.0.0:8080", false, "/ws", "http://127.0.0.1:8080/ws"),
            ("[::]:443", true, "", "https://[::1]:443"),
            ("10.0.0.7:443", true, "", "https://10.0.0.7:443"),
        ] {
            assert_eq!(local_url(addr.parse().unwrap(), is_tls, path), url);
        }
    }
}
