//! The stream of a session of pusher-js's HTTP transports: queued frames leave as lines, in the response of the request
//! that currently receives, and wait while there is none. A streaming response is written to the client's socket like a
//! WebSocket's frames; a poll gets its response as a whole. Requests and timeouts are handled above.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::oneshot;

use super::http_sessions::{SessionListing, SessionLull};
use super::line_batch::{LineBatch, LineRange, PartialPiece};
use super::line_cache::lines_of;
use super::loads::LoadGuard;
use super::outbox::Outbox;
use super::stream::{Stream, StreamInTransit};
use crate::metrics::Transport;
use crate::protocol::fallback::{AnswerFraming, HEADERS, MAX_ANSWER_UNITS, OPEN};

/// Pieces of the outbox that one call writes, leaving room for what stands before and behind them.
const MAX_PIECES: usize = 60;

/// Bytes that are counted for a request beside what it says.
const REQUEST_BYTES: usize = 4 << 10;

/// A session's stream.
#[derive(Debug)]
pub struct HttpStream {
    receiver: SessionReceiver,
    /// Of the request that received last.
    transport: Transport,
    /// Until the last line of all is about to be said: who asks after that finds another session.
    listing: Option<SessionListing>,
    /// The first line of all was said.
    is_open: bool,
    /// The last line of all was said.
    is_finished: bool,
    /// How far the piece at the outbox's front is said.
    front: Option<PartialPiece>,
    /// Streams whose answers are at their end.
    finished: Vec<(Stream, LoadGuard)>,
    /// Of the session's task.
    waker: Option<Waker>,
    arrivals: VecDeque<SessionRequest>,
    /// A line was said, or a request has come, since the clock last looked.
    has_spoken: bool,
    /// When that was; seconds of the worker's clock.
    spoken_at: u32,
    /// When nothing received first; 0: something does.
    idle_since: u32,
    /// How often something has begun to receive; 2 stands for more.
    receivers: u8,
}

/// The request that receives frames.
#[derive(Debug)]
enum SessionReceiver {
    Nobody,
    Streaming(Box<StreamingAnswer>),
    Polling(oneshot::Sender<Bytes>),
}

/// A streaming answer.
#[derive(Debug)]
struct StreamingAnswer {
    stream: Stream,
    alive: LoadGuard,
    framing: AnswerFraming,
    /// Written before any line: the head, or what is left of the end.
    held: Bytes,
    is_ending: bool,
    /// UTF-16 code units so far.
    units: usize,
}

/// A request of the session's client.
#[derive(Debug)]
pub enum SessionRequest {
    /// Receives: the stream that it came by is the session's.
    Streaming {
        stream: StreamInTransit,
        framing: AnswerFraming,
        /// Bytes of earlier responses that the client has not read yet.
        before: Vec<u8>,
        alive: LoadGuard,
    },
    /// Receives: answered as soon as there is something to say.
    Polling(oneshot::Sender<Bytes>),
    /// Messages of a client; `heard` confirms that they were handled.
    Texts { texts: Vec<String>, bytes: usize, heard: oneshot::Sender<bool> },
    /// A message beyond the limit; `heard` confirms that the session was open.
    TooLarge { heard: oneshot::Sender<bool> },
}

/// The result of the session's liveness check.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SessionIdle {
    None,
    /// Nothing was said for so many seconds.
    Quiet(u32),
    /// Nothing has received for so many seconds.
    Idle(u32),
}

impl HttpStream {
    pub fn new(transport: Transport) -> Self {
        Self {
            receiver: SessionReceiver::Nobody,
            transport,
            listing: None,
            is_open: false,
            is_finished: false,
            front: None,
            finished: Vec::new(),
            waker: None,
            arrivals: VecDeque::new(),
            has_spoken: true,
            spoken_at: 0,
            idle_since: 0,
            receivers: 0,
        }
    }

    /// Lets it be found for as long as it is not at its end.
    pub fn set_listing(&mut self, listing: SessionListing) {
        self.listing = Some(listing);
    }

    pub fn drop_listing(&mut self) {
        self.listing = None;
    }

    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// Takes in what a request says until the session's task sees it.
    pub(super) fn take_request(&mut self, arrival: SessionRequest) {
        self.arrivals.push_back(arrival);
    }

