//! How a socket's bytes come and go: the read loop, liveness, and the end. It has no timer and no buffer of its own,
//! and what polls it is above; what the bytes mean is the session's business, what is sent the hub's.

#[cfg(feature = "socketio")]
mod channel_questions;
#[cfg(feature = "socketio")]
pub mod engine_session;
mod farewell;
pub mod frames;
pub mod http_session;
mod liveness;
pub mod upgrade;

use std::cell::RefCell;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::ReadBuf;
use tokio::time::{Sleep, sleep};
use tracing::{debug, error};

use crate::hub::budget::WorkKind;
use crate::hub::connection::Connection;
use crate::hub::deflated::Compression;
use crate::metrics::Reason;
use crate::protocol::event::Message;
use crate::session::Session;
pub use farewell::{linger, refuse};
pub use liveness::check_liveness;
use liveness::watch;

use frames::{FrameAssembler, FrameLimits, IncomingMessage, ProtocolBreach};

/// How long a client may go on after we have closed, before its stream is dropped; seconds.
/// RFC 6455 section 7.1.1: the server closes TCP; a client that keeps its half open holds a file.
const LINGER_SECONDS: u32 = 5;

/// How long a client has to answer our close frame before we end the stream. Ended at once, the stream of a
/// browser behind a proxy that speaks HTTP/2 to it would end before the frame with the code has arrived.
const ANSWER: Duration = Duration::from_secs(1);

/// Units of a connection's budget that are as much work as a frame.
/// So that the turnstile measures frames, bytes and what they led to by one scale.
const UNITS_A_FRAME: u32 = 20;

/// Bytes that are read of a client after our close frame. One that still sends much does not wait for its answer.
/// Enough for what was on its way.
const MAX_DRAINED_BYTES: u32 = 256 << 10;

/// How long a connection is held up before it is looked at again.
const MAX_WAIT: Duration = Duration::from_secs(1);

/// Subscriptions that end before others on the worker get a turn, where many end.
const ENDED_AT_ONCE: usize = 16;

/// Why a connection ends whose client sent more than it may.
/// The words of the close frame with 1009.
const TOO_LARGE: &str = "Maximum message size exceeded";

/// Bytes that are read at a time at most, into a buffer that all connections of a thread share.
/// Bytes a read, not bytes a connection: idle connections have no buffer.
const SCRATCH: usize = 64 << 10;

/// Bytes that are read at a time where a client is not in the middle of a larger frame: so many frames of the
/// shortest kind are handled before others get a turn, or the client is held up.
const FEW_BYTES: usize = 4 << 10;

thread_local! {
    /// One for each worker's thread, for a read is taken in before the next one begins.
    static SCRATCH_BYTES: RefCell<Vec<u8>> = RefCell::new(vec![0; SCRATCH]);
}

/// One WebSocket, polled by its worker's socket set.
#[derive(Debug)]
pub struct Socket {
    /// The conversation, which handles messages.
    session: Session,
    /// None while it is open and quiet, so that a crowd that listens has no room for it.
    extras: Option<Box<SocketExtras>>,
    /// Whether the client may still send messages.
    input: ClientInput,
    /// Our half of the stream is ended; what still comes is thrown away.
    shut: bool,
    /// The client's half is, or the stream is broken.
    gone: bool,
}

/// State that a socket needs only while something is unfinished.
#[derive(Debug, Default)]
struct SocketExtras {
    /// The received part of a message.
    frames: FrameAssembler,
    /// Until the greeting goes out, where it waits; while it is held up; once we have closed, for the client's answer
    /// to that.
    timer: Option<Pin<Box<Sleep>>>,
    /// Bytes that have come since our close frame.
    drained: u32,
}

/// The state of the client's half.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ClientInput {
    /// It may.
    Open,
    /// It can no longer be read, but for a close frame that comes by itself.
    Garbled,
    /// The client's close frame has come.
    Closed,
}

