//! An Engine.IO session, the transport of Socket.IO clients: a conversation like that of a WebSocket, whose bytes
//! come by polls, by a WebSocket, or by polls first and a WebSocket later. One task for each session. Requests are
//! parsed in `http`, packets in `protocol/socketio.rs`.

use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::vec;

use bytes::Bytes;
use tokio::io::ReadBuf;
use tokio::sync::oneshot;
use tokio::task::spawn_local;
use tokio::time::{Sleep, timeout};
use tracing::debug;

use super::channel_questions::ChannelQuestions;
use super::farewell::closed;
use super::frames::{FrameAssembler, FrameLimits, IncomingMessage};
use super::liveness::{end_lingering, is_unauthorized};
use super::{
    ANSWER, FEW_BYTES, SCRATCH, SCRATCH_BYTES, count_work, end_session, linger, poll_budget,
};
use crate::app::App;
use crate::hub::budget::WorkKind;
use crate::hub::connection::Connection;
use crate::hub::http_sessions::HttpSession;
use crate::hub::stream::Stream;
use crate::hub::stream::engine::{EngineRequest, EngineSocket, EngineStream};
use crate::metrics::{Reason, Transport};
use crate::node::Node;
use crate::protocol::engineio::{
    EnginePacket, EngineVersion, PING, PING_INTERVAL, PING_TIMEOUT, PONG, PROBED,
};
use crate::protocol::error::{Error, close};
use crate::protocol::event::Message;
use crate::protocol::socketio::{EchoRequest, GreetingTerms, connected_packet, packet_message};
use crate::session::Session;
use crate::webhook::channel_auth::ClientHeaders;

/// Bytes of requests that may wait for the session, beyond which it is closed.
const MAX_WAITING: usize = 1 << 20;

/// Packets of one request that are handled before other sessions get a turn.
const HEARD_AT_ONCE: usize = 256;

/// Both the error and the close frame of a client that sends an attachment say this.
const BINARY: &str = "Attachments are not taken: events are JSON alone";
/// Echo knows the namespace `/` alone; what else a client asks for is answered as Socket.IO does.
const NO_NAMESPACE: Error = Error::new(4200, "Invalid namespace");

/// One session's life as a task.
#[derive(Debug)]
struct EngineConversation {
    session: Session,
    /// Says who sends pings, and how several packets share a body.
    version: EngineVersion,
    /// Subscriptions that the app's backend was asked about and has not answered.
    questions: ChannelQuestions,
    /// Of the session's WebSocket, and of one that is tried.
    frames: FrameAssembler,
    probe_frames: FrameAssembler,
    /// Runs while it is held up.
    timer: Option<Pin<Box<Sleep>>>,
    /// Packets of a request that were not handled yet.
    unhandled: Option<UnheardPackets>,
    /// The client's close frame has come.
    is_closed: bool,
    /// The client cannot be reached any longer.
    gone: bool,
}

/// The packets of one request.
#[derive(Debug)]
struct UnheardPackets {
    packets: vec::IntoIter<String>,
    /// Confirms that they were handled; `None` for a WebSocket.
    heard: Option<oneshot::Sender<bool>>,
}

/// Opens a session for a client that is let in, on this worker, and greets it; says where it is.
pub fn open(
    node: &Rc<Node>,
    app: &Arc<App>,
    terms: GreetingTerms,
    headers: ClientHeaders,
    address: IpAddr,
) -> Result<HttpSession, Error> {
    super::http_session::make_room(node);
    let stream = Stream::Engine(Box::new(EngineStream::new(terms)));
    let connection =
        node.connect_new(app, stream, address, Bytes::new()).map_err(|(error, _)| error)?;
    let session = HttpSession { app: app.id.clone(), place: connection.connection_ref() };
    let conversation = Session::new(node.clone(), connection);
    // The `sid` of Engine.IO is the socket ID of the Pusher protocol, so that logs have one name.
    let name = session.place.socket.to_string();
    let listing = node.hub().http_sessions.claim_session(&name, session.clone());
    // Names are drawn by lot.
    let listing = listing.map_err(|_| close::OVER_CAPACITY)?;
    conversation.connection().over_engine(|stream| stream.set_listing(listing));
    node.counts().over_http.count(Transport::SocketIo as usize);
    node.emit_connected(conversation.connection(), Transport::SocketIo.label());
    spawn_local(EngineConversation {
        session: conversation,
        version: terms.version,
        questions: ChannelQuestions::new(headers),
        frames: FrameAssembler::default(),
        probe_frames: FrameAssembler::default(),
        timer: None,
        unhandled: None,
        is_closed: false,
        gone: false,
    });
    Ok(session)
}