    /// Bytes of messages that wait, each request counted with a minimum.
    pub fn waiting_bytes(&self) -> usize {
        let bytes = |one: &SessionRequest| match one {
            SessionRequest::Texts { bytes, .. } => bytes + REQUEST_BYTES,
            _ => REQUEST_BYTES,
        };
        self.arrivals.iter().map(bytes).sum()
    }

    /// The next request; messages only if they can be handled now.
    pub fn next_arrival(&mut self, hears: bool) -> Option<SessionRequest> {
        if hears {
            return self.arrivals.pop_front();
        }
        let receives = |one: &SessionRequest| {
            matches!(one, SessionRequest::Streaming { .. } | SessionRequest::Polling(_))
        };
        let at = self.arrivals.iter().position(receives)?;
        self.arrivals.remove(at)
    }

    /// Says everything from now on in the answer to a streaming request.
    pub fn stream_to(
        &mut self,
        stream: StreamInTransit,
        (framing, before): (AnswerFraming, Vec<u8>),
        alive: LoadGuard,
    ) -> io::Result<()> {
        self.set_receiver(Transport::XhrStreaming);
        let stream = stream.register_here()?;
        let mut held = before;
        held.extend_from_slice(&answer_head(framing));
        let mut units = 0;
        if !self.is_open {
            framing.push_line(&mut held, OPEN);
            units = OPEN.len();
        }
        let held = held.into();
        let streaming = StreamingAnswer { stream, alive, framing, held, is_ending: false, units };
        self.receiver = SessionReceiver::Streaming(Box::new(streaming));
        Ok(())
    }

    /// Says what there is next in the answer to a poll.
    pub fn answer_to(&mut self, poll: oneshot::Sender<Bytes>) {
        self.set_receiver(Transport::XhrPolling);
        self.receiver = SessionReceiver::Polling(poll);
    }

    /// A request receives in the place of the one before, whose answer ends. A line of which that one was
    /// sent a part is said again as a whole, for a client ignores what has no `\n`.
    fn set_receiver(&mut self, transport: Transport) {
        self.transport = transport;
        self.has_spoken = true;
        self.idle_since = 0;
        self.receivers = (self.receivers + 1).min(2);
        // Bytes sent in the last response do not count for the next one.
        let sent = self.front.as_mut().map_or(0, |front| std::mem::take(&mut front.sent));
        match std::mem::replace(&mut self.receiver, SessionReceiver::Nobody) {
            SessionReceiver::Nobody => {}
            // The client may have gone.
            SessionReceiver::Polling(before) => drop(before.send(Bytes::new())),
            SessionReceiver::Streaming(mut before) => {
                if sent == 0 && before.held.is_empty() {
                    let mut end = Outbox::default();
                    end.push(Bytes::from_static(before.framing.end_bytes()));
                    // Bytes that the socket does not take at once are lost with the connection.
                    let _ = before.stream.try_write(&end);
                    self.finish_answer(before.stream, before.alive);
                }
            }
        }
    }

    /// Whether the last line was sent.
    pub fn is_finished(&self) -> bool {
        self.is_finished
    }

    /// Whether a request receives.
    pub fn has_receiver(&self) -> bool {
        !matches!(self.receiver, SessionReceiver::Nobody)
    }

    /// Since when none does, nor has one come that the session's task has yet to see.
    pub fn lull(&self) -> Option<SessionLull> {
        let is_left = !self.has_receiver() && self.arrivals.is_empty();
        is_left.then_some(SessionLull { has_returned: self.receivers > 1, since: self.idle_since })
    }

    /// The streams whose answers are at their end, to be closed when their clients are done.
    pub fn take_finished(&mut self) -> Vec<(Stream, LoadGuard)> {
        std::mem::take(&mut self.finished)
    }

    /// Looks at the clock, once a second.
    pub fn idle_for(&mut self, now: u32) -> SessionIdle {
        // A flag instead of the time, so that saying something asks no clock.
        if std::mem::take(&mut self.has_spoken) {
            self.spoken_at = now;
        }
        if self.has_receiver() {
            self.idle_since = 0;
            return SessionIdle::Quiet(now.saturating_sub(self.spoken_at));
        }
        if self.idle_since == 0 {
            self.idle_since = now;
            return SessionIdle::None;
        }
        SessionIdle::Idle(now.saturating_sub(self.idle_since))
    }