impl Socket {
    /// A conversation that begins with the greeting, after `pause` or once the client speaks. `early` are bytes
    /// that came with the handshake. The pause is for clients that cannot read the greeting together with the
    /// handshake's response.
    pub fn new(session: Session, early: &[u8], pause: Option<Duration>) -> Self {
        let (input, (shut, gone)) = (ClientInput::Open, Default::default());
        let mut socket = Self { session, extras: None, input, shut, gone };
        // A client that has spoken has read the response, and needs no pause.
        if !early.is_empty() {
            socket.take(&mut early.to_vec());
        } else if let Some(pause) = pause {
            socket.set_timer(Some(Box::pin(sleep(pause))));
            return socket;
        }
        socket.session.connection().flush();
        socket
    }

    /// The extras, allocated at their first use.
    fn extras(&mut self) -> &mut SocketExtras {
        self.extras.get_or_insert_default()
    }

    /// Takes the timer out, for as long as it is looked at.
    fn take_timer(&mut self) -> Option<Pin<Box<Sleep>>> {
        self.extras.as_mut()?.timer.take()
    }

    /// Sets or clears the timer.
    fn set_timer(&mut self, timer: Option<Pin<Box<Sleep>>>) {
        if timer.is_some() || self.extras.is_some() {
            self.extras().timer = timer;
        }
        self.forget_extras();
    }

    /// Gives back what is no longer needed.
    fn forget_extras(&mut self) {
        let is_unused = |extras: &SocketExtras| {
            extras.timer.is_none() && extras.drained == 0 && !is_begun(&extras.frames)
        };
        if self.extras.as_deref().is_some_and(is_unused) {
            self.extras = None;
        }
    }

    /// Ready while the connection has not used more than its share of work.
    fn poll_budget(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut timer = self.take_timer();
        let polled = poll_budget(&self.session, &mut timer, cx);
        self.set_timer(timer);
        polled
    }

