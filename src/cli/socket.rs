//! A WebSocket client for any server of the Pusher protocol: its handshake, its messages, and why it does not open.
//! `listen.rs` interprets the messages.

use std::io::{self, Cursor};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fastwebsockets::{FragmentCollector, Frame, OpCode, Payload, Role, WebSocket, WebSocketError};
use http_body_util::Full;
use hyper::header::{
    CONNECTION, ORIGIN, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::http::request::Builder;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use super::client::{ApiResponse, ApiTarget, read_answer};
use super::{CommandError, without_controls};
use crate::hub::stream::Stream;

/// A WebSocket that messages are read from and written to.
/// Fragments are joined: other servers than this one may split a message (RFC 6455 section 5.4).
pub(super) type ClientSocket = FragmentCollector<Box<dyn Duplex>>;

/// Both halves of a stream.
/// A name for the sum, as a trait object takes only one trait that is not a marker.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

/// Why a socket does not open, or goes on no longer.
#[derive(Debug)]
pub(super) enum SocketError {
    /// The address cannot be reached, or does not speak HTTP.
    Unreachable(CommandError),
    /// The handshake was answered like any request.
    NotUpgraded(ApiResponse),
    /// Refused or closed, with the code and what was said.
    Closed(u16, String),
    /// The bytes are not the Pusher protocol, or not a WebSocket.
    Garbled(String),
    /// No greeting came.
    Silent,
}

impl From<SocketError> for CommandError {
    fn from(error: SocketError) -> Self {
        match error {
            SocketError::Unreachable(failure) => failure,
            SocketError::NotUpgraded(answer) => Self(format!(
                "the WebSocket was answered with {}: a proxy in between does not pass the upgrade on, or the path is another",
                answer.status
            )),
            SocketError::Closed(code, reason) => Self(format!(
                "the server closed the connection: {code} {}",
                without_controls(&reason)
            )),
            SocketError::Garbled(text) => Self(text),
            SocketError::Silent => Self("no greeting came in ten seconds".to_owned()),
        }
    }
}

impl ApiTarget {
    /// Whether the server accepts a socket's offer of compression.
    pub(super) async fn agrees_on_compression(&self) -> Result<bool, CommandError> {
        let offered = async {
            let request =
                self.handshake_request()?.header(SEC_WEBSOCKET_EXTENSIONS, "permessage-deflate");
            self.exchange(request.body(Full::default()).map_err(io::Error::other)?).await
        };
        let response = self.in_time(offered).await?;
        let answer = response.headers().get(SEC_WEBSOCKET_EXTENSIONS);
        Ok(answer.is_some_and(|agreed| agreed.as_bytes().starts_with(b"permessage-deflate")))
    }

    /// A WebSocket of the app, before anything was said on it.
    ///
    /// # Errors
    /// The server cannot be reached, or answers the handshake with something else than 101.
    pub(super) async fn open_socket(&self) -> Result<ClientSocket, SocketError> {
        let upgraded = self.in_time(self.try_upgrade()).await.map_err(SocketError::Unreachable)?;
        upgraded.map_err(SocketError::NotUpgraded)
    }

    /// The handshake of a socket.
    /// The nonce is random as RFC 6455 section 4.1 asks, though the answer to it is not checked:
    /// what comes next must be a greeting, and nothing else would send one.
    fn handshake_request(&self) -> io::Result<Builder> {
        let mut nonce = [0; 16];
        getrandom::fill(&mut nonce).map_err(io::Error::other)?;
        let request = Request::builder()
            .uri(self.socket_path())
            .header(CONNECTION, "Upgrade")
            .header(UPGRADE, "websocket")
            .header(SEC_WEBSOCKET_VERSION, "13")
            .header(SEC_WEBSOCKET_KEY, STANDARD.encode(nonce));
        Ok(match &self.origin {
            Some(origin) => request.header(ORIGIN, origin),
            None => request,
        })
    }

    /// The outer error is one of the way there; the inner answer is a server's that does not
    /// upgrade.
    async fn try_upgrade(&self) -> io::Result<Result<ClientSocket, ApiResponse>> {
        let request = self.handshake_request()?.body(Full::default()).map_err(io::Error::other)?;
        let response = self.exchange(request).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Ok(Err(read_answer(response).await?));
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(io::Error::other)?;
        let parts = upgraded
            .downcast::<TokioIo<Stream>>()
            .map_err(|_| io::Error::other("the stream is of another kind"))?;
        let (read, write) = tokio::io::split(parts.io.into_inner());
        // The greeting may have come with the answer's head: hyper has read it, so it goes in
        // front.
        let stream = tokio::io::join(Cursor::new(parts.read_buf).chain(read), write);
        let stream: Box<dyn Duplex> = Box::new(stream);
        Ok(Ok(FragmentCollector::new(WebSocket::after_handshake(stream, Role::Client))))
    }

    /// Path and query of the app's sockets.
    pub(super) fn socket_path(&self) -> String {
        let version = env!("CARGO_PKG_VERSION");
        format!("{}/app/{}?protocol=7&client=fanfare&version={version}", self.path, self.key)
    }
}

/// The next message. Not to be dropped halfway, for the reader loses its place.
///
/// # Errors
/// The connection ended, with the code of its close frame if one came.
pub(super) async fn next_message(socket: &mut ClientSocket) -> Result<String, SocketError> {
    loop {
        let frame = socket.read_frame().await.map_err(socket_error)?;
        match frame.opcode {
            OpCode::Text | OpCode::Binary => {
                return Ok(String::from_utf8_lossy(&frame.payload).into_owned());
            }
            OpCode::Close => {
                // A close frame may be empty (RFC 6455 section 5.5.1); its code is then shown as 0.
                let (code, reason) = frame.payload.split_at_checked(2).unwrap_or_default();
                // 1005 stands for a close frame without a code: RFC 6455 section 7.4.1.
                let code = code.try_into().map_or(1005, u16::from_be_bytes);
                let reason = String::from_utf8_lossy(reason).into_owned();
                return Err(SocketError::Closed(code, reason));
            }
            _ => {}
        }
    }
}

/// Masked, as a client's frames must be; the socket was made for the client's role.
pub(super) async fn send_frame(
    socket: &mut ClientSocket,
    frame: &Value,
) -> Result<(), SocketError> {
    let payload = Payload::Owned(frame.to_string().into_bytes());
    socket.write_frame(Frame::text(payload)).await.map_err(socket_error)
}

/// An end without a close frame is one of these, too.
fn socket_error(error: WebSocketError) -> SocketError {
    SocketError::Garbled(error.to_string())
}