impl EngineConversation {
    /// Takes in what requests have brought. Packets wait behind a subscription that other nodes are asked about, and
    /// while the connection is held up, as a WebSocket's do.
    fn handle_arrivals(&mut self, cx: &mut Context<'_>) {
        let connection = self.session.connection().clone();
        let mut may_read = true;
        loop {
            may_read = may_read && self.may_read(cx);
            if may_read && let Some(rest) = self.unhandled.take() {
                self.take_packets(&connection, rest);
                connection.flush();
                continue;
            }
            let hears_requests = may_read && self.unhandled.is_none();
            let next = connection.over_engine(|stream| stream.next_arrival(hears_requests));
            let Some(arrival) = next.flatten() else { break };
            self.take(&connection, arrival);
            connection.flush();
        }
        // A client that sends faster than it is handled would fill the memory.
        if connection.over_engine(|stream| stream.waiting_bytes()) > Some(MAX_WAITING) {
            connection.close_with(&close::FLOODING);
        }
    }

    /// Whether packets may be handled now; if not, the task is woken later.
    fn may_read(&mut self, cx: &mut Context<'_>) -> bool {
        self.session.connection().is_closing()
            || !self.session.is_ahead()
                && !self.questions.is_full()
                && self.session.node().worker.turnstile.poll_turn(cx).is_ready()
                && poll_budget(&self.session, &mut self.timer, cx).is_ready()
    }

    /// One request, whichever it is: a poll to answer, packets, or a WebSocket.
    fn take(&mut self, connection: &Connection, arrival: EngineRequest) {
        connection.life.note_alive(self.session.node().worker.now_seconds());
        match arrival {
            EngineRequest::Polling(poll) => {
                connection.over_engine(|stream| stream.answer_to(poll));
                connection.flush();
                // It says nothing while it waits for the end of a poll to change to its WebSocket.
                connection.over_engine(EngineStream::end_idle_poll);
            }
            EngineRequest::Packets { packets, bytes, heard } => {
                connection.traffic().received_bytes.add(bytes as u64);
                self.session.node().worker.turnstile.count_work(bytes / 1024);
                let packets = packets.into_iter();
                self.take_packets(connection, UnheardPackets { packets, heard: Some(heard) });
            }
            // 1009, as RFC 6455 section 7.4.1 has it for a WebSocket: the reason is the same.
            EngineRequest::TooLarge { heard } => {
                let is_open = !connection.is_closing();
                connection.end_with(Message::close(1009, super::TOO_LARGE), Reason::TooLarge);
                // The request's own client may have gone; then nobody waits for the result.
                let _ = heard.send(is_open);
            }
            EngineRequest::Socket { stream, answer, early, mut alive } => {
                alive.move_to(self.session.node().worker.index().into());
                let Ok(socket) = EngineSocket::new(stream, answer, alive) else { return };
                let is_probe = connection.over_engine(|stream| stream.take_socket(socket));
                let mut early = early.to_vec();
                if is_probe == Some(true) {
                    self.probe_frames = FrameAssembler::default();
                    self.take_probe_bytes(connection, &mut early);
                } else {
                    self.take_bytes(&mut early);
                }
            }
        }
    }

