//! A session of pusher-js's HTTP transports: a conversation like that of a WebSocket, whose bytes come and go by
//! requests. One task for each session: it handles requests, notices when the receiving one is cut, and ends.
//! Requests are parsed in `http`.

use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use std::vec;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::sync::oneshot;
use tokio::task::spawn_local;
use tokio::time::Sleep;
use tracing::{debug, warn};

use super::liveness::end_lingering;
use super::{count_work, end_session, linger, poll_budget, watch};
use crate::app::App;
use crate::hub::budget::WorkKind;
use crate::hub::connection::Connection;
use crate::hub::http_sessions::HttpSession;
use crate::hub::http_stream::{HttpStream, SessionIdle, SessionRequest, answer_head};
use crate::hub::stream::Stream;
use crate::metrics::{Limited, LogNotice, Reason, Transport};
use crate::node::Node;
use crate::protocol::error::{Error, close};
use crate::protocol::event::Message;
use crate::protocol::fallback::{AnswerFraming, FallbackLines, OPEN};
use crate::session::Session;

/// How long nothing is said before a line says so; seconds.
/// Less than the half minute after which many proxies take a silent answer for dead.
const HEARTBEAT_SECONDS: u32 = 25;

/// How long a session waits for the next streaming request; seconds.
/// pusher-js opens the next one as soon as one has ended.
const STREAMING_SECONDS: u32 = 10;

/// How long a client may take to read that there is no session.
const PATIENCE: Duration = Duration::from_secs(5);

/// Bytes of requests that may wait for the session, beyond which it is closed.
const MAX_WAITING: usize = 1 << 20;

/// Messages of one request that are handled before other sessions get a turn.
const HEARD_AT_ONCE: usize = 256;

/// One session's life as a task.
#[derive(Debug)]
struct HttpSocket {
    session: Session,
    /// The transport, for metrics.
    transport: Transport,
    /// Runs while it is held up.
    timer: Option<Pin<Box<Sleep>>>,
    /// Messages of a request that were not handled yet.
    unhandled: Option<UnheardTexts>,
    /// Whether the client has gone.
    gone: bool,
}

/// The messages of one request.
#[derive(Debug)]
struct UnheardTexts {
    /// The texts that were not read yet.
    texts: vec::IntoIter<String>,
    /// Confirms that they were handled.
    heard: oneshot::Sender<bool>,
}

/// Opens the session `name` for a client that is let in, on this worker, and greets it; says where it is.
/// Should there be one already, that is it.
pub fn open(
    node: &Rc<Node>,
    app: &Arc<App>,
    name: &str,
    transport: Transport,
    address: IpAddr,
) -> Result<HttpSession, Error> {
    make_room(node);
    let stream = Stream::Http(Box::new(HttpStream::new(transport)));
    let connection =
        node.connect_new(app, stream, address, Bytes::new()).map_err(|(error, _)| error)?;
    let session = HttpSession { app: app.id.clone(), place: connection.connection_ref() };
    let conversation = Session::new(node.clone(), connection);
    // Two requests may have opened it at the same moment.
    match node.hub().http_sessions.claim_session(name, session.clone()) {
        Ok(listing) => conversation.connection().over_http(|stream| stream.set_listing(listing)),
        Err(other) => return Ok(other),
    };
    node.counts().over_http.count(transport as usize);
    node.emit_connected(conversation.connection(), transport.label());
    debug!(app = %app.id, socket = %session.place.socket, transport = transport.label(), "over HTTP");
    spawn_local(HttpSocket {
        session: conversation,
        transport,
        timer: None,
        unhandled: None,
        gone: false,
    });
    Ok(session)
}

/// Lets sessions make way that nothing receives for, where there are too many of them.
pub(super) fn make_room(node: &Node) {
    let ended = node.worker.make_room_for_session(node.shared.capacity.max_connections());
    note_ended(node, &ended);
}

