//! How a socket's bytes come and go: the read loop, liveness, and the end. One task a connection, no timer
//! and no buffer of its own; what the bytes mean is the session's business, what is sent the hub's.

pub mod frames;
pub mod upgrade;

use std::cell::RefCell;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadBuf};
use tracing::{debug, error};

use crate::hub::connection::Connection;
use crate::hub::stream::Stream;
use crate::metrics::Reason;
use crate::protocol::error::{Error, close};
use crate::protocol::event::Message;
use crate::session::Session;
use frames::{Breach, Frames, Incoming};

/// How long a client may go on after we have closed, before its stream is dropped; seconds.
const LINGER: u32 = 5;

/// What is added to the silence that `activity_timeout` announces before we ask, and how long we wait for
/// any sign of life then; seconds.
const GRACE: u32 = 30;

/// Bytes that are read at a time, into a buffer that all connections of a thread share.
const SCRATCH: usize = 64 << 10;

thread_local! {
    static SCRATCH_BYTES: RefCell<Vec<u8>> = RefCell::new(vec![0; SCRATCH]);
}

/// One socket's life as a task.
#[derive(Debug)]
pub struct Socket {
    session: Session,
    frames: Frames,
    /// Our half of the stream is ended; what still comes is thrown away.
    shut: bool,
    /// The client's half is, or the stream is broken.
    gone: bool,
    /// It is this one's turn to leave.
    leaving: bool,
}

impl Socket {
    /// Carries a conversation from the greeting on. `early` are bytes that came with the handshake.
    pub fn new(session: Session, early: &[u8]) -> Self {
        let mut socket =
            Self { session, frames: Frames::default(), shut: false, gone: false, leaving: false };
        if !early.is_empty() {
            socket.take(&mut early.to_vec());
        }
        socket.session.connection().flush();
        socket
    }

    /// Takes bytes that were read, and writes what they led to.
    fn take(&mut self, bytes: &mut [u8]) {
        let session = &mut self.session;
        let connection = session.connection().clone();
        connection.traffic().received_bytes.add(bytes.len() as u64);
        connection.life.heard.set(session.node().worker.now());
        connection.life.asked.set(0);
        let max = connection.app().limits.max_message_size;
        let fed = self.frames.feed(bytes, max, |incoming| {
            match incoming {
                Incoming::Text(text) => session.hear(text),
                Incoming::Ping(payload) => connection.tell(Message::ws_pong(payload)),
                Incoming::Pong => {}
                Incoming::Close(code) => {
                    let answer = |code| Message::close(code, "");
                    let close = code.map_or_else(Message::close_bare, answer);
                    connection.end(close, Reason::Client);
                }
            }
            !connection.is_closing()
        });
        if let Err(breach) = fed {
            self.breach(&connection, breach);
        }
        connection.flush();
    }

    fn breach(&self, connection: &Connection, breach: Breach) {
        let (code, reason) = (breach.code(), breach.reason());
        debug!(app = %connection.app().id, socket = %connection.id, code, "breach: {reason}");
        let why = match code {
            1007 => Reason::Encoding,
            1009 => Reason::TooLarge,
            _ => Reason::Protocol,
        };
        connection.end(Message::close(code, reason), why);
    }

    /// Reads and takes what there is; ready when the stream has ended.
    fn poll_take(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        SCRATCH_BYTES.with_borrow_mut(|scratch| {
            loop {
                if self.session.is_ahead() {
                    // Woken when its subscription need not wait any longer.
                    return Poll::Pending;
                }
                let mut buffer = ReadBuf::new(scratch);
                let connection = self.session.connection();
                let read = ready!(connection.poll_read(cx, &mut buffer));
                if read.is_err() || buffer.filled().is_empty() {
                    return Poll::Ready(());
                }
                let full = buffer.remaining() == 0;
                if !self.shut {
                    self.take(buffer.filled_mut());
                    if self.session.connection().is_closing() {
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

    /// Leaves, when it is this one's turn.
    fn poll_leave(&mut self, cx: &Context<'_>) -> Poll<()> {
        if !self.leaving {
            ready!(self.session.node().worker.leaving.poll(cx));
            self.leaving = true;
            self.session.leave();
        }
        Poll::Ready(())
    }

    /// The end: others see it leave; the client gets what is queued for it, then the end of our half,
    /// and has a while to end its own.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.shut {
            ready!(self.poll_leave(cx));
            let connection = self.session.connection();
            if connection.is_over() {
                return Poll::Ready(());
            }
            ready!(connection.poll_flush(cx));
            if ready!(connection.poll_shutdown(cx)).is_err() {
                return Poll::Ready(());
            }
            self.shut = true;
        }
        self.poll_take(cx)
    }
}

impl Future for Socket {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.gone {
            return self.poll_leave(cx);
        }
        let connection = self.session.connection().clone();
        connection.listen(cx);
        if !connection.is_closing() {
            if self.session.resume() {
                connection.flush();
            }
            // What the socket would not take is written first; reading goes on meanwhile.
            let _ = connection.poll_flush(cx);
            self.gone = self.poll_take(cx).is_ready();
        }
        if self.gone || connection.is_over() {
            self.gone = true;
            return self.poll_leave(cx);
        }
        if connection.is_closing() { self.poll_close(cx) } else { Poll::Pending }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let (node, connection) = (self.session.node(), self.session.connection());
        if std::thread::panicking() {
            node.counts().panics.add(1);
            error!(app = %connection.app().id, socket = %connection.id, "a connection's task panicked");
        }
        node.counts().ends.count(connection.ending() as usize);
        connection.abort();
        self.session.leave();
    }
}

/// Tells a socket that was not let in why, after the `answer` to its handshake, and ends it.
pub async fn refuse(mut stream: Stream, answer: Vec<u8>, error: Error) {
    let mut bytes = answer;
    bytes.extend_from_slice(Message::error(&error, None).bytes());
    bytes.extend_from_slice(Message::close(error.code, &error.message).bytes());
    let farewell = async {
        stream.write_all(&bytes).await?;
        stream.shutdown().await?;
        let mut scratch = [0; 512];
        while stream.read(&mut scratch).await? > 0 {}
        Ok::<(), std::io::Error>(())
    };
    // Whether the client stays to hear it is its own affair.
    let _ = tokio::time::timeout(Duration::from_secs(LINGER.into()), farewell).await;
}

/// Looks after one connection, at second `now` of its worker's clock: asks the silent for a sign of life,
/// closes those that give none, and ends those that linger.
pub fn look_after(connection: &Connection, now: u32) {
    let life = &connection.life;
    let passed = |since: u32, seconds: u32| now.saturating_sub(since) >= seconds;
    if connection.is_closing() {
        if !life.ends.replace(true) {
            life.since.set(now);
        } else if passed(life.since.get(), LINGER) {
            connection.abort();
        }
        return;
    }
    let app = connection.app();
    // Less than a second is not none.
    let deadline = app.features.authorization_timeout.as_millis().div_ceil(1000) as u32;
    if deadline > 0 && !life.authorized.get() && passed(life.since.get(), deadline) {
        connection.close(&close::UNAUTHORIZED);
        return;
    }
    if life.asked.get() > 0 {
        if passed(life.asked.get(), GRACE) {
            connection.close(&close::NO_PONG);
        }
    } else if passed(life.heard.get(), app.activity_timeout.saturating_add(GRACE)) {
        // A WebSocket ping for those whose library answers it, an event for those that know only events.
        connection.tell(Message::ws_ping());
        connection.tell(Message::ping());
        connection.flush();
        life.asked.set(now);
    }
}