    /// Hears some of what a request says, and the rest in a later turn.
    fn take_packets(&mut self, connection: &Connection, mut said: UnheardPackets) {
        let (spent, before) = (connection.budget.spent(), said.packets.len());
        let is_open = !connection.is_closing();
        while before - said.packets.len() < HEARD_AT_ONCE
            && !connection.is_closing()
            && !self.questions.is_full()
        {
            let Some(packet) = said.packets.next() else { break };
            self.on_packet(&packet);
        }
        count_work(&self.session, (before - said.packets.len(), 0), spent);
        if said.packets.len() > 0 && !connection.is_closing() {
            self.unhandled = Some(said);
            return;
        }
        // The client may have gone.
        let _ = said.heard.map(|heard| heard.send(is_open));
    }

    /// Handles one Engine.IO packet. An invalid one is refused like an invalid command.
    fn on_packet(&mut self, packet: &str) {
        let connection = self.session.connection().clone();
        connection.life.note_alive(self.session.node().worker.now_seconds());
        match EnginePacket::parse(packet) {
            Some(EnginePacket::Message(message)) => self.on_message(&connection, message),
            Some(EnginePacket::Ping) => {
                connection.budget.spend(WorkKind::Ping);
                connection.enqueue_message(packet_message(PONG));
            }
            Some(EnginePacket::Probe) => {
                connection.budget.spend(WorkKind::Ping);
                connection.enqueue_message(packet_message(PROBED));
            }
            Some(EnginePacket::Close) => {
                connection.end_with(Message::close(1000, ""), Reason::Client);
            }
            // A pong was noted as a sign of life above; an upgrade counts on the new WebSocket
            // alone.
            Some(EnginePacket::Pong | EnginePacket::Upgrade | EnginePacket::Noop) => {
                connection.budget.spend(WorkKind::Frame);
            }
            // Counted and refused like any other message that is no command.
            None => self.session.on_text(""),
        }
    }

    /// One packet of Socket.IO inside of it, translated into a command of the Pusher protocol.
    fn on_message(&mut self, connection: &Rc<Connection>, message: &str) {
        match EchoRequest::parse(message, self.version) {
            EchoRequest::Connect => {
                connection.budget.spend(WorkKind::Ping);
                let packet = connected_packet(&connection.id.to_string());
                connection.enqueue_message(packet_message(&packet));
            }
            EchoRequest::Disconnect => {
                connection.end_with(Message::close(1000, ""), Reason::Client);
            }
            EchoRequest::Elsewhere(packet) => {
                self.session.refuse_packet(&NO_NAMESPACE);
                connection.enqueue_message(packet_message(&packet));
            }
            EchoRequest::Binary => {
                self.session.refuse_packet(&Error::new(4200, BINARY));
                connection.end_with(Message::close(1003, BINARY), Reason::Encoding);
            }
            EchoRequest::Command(command) => self.session.on_text(&command),
            EchoRequest::Unsubscribe { channel, command } => {
                self.questions.cancel(&channel);
                self.session.on_text(&command);
            }
            EchoRequest::Authorize { channel, headers } => {
                connection.budget.spend(WorkKind::Subscribe);
                self.questions.ask(&self.session, channel, headers);
            }
        }
    }

    /// Takes bytes that were read off the session's WebSocket.
    fn take_bytes(&mut self, bytes: &mut [u8]) {
        let connection = self.session.connection().clone();
        connection.traffic().received_bytes.add(bytes.len() as u64);
        let read = bytes.len();
        let mut frames = std::mem::take(&mut self.frames);
        let (packets, is_closed) = read_packets(&mut frames, bytes, &connection);
        self.frames = frames;
        self.is_closed |= is_closed;
        self.session.node().worker.turnstile.count_work(read / 1024);
        if !packets.is_empty() {
            let packets = packets.into_iter();
            self.take_packets(&connection, UnheardPackets { packets, heard: None });
        }
        if is_closed {
            connection.end_with(Message::close(1000, ""), Reason::Client);
        }
        connection.flush();
    }