    /// Ready once the client has cut the receiving request. Bytes that it sends there are discarded.
    pub fn poll_cut(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            self.waker = Some(cx.waker().clone());
        }
        match &mut self.receiver {
            SessionReceiver::Nobody => Poll::Pending,
            SessionReceiver::Polling(poll) => poll.poll_closed(cx),
            SessionReceiver::Streaming(streaming) => {
                // Read only to notice the end.
                let mut scratch = [0; 1024];
                loop {
                    let mut buffer = ReadBuf::new(&mut scratch);
                    let read = ready!(Pin::new(&mut streaming.stream).poll_read(cx, &mut buffer));
                    if read.is_err() || buffer.filled().is_empty() {
                        return Poll::Ready(());
                    }
                }
            }
        }
    }

    pub(super) fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.receiver {
            SessionReceiver::Nobody => Poll::Pending,
            SessionReceiver::Polling(_) => Poll::Ready(Ok(())),
            SessionReceiver::Streaming(streaming) => streaming.stream.poll_writable(cx),
        }
    }

    /// Whether bytes wait that are not in the outbox.
    pub(super) fn is_holding(&self) -> bool {
        let holds = |one: &StreamingAnswer| !one.held.is_empty() || one.stream.is_holding();
        matches!(&self.receiver, SessionReceiver::Streaming(one) if holds(one))
    }

    /// Leaves a stream whose answer is at its end to the session's task.
    fn finish_answer(&mut self, stream: Stream, alive: LoadGuard) {
        self.finished.push((stream, alive));
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }

    /// Says as much of `outbox` as one system call takes; the bytes of it that were said as whole pieces.
    pub(super) fn try_write(&mut self, outbox: &Outbox) -> io::Result<usize> {
        match &mut self.receiver {
            SessionReceiver::Nobody => Err(io::ErrorKind::WouldBlock.into()),
            SessionReceiver::Polling(_) if outbox.is_empty() => {
                Err(io::ErrorKind::WouldBlock.into())
            }
            SessionReceiver::Polling(_) => self.answer_poll(outbox),
            SessionReceiver::Streaming(_) => self.write_lines(outbox),
        }
    }

    /// Ends the poll with all that there is.
    fn answer_poll(&mut self, outbox: &Outbox) -> io::Result<usize> {
        let mut body = BytesMut::new();
        if !self.is_open {
            body.extend_from_slice(OPEN);
        }
        let mut pieces = outbox.iter();
        // The rest of a piece of which a streaming answer had the beginning.
        if let Some(front) = self.front.take()
            && let Some(piece) = pieces.next()
        {
            let lines = lines_of(piece, AnswerFraming::Plain);
            body.extend_from_slice(
                // The place is within the lines, which were made of the same piece.
                lines.bytes.get(lines.line_start(front.done)..).unwrap_or_default(),
            );
            self.is_finished |= lines.is_last;
        }
        let mut only = None;
        for piece in pieces {
            let lines = lines_of(piece, AnswerFraming::Plain);
            self.is_finished |= lines.is_last;
            // A piece by itself is shared by all sessions that get it.
            if outbox.single_piece().is_some() && body.is_empty() {
                only = Some(lines.bytes.clone());
            } else {
                body.extend_from_slice(&lines.bytes);
            }
        }
        self.is_open = true;
        self.has_spoken = true;
        if self.is_finished {
            self.listing = None;
        }
        let receiver = std::mem::replace(&mut self.receiver, SessionReceiver::Nobody);
        if let SessionReceiver::Polling(poll) = receiver {
            let body = only.unwrap_or_else(|| body.freeze());
            poll.send(body).map_err(|_| io::ErrorKind::BrokenPipe)?;
        }
        Ok(outbox.len())
    }

    /// Writes lines to the streaming answer, until it is as long as pusher-js lets it become.
    fn write_lines(&mut self, outbox: &Outbox) -> io::Result<usize> {
        let Some(batch) = self.begin_lines(outbox) else { return Ok(0) };
        let SessionReceiver::Streaming(streaming) = &mut self.receiver else { return Ok(0) };
        let written = streaming.stream.try_write(&batch.bytes)?;
        Ok(self.note_lines(&batch, written))
    }

    /// The lines of `outbox` that one call writes to the streaming response; `None` if there is none.
    pub(super) fn begin_lines(&mut self, outbox: &Outbox) -> Option<LineBatch> {
        let SessionReceiver::Streaming(streaming) = &mut self.receiver else { return None };
        let batch = streaming.next_batch(self.front.as_ref(), outbox);
        if batch.parts.last().is_some_and(LineRange::is_last) {
            self.listing = None;
        }
        Some(batch)
    }

    /// The socket that lines are written to as they are.
    pub(super) fn socket(&self) -> Option<BorrowedFd<'_>> {
        match &self.receiver {
            SessionReceiver::Streaming(streaming) if !streaming.stream.is_tls() => {
                streaming.stream.socket()
            }
            _ => None,
        }
    }

    /// Notes that so many bytes of the batch were written; the bytes of the outbox that were said as whole
    /// pieces.
    pub(super) fn note_lines(&mut self, batch: &LineBatch, written: usize) -> usize {
        let SessionReceiver::Streaming(streaming) = &mut self.receiver else { return 0 };
        let mut left = written;
        let held = left.min(streaming.held.len());
        streaming.held.advance(held);
        left -= held;
        if !streaming.held.is_empty() {
            return 0;
        }
        self.is_open = true;
        let mut done = 0;
        let mut is_whole = true;
        for part in &batch.parts {
            let (front, units) = part.advance(&mut left);
            streaming.units += units;
            self.has_spoken |= units > 0;
            let Some(front) = front else {
                done += part.piece;
                self.front = None;
                self.is_finished |= part.lines.is_last;
                continue;
            };
            is_whole = front.done == part.end;
            self.front = Some(front);
        }
        // After so many units pusher-js asks anew, for a browser keeps all of an answer.
        if streaming.is_ending || (batch.stops && is_whole) {
            if !streaming.is_ending {
                let end = streaming.framing.end_bytes();
                streaming.held = Bytes::from_static(end.get(left..).unwrap_or_default());
                streaming.is_ending = true;
            }
            if streaming.held.is_empty()
                && let SessionReceiver::Streaming(streaming) =
                    std::mem::replace(&mut self.receiver, SessionReceiver::Nobody)
            {
                self.finish_answer(streaming.stream, streaming.alive);
            }
        }
        done
    }
}