/// The same once a second, and where the server has no room left.
pub fn keep_room(node: &Node) {
    let capacity = &node.shared.capacity;
    let (places, is_crowded) = (capacity.max_connections(), capacity.is_crowded());
    note_ended(node, &node.worker.look_after_sessions(places, is_crowded));
}

/// Counts sessions that were closed to make room, and logs it.
fn note_ended(node: &Node, ended: &[IpAddr]) {
    let Some(address) = ended.first() else { return };
    node.counts().limited.count_all(Limited::Connections as usize, ended.len() as u64);
    if let Some(others) = node.shared.metrics.notices.take_due(LogNotice::Crowd) {
        let count = ended.len();
        warn!(%address, count, others, "HTTP sessions are closed: too many have no request that receives");
    }
}

impl HttpSocket {
    /// Takes in what requests have brought. Texts wait behind a subscription that other nodes are asked about, and
    /// while the connection is held up, as a WebSocket's do.
    fn handle_arrivals(&mut self, cx: &mut Context<'_>) {
        let connection = self.session.connection().clone();
        let mut may_read = true;
        loop {
            may_read = may_read && self.may_read(cx);
            if may_read && let Some(rest) = self.unhandled.take() {
                self.take_texts(&connection, rest);
                connection.flush();
                continue;
            }
            let next = connection.over_http(|stream| stream.next_arrival(may_read)).flatten();
            let Some(arrival) = next else { break };
            self.take(&connection, arrival);
            connection.flush();
        }
        if connection.over_http(|stream| stream.waiting_bytes()) > Some(MAX_WAITING) {
            connection.close_with(&close::FLOODING);
        }
    }

    /// Whether messages may be handled now; if not, the task is woken later.
    fn may_read(&mut self, cx: &mut Context<'_>) -> bool {
        self.session.connection().is_closing()
            || !self.session.is_ahead()
                && self.session.node().worker.turnstile.poll_turn(cx).is_ready()
                && poll_budget(&self.session, &mut self.timer, cx).is_ready()
    }

    /// One request, whichever it is: a stream to write to, a poll to answer, or texts.
    fn take(&mut self, connection: &Connection, arrival: SessionRequest) {
        let life = &connection.life;
        life.heard.set(self.session.node().worker.now_seconds());
        // Any request is a sign of life.
        life.asked.set(0);
        match arrival {
            SessionRequest::Streaming { stream, framing, before, mut alive } => {
                alive.move_to(self.session.node().worker.index().into());
                self.recount(Transport::XhrStreaming);
                let begun =
                    connection.over_http(|to| to.stream_to(stream, (framing, before), alive));
                if let Some(Err(error)) = begun {
                    debug!(socket = %connection.id, %error, "a streaming request was lost");
                }
            }
            SessionRequest::Polling(poll) => {
                self.recount(Transport::XhrPolling);
                connection.over_http(|stream| stream.answer_to(poll));
            }
            SessionRequest::Texts { texts, bytes, heard } => {
                connection.traffic().received_bytes.add(bytes as u64);
                self.session.node().worker.turnstile.count_work(bytes / 1024);
                if texts.is_empty() {
                    // A heartbeat is answered with a line that asks for no answer.
                    connection.budget.spend(WorkKind::Ping);
                    connection.enqueue_message(Message::ws_pong(&[]));
                }
                self.take_texts(connection, UnheardTexts { texts: texts.into_iter(), heard });
            }
            SessionRequest::TooLarge { heard } => {
                let is_open = !connection.is_closing();
                connection.end_with(Message::close(1009, super::TOO_LARGE), Reason::TooLarge);
                // The request's own client may have gone; then nobody waits for the result.
                let _ = heard.send(is_open);
            }
        }
    }