    /// Reads what there is on the session's WebSocket; ready when that has ended.
    fn poll_take(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        SCRATCH_BYTES.with_borrow_mut(|scratch| {
            loop {
                let connection = self.session.connection().clone();
                if connection.is_closing() || self.unhandled.is_some() || !self.may_read(cx) {
                    return Poll::Pending;
                }
                let most = self.frames.missing().clamp(FEW_BYTES, SCRATCH);
                // `most` is at most `SCRATCH`, the length of the buffer.
                let mut buffer = ReadBuf::new(scratch.get_mut(..most).unwrap_or_default());
                let read = connection.over_engine(|stream| stream.poll_read(cx, &mut buffer));
                let Some(Poll::Ready(read)) = read else { return Poll::Pending };
                if read.is_err() || buffer.filled().is_empty() {
                    return Poll::Ready(());
                }
                let full = buffer.remaining() == 0;
                self.take_bytes(buffer.filled_mut());
                if full || self.unhandled.is_some() {
                    // Others get a turn before a client that sends without end.
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
            }
        })
    }

    /// Reads what there is on a WebSocket that is tried, and changes to it.
    fn poll_probe(&mut self, cx: &mut Context<'_>) {
        let connection = self.session.connection().clone();
        let mut scratch = [0; 512];
        while connection.over_engine(|stream| stream.has_probe()) == Some(true) {
            let mut buffer = ReadBuf::new(&mut scratch);
            let read = connection.over_engine(|stream| stream.poll_probe(cx, &mut buffer));
            let Some(Poll::Ready(read)) = read else { return };
            if read.is_err() || buffer.filled().is_empty() {
                drop(connection.over_engine(EngineStream::drop_probe));
                return;
            }
            self.take_probe_bytes(&connection, buffer.filled_mut());
        }
    }

    /// The client asks by `2probe` on the new WebSocket; answered, it sends `5`, and everything
    /// goes that way from then on (Engine.IO, "Upgrading").
    fn take_probe_bytes(&mut self, connection: &Connection, bytes: &mut [u8]) {
        let mut frames = std::mem::take(&mut self.probe_frames);
        let (packets, is_closed) = read_packets(&mut frames, bytes, connection);
        let mut packets = packets.into_iter();
        while let Some(packet) = packets.next() {
            match EnginePacket::parse(&packet) {
                Some(EnginePacket::Probe) => {
                    connection.over_engine(|stream| {
                        stream.answer_probe(PROBED);
                        stream.end_idle_poll();
                    });
                }
                Some(EnginePacket::Upgrade) => {
                    connection.over_engine(EngineStream::change_to_probe);
                    self.frames = std::mem::take(&mut frames);
                    self.take_packets(connection, UnheardPackets { packets, heard: None });
                    break;
                }
                // Nothing else may come before the change: such a WebSocket is given up, the
                // session is not.
                _ => drop(connection.over_engine(EngineStream::drop_probe)),
            }
        }
        self.probe_frames = frames;
        if is_closed {
            drop(connection.over_engine(EngineStream::drop_probe));
        }
    }

    /// Hands the WebSocket of an ended session to a task that lets the client read the last packets.
    fn close_socket(&self, connection: &Connection) {
        let Some(Some(socket)) = connection.over_engine(EngineStream::take_finished) else {
            return;
        };
        let (mut stream, alive) = socket.into_parts();
        let is_closed = self.is_closed;
        spawn_local(async move {
            if !is_closed {
                // Both ends of that wait are the same to us.
                let _ = timeout(ANSWER, closed(&mut stream)).await;
            }
            linger(&mut stream).await;
            drop(alive);
        });
    }
}

/// The packets of a WebSocket's frames, and whether the client closes it. A protocol error ends the session.
fn read_packets(
    frames: &mut FrameAssembler,
    bytes: &mut [u8],
    connection: &Connection,
) -> (Vec<String>, bool) {
    // Compression was not agreed on: its handshake offers none.
    let limits = FrameLimits { max: connection.app().limits.max_message_size, inflates: false };
    let (mut packets, mut is_closed) = (Vec::new(), false);
    let fed = frames.feed(bytes, limits, |incoming| {
        match incoming {
            IncomingMessage::Text(text) => packets.push(text.to_owned()),
            IncomingMessage::Close(_) => is_closed = true,
            IncomingMessage::Ping(payload) => {
                connection.budget.spend(WorkKind::Ping);
                connection.enqueue_message(Message::ws_pong(payload));
            }
            IncomingMessage::Pong | IncomingMessage::Part => {
                connection.budget.spend(WorkKind::Frame);
            }
        }
        true
    });
    if let Err(breach) = fed {
        super::end_for_breach(connection, breach);
    }
    (packets, is_closed)
}

impl Future for EngineConversation {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let connection = self.session.connection().clone();
        connection.set_waker(cx);
        loop {
            self.handle_arrivals(cx);
            if connection.is_closing() {
                break;
            }
            self.poll_probe(cx);
            let ended = self.poll_take(cx).is_ready();
            self.gone |= ended;
            let Self { questions, session, gone, .. } = &mut *self;
            // Packets that waited behind them may be handled now.
            if *gone || !questions.poll_answers(session, cx) {
                break;
            }
        }
        while !connection.is_closing() && self.session.resume() {
            connection.flush();
            self.handle_arrivals(cx);
        }
        connection.flush();
        // What the socket does not take now is written when it becomes writable.
        let _ = connection.poll_flush(cx);
        self.gone = self.gone
            || connection.is_over()
            || connection.over_engine(|stream| stream.poll_cut(cx).is_ready()) == Some(true);
        if self.gone || connection.is_closing() {
            ready!(super::poll_leave(&mut self.session, cx));
        }
        let is_finished = connection.over_engine(|stream| stream.is_finished()) == Some(true);
        if is_finished {
            self.close_socket(&connection);
        }
        if self.gone || is_finished { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for EngineConversation {
    fn drop(&mut self) {
        let (node, connection) = (self.session.node(), self.session.connection());
        connection.over_engine(EngineStream::drop_listing);
        node.counts().over_http.uncount(Transport::SocketIo as usize);
        end_session(&mut self.session);
    }
}

/// Checks one session, at second `now` of its worker's clock: pings it, and ends it if no answer or no request
/// comes.
pub fn check_liveness(connection: &Connection, now: u32) {
    let idle = connection.over_engine(|stream| (stream.idle_for(now), stream.terms().version));
    let Some((idle, version)) = idle else { return };
    let life = &connection.life;
    connection.forget_leaves(now);
    let passed = |since: u32, seconds: u32| now.saturating_sub(since) >= seconds;
    if connection.is_closing() {
        return end_lingering(connection, now);
    }
    // Aborted without a close packet, since there is no request that could carry it.
    if idle >= PING_INTERVAL + PING_TIMEOUT {
        debug!(socket = %connection.id, "nothing has polled");
        return connection.abort();
    }
    if is_unauthorized(connection, now) {
        return connection.close_with(&close::UNAUTHORIZED);
    }
    match version {
        // The client pings by itself, so that it is heard as often.
        EngineVersion::V3 => {
            if passed(life.heard.get(), PING_INTERVAL + PING_TIMEOUT) {
                connection.close_with(&close::NO_PONG);
            }
        }
        EngineVersion::V4 if life.asked.get() > 0 => {
            if passed(life.asked.get(), PING_TIMEOUT) {
                connection.close_with(&close::NO_PONG);
            }
        }
        EngineVersion::V4 => {
            let is_due = connection.over_engine(|stream| stream.is_ping_due(now, PING_INTERVAL));
            if is_due == Some(true) {
                connection.enqueue_message(packet_message(PING));
                connection.flush();
                life.asked.set(now);
            }
        }
    }
}