    /// Takes bytes that were read, and writes what they led to.
    /// One read: frames are assembled, each message is handled at once, and all answers leave in one write.
    fn take(&mut self, bytes: &mut [u8]) {
        let session = &mut self.session;
        let connection = session.connection().clone();
        connection.traffic().received_bytes.add(bytes.len() as u64);
        let (life, now) = (&connection.life, session.node().worker.now_seconds());
        // A client that answers `pusher:ping` is alive only if its program says so.
        if !life.wants_data() {
            life.note_alive(now);
        }
        let terms = FrameLimits {
            max: connection.app().limits.max_message_size,
            inflates: life.compression.get() != Compression::Off,
        };
        let (mut closed, mut frames) = (false, 0);
        let (read, spent) = (bytes.len(), connection.budget.spent());
        let mut frames_so_far =
            // Only a connection with an unfinished message has this state.
            self.extras.as_mut().map(|it| std::mem::take(&mut it.frames)).unwrap_or_default();
        let fed = frames_so_far.feed(bytes, terms, |incoming| {
            frames += 1;
            match incoming {
                IncomingMessage::Close(code) => {
                    let answer = |code| Message::close(code, "");
                    let close = code.map_or_else(Message::close_bare, answer);
                    connection.end_with(close, Reason::Client);
                    closed = true;
                }
                // After a close frame of ours nothing counts but the client's.
                // RFC 6455 section 5.5.1: after a close frame no more data is sent or handled.
                _ if connection.is_closing() => {}
                IncomingMessage::Text(text) => {
                    if terms.inflates {
                        // Few bytes may have come to many.
                        connection.budget.spend(WorkKind::Bytes(text.len()));
                    }
                    // Any frame shows that the program on the other side runs.
                    life.note_alive(now);
                    session.on_text(text);
                }
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
        // A large message on a slow line is a sign of life although it is not complete.
        if frames_so_far.is_inside_message() {
            life.note_alive(now);
        }
        connection.count_partial(frames_so_far.held_bytes());
        if is_begun(&frames_so_far) {
            self.extras.get_or_insert_default().frames = frames_so_far;
        }
        count_work(session, (frames, read), spent);
        self.forget_extras();
        if let Err(breach) = fed {
            end_for_breach(&connection, breach);
            self.input = ClientInput::Garbled;
        }
        if closed {
            self.input = ClientInput::Closed;
        }
        // One system call for everything that the read led to.
        connection.flush();
    }

    /// Reads and takes what there is; ready when the stream has ended.
    /// Loops only until the socket has nothing more, or others must have a turn.
    fn poll_take(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let was_closing = self.session.connection().is_closing();
        SCRATCH_BYTES.with_borrow_mut(|scratch| {
            loop {
                // Nothing is read ahead of it, so that TCP makes the client wait.
                if !was_closing && self.session.is_ahead() {
                    // Woken when its subscription need not wait any longer.
                    return Poll::Pending;
                }
                // Many clients that send at once get turns in order.
                ready!(self.session.node().worker.turnstile.poll_turn(cx));
                if !was_closing && self.poll_budget(cx).is_pending() {
                    return Poll::Pending;
                }
                // A large message is read in few calls, small ones in small portions.
                let missing = self.extras.as_ref().map_or(0, |extras| extras.frames.missing());
                let most = missing.clamp(FEW_BYTES, SCRATCH);
                // `most` is at most `SCRATCH`, the length of the buffer.
                let mut buffer = ReadBuf::new(scratch.get_mut(..most).unwrap_or_default());
                let connection = self.session.connection();
                let read = ready!(connection.poll_read(cx, &mut buffer));
                if read.is_err() || buffer.filled().is_empty() {
                    return Poll::Ready(());
                }
                let full = buffer.remaining() == 0;
                if was_closing {
                    // It may still send what was on its way, but not without end.
                    let drained = &mut self.extras().drained;
                    *drained += buffer.filled().len() as u32;
                    if *drained > MAX_DRAINED_BYTES {
                        return Poll::Ready(());
                    }
                }
                if self.input == ClientInput::Garbled && !self.shut {
                    // The only frame that is understood without knowing where the last one ended.
                    if frames::is_close(buffer.filled()) {
                        self.input = ClientInput::Closed;
                        return Poll::Pending;
                    }
                } else if !self.shut {
                    self.take(buffer.filled_mut());
                    if self.input == ClientInput::Closed
                        || (!was_closing && self.session.connection().is_closing())
                    {
                        return Poll::Pending;
                    }
                }
                if full {
                    // Others get a turn before a client that sends without end.
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
            }
        })
    }

    /// Leaves the channels, in parts, so that others get their turn.
    fn poll_leave(&mut self, cx: &Context<'_>) -> Poll<()> {
        poll_leave(&mut self.session, cx)
    }

    /// Reads on until the client has answered our close frame, or has had its time to; ready with whether its
    /// half of the stream has ended.
    fn poll_answered(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        // RFC 6455 section 5.5.1: both have said that they close.
        if self.input == ClientInput::Closed {
            return Poll::Ready(false);
        }
        if self.poll_take(cx).is_ready() {
            return Poll::Ready(true);
        }
        if self.input == ClientInput::Closed {
            return Poll::Ready(false);
        }
        let answering = self.extras().timer.get_or_insert_with(|| Box::pin(sleep(ANSWER)));
        answering.as_mut().poll(cx).map(|()| false)
    }

    /// The end: others see it leave; the client gets what is queued for it, then, once it has answered that, the
    /// end of our half, and has a while to end its own.
    /// In this order, since a browser shows its page the code only if the frame arrives before the end of the
    /// stream.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.shut {
            ready!(self.poll_leave(cx));
            let connection = self.session.connection();
            if connection.is_over() {
                return Poll::Ready(());
            }
            ready!(connection.poll_flush(cx));
            let ended = ready!(self.poll_answered(cx));
            if ready!(self.session.connection().poll_shutdown(cx)).is_err() || ended {
                return Poll::Ready(());
            }
            self.shut = true;
            self.set_timer(None);
        }
        self.poll_take(cx)
    }
}

impl Future for Socket {
    type Output = ();

    /// Woken by the socket, by its own timers, or by the worker when its subscription may go on, it is closed, or
    /// its outbox has room again.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // The stream is broken: nothing is sent on it, but other members see the leave.
        if self.gone {
            return self.poll_leave(cx);
        }
        let connection = self.session.connection().clone();
        connection.set_waker(cx);
        if !connection.is_closing() {
            let timer = self.extras.as_mut().and_then(|extras| extras.timer.as_mut());
            if timer.is_some_and(|timer| timer.as_mut().poll(cx).is_ready()) {
                self.set_timer(None);
                connection.flush();
            }
            if self.session.resume() {
                connection.flush();
            }
            // A write error also shows when reading. Queued frames are written first; reading goes on meanwhile.
            let _ = connection.poll_flush(cx);
            self.gone = self.poll_take(cx).is_ready();
        }
        if self.gone || connection.is_over() {
            self.gone = true;
            // It may leave in parts, and nothing more is kept for it meanwhile.
            connection.abort();
            return self.poll_leave(cx);
        }
        if connection.is_closing() { self.poll_close(cx) } else { Poll::Pending }
    }
}

impl Drop for Socket {
    /// Also after a panic, so that no channel keeps a subscriber that is gone.
    fn drop(&mut self) {
        end_session(&mut self.session);
    }
}

/// Ends a session, however its task ended.
fn end_session(session: &mut Session) {
    let (node, connection) = (session.node(), session.connection());
    if std::thread::panicking() {
        node.counts().panics.add(1);
        error!(app = %connection.app().id, socket = %connection.id, "a connection's task panicked");
    }
    node.counts().ends.count(connection.end_reason() as usize);
    connection.abort();
    session.leave(usize::MAX);
}

/// Whether part of a frame or of a message was received.
fn is_begun(frames: &FrameAssembler) -> bool {
    frames.held_bytes() > 0 || frames.is_inside_message()
}

/// A close frame with the code of RFC 6455 section 7.4.1; what follows on the stream cannot be trusted.
fn end_for_breach(connection: &Connection, breach: ProtocolBreach) {
    let (code, reason) = (breach.code(), breach.reason());
    debug!(app = %connection.app().id, socket = %connection.id, code, "breach: {reason}");
    let why = match code {
        1007 => Reason::Encoding,
        1009 => Reason::TooLarge,
        _ => Reason::Protocol,
    };
    connection.end_with(Message::close(code, reason), why);
}

/// Ready when the connection has had no more done for it than its share; else woken when that is so.
/// A client that asks for more than its share is not refused: it is read later.
fn poll_budget(
    session: &Session,
    timer: &mut Option<Pin<Box<Sleep>>>,
    cx: &mut Context<'_>,
) -> Poll<()> {
    while let Some(wait) = session.hold_up() {
        if session.connection().is_closing() {
            return Poll::Pending;
        }
        let running = timer.get_or_insert_with(|| {
            session.report_throttled(wait);
            Box::pin(sleep(wait.min(MAX_WAIT)))
        });
        ready!(running.as_mut().poll(cx));
        *timer = None;
    }
    Poll::Ready(())
}

/// Counts what so many frames and bytes of a connection have led to, which had `spent` so much before.
/// Clients are taken in turns by this.
fn count_work(session: &Session, (frames, bytes): (usize, usize), spent: u32) {
    let units = session.connection().budget.spent().saturating_sub(spent) / UNITS_A_FRAME;
    session.node().worker.turnstile.count_work(frames + bytes / 1024 + units as usize);
}

/// Leaves, a part whenever it is this session's turn.
fn poll_leave(session: &mut Session, cx: &Context<'_>) -> Poll<()> {
    while !session.has_left() {
        ready!(session.node().worker.leaving.poll_turn(cx));
        session.leave(ENDED_AT_ONCE);
    }
    Poll::Ready(())
}