impl StreamingAnswer {
    /// The lines that one call writes.
    fn next_batch(&self, mut front: Option<&PartialPiece>, outbox: &Outbox) -> LineBatch {
        let mut batch = LineBatch::default();
        let LineBatch { bytes, parts, stops } = &mut batch;
        if !self.held.is_empty() {
            bytes.push(self.held.clone());
        }
        if self.is_ending {
            return batch;
        }
        let mut units = self.units;
        for piece in outbox.iter().take(MAX_PIECES) {
            let (lines, first, sent) = match front.take() {
                Some(front) if front.lines.framing == self.framing => {
                    (front.lines.clone(), front.done, front.sent)
                }
                // Begun in an answer to another version of HTTP.
                // Lines are the same in both framings; what was sent of one is not.
                Some(front) => (lines_of(piece, self.framing), front.done, 0),
                None => (lines_of(piece, self.framing), 0, 0),
            };
            let mut end = first;
            if first == 0 && units + lines.units <= MAX_ANSWER_UNITS {
                units += lines.units;
                end = lines.ends.len();
            } else {
                for line in lines.ends.iter().skip(first) {
                    end += 1;
                    units += line.units;
                    if units > MAX_ANSWER_UNITS {
                        break;
                    }
                }
            }
            let range = lines.line_start(first) + sent..lines.line_start(end);
            if range.len() == lines.bytes.len() {
                bytes.push(lines.bytes.clone());
            } else if !range.is_empty() {
                bytes.push(lines.bytes.slice(range));
            }
            let part = LineRange { lines, piece: piece.len(), first, sent, end };
            *stops = units > MAX_ANSWER_UNITS || part.is_last();
            parts.push(part);
            if *stops {
                if !self.framing.end_bytes().is_empty() {
                    bytes.push(Bytes::from_static(self.framing.end_bytes()));
                }
                break;
            }
        }
        batch
    }
}

/// The head of a streaming answer. It is the connection's last.
pub fn answer_head(framing: AnswerFraming) -> Vec<u8> {
    let (version, framed) = match framing {
        AnswerFraming::Chunked => ("1.1", "transfer-encoding: chunked\r\n"),
        AnswerFraming::Plain => ("1.0", ""),
    };
    let mut head = format!("HTTP/{version} 200 OK\r\n{framed}connection: close\r\n");
    for (name, value) in HEADERS {
        head.push_str(name);
        head.push_str(": ");
        head.push_str(value);
        head.push_str("\r\n");
    }
    let date = httpdate::HttpDate::from(std::time::SystemTime::now());
    head.push_str(&format!("date: {date}\r\n\r\n"));
    head.into_bytes()
}
