//! Connections as the debug console shows them: the request to each worker, and its reply. `socket_views.rs` finds
//! them.

use std::net::IpAddr;

use tokio::sync::oneshot;

use crate::protocol::socket_id::SocketId;

/// Which sockets are asked about; what is left out is not looked at.
#[derive(Debug, Default, Clone)]
pub struct SocketQuery {
    /// One connection; `None` for all that the filter lets through.
    pub socket: Option<SocketId>,
    /// The id of an app.
    pub app: Option<String>,
    /// Only sockets that are subscribed to it.
    pub channel: Option<String>,
    /// Only sockets that are signed in, or present, as this user.
    pub user: Option<String>,
}

/// One socket.
#[derive(Debug)]
pub struct SocketView {
    pub id: SocketId,
    pub app: String,
    pub address: IpAddr,
    /// Signed in as.
    pub user: Option<String>,
    /// Seconds since it was let in.
    pub age: u32,
    /// Seconds since something was received.
    pub silent: u32,
    /// The first of its channels, each with the user that it is present as.
    pub channels: Vec<(String, Option<String>)>,
    /// How many those are in all.
    pub channel_count: usize,
    /// Bytes that wait to be written.
    pub waiting: usize,
    /// `websocket`, or by which requests.
    pub transport: &'static str,
    pub is_compressed: bool,
    /// Its client may come back and go on.
    pub is_resumable: bool,
}

/// A question to one worker.
#[derive(Debug)]
pub struct DescribeTask {
    /// The requested connections.
    pub query: SocketQuery,
    /// Each worker answers for its own sockets.
    pub answer: oneshot::Sender<Vec<SocketView>>,
}