    /// Hears some of what a request says, and the rest in a later turn.
    fn take_texts(&mut self, connection: &Connection, mut said: UnheardTexts) {
        let (spent, before) = (connection.budget.spent(), said.texts.len());
        let is_open = !connection.is_closing();
        while before - said.texts.len() < HEARD_AT_ONCE && !connection.is_closing() {
            let Some(text) = said.texts.next() else { break };
            self.session.on_text(&text);
        }
        count_work(&self.session, (before - said.texts.len(), 0), spent);
        if said.texts.len() > 0 && !connection.is_closing() {
            self.unhandled = Some(said);
            return;
        }
        // The client may have gone.
        let _ = said.heard.send(is_open);
    }

    /// A session may change from streaming to polling: pusher-js does where a proxy holds answers
    /// back.
    fn recount(&mut self, transport: Transport) {
        let counts = &self.session.node().counts().over_http;
        counts.uncount(self.transport as usize);
        counts.count(transport as usize);
        self.transport = transport;
    }
}

impl Future for HttpSocket {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let connection = self.session.connection().clone();
        connection.set_waker(cx);
        self.handle_arrivals(cx);
        while !connection.is_closing() && self.session.resume() {
            connection.flush();
            self.handle_arrivals(cx);
        }
        // What the socket does not take now is written when it becomes writable.
        let _ = connection.poll_flush(cx);
        let finished = connection.over_http(HttpStream::take_finished).unwrap_or_default();
        for (mut stream, alive) in finished {
            spawn_local(async move {
                linger(&mut stream).await;
                drop(alive);
            });
        }
        let Self { session, gone, .. } = &mut *self;
        *gone = *gone
            || connection.is_over()
            || connection.over_http(|stream| stream.poll_cut(cx).is_ready()) == Some(true);
        if *gone || connection.is_closing() {
            ready!(super::poll_leave(session, cx));
        }
        let is_finished = connection.over_http(|stream| stream.is_finished()) == Some(true);
        if *gone || is_finished { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for HttpSocket {
    fn drop(&mut self) {
        let (node, connection) = (self.session.node(), self.session.connection());
        connection.over_http(HttpStream::drop_listing);
        node.counts().over_http.uncount(self.transport as usize);
        end_session(&mut self.session);
    }
}

/// Tells a streaming request that opened no session why, and ends it.
pub async fn refuse(mut stream: Stream, framing: AnswerFraming, before: Vec<u8>, error: Error) {
    let mut answer = before;
    answer.extend_from_slice(&answer_head(framing));
    framing.push_line(&mut answer, OPEN);
    answer.extend_from_slice(&refusal(&error, framing));
    answer.extend_from_slice(framing.end_bytes());
    // The client may not stay to read it.
    let _ = tokio::time::timeout(PATIENCE, stream.write_all(&answer)).await;
    linger(&mut stream).await;
}

/// The lines that tell why there is no session.
pub fn refusal(error: &Error, framing: AnswerFraming) -> Bytes {
    let mut frames = Message::error(error, None).bytes().to_vec();
    frames.extend_from_slice(Message::close(error.code, &error.message).bytes());
    FallbackLines::of_frames(&frames, framing).bytes
}

/// Checks one session, at second `now` of its worker's clock: sends a heartbeat after a long silence, ends a
/// session without a receiver, and pings a silent client.
pub fn check_liveness(connection: &Connection, now: u32) {
    let lull = connection.over_http(|stream| (stream.idle_for(now), stream.transport()));
    let Some((lull, transport)) = lull else { return };
    let patience = match transport {
        Transport::XhrPolling => connection.app().activity_timeout,
        _ => STREAMING_SECONDS,
    };
    match lull {
        SessionIdle::Idle(seconds) if seconds >= patience => return connection.abort(),
        SessionIdle::Quiet(seconds) if seconds >= HEARTBEAT_SECONDS && !connection.is_closing() => {
            connection.enqueue_message(Message::ws_ping());
            connection.flush();
        }
        _ => {}
    }
    if !connection.is_closing() {
        watch(connection, now);
    } else if matches!(lull, SessionIdle::Quiet(_)) {
        // A client that receives has as long for the last lines as others have to end their sockets.
        end_lingering(connection, now);
    }
}
