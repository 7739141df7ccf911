//! The stream of an Engine.IO session, for Socket.IO clients: queued frames are translated and leave in the response of
//! the waiting poll or as frames of the session's WebSocket, and wait while there is neither. A polling client may
//! upgrade to a WebSocket. Requests and timeouts are handled above.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

use super::{Stream, StreamInTransit};
use crate::hub::http_sessions::{SessionListing, SessionLull};
use crate::hub::loads::LoadGuard;
use crate::hub::outbox::Outbox;
use crate::protocol::engineio::{MAX_ANSWER_PACKETS, NOOP, count_packets, first_frame_len};
use crate::protocol::socketio::{GreetingTerms, packet_message, translate_frames};

/// Bytes that are translated at a time. No more than this waits translated, uncounted by the outbox.
const RUN_BYTES: usize = 64 << 10;

/// Bytes that are counted for a request beside what it says.
const REQUEST_BYTES: usize = 4 << 10;

/// Pieces whose translations are kept for a worker's other sessions.
const SHARED_PLACES: usize = 64;

/// A piece, its translation, and whether that ends the session.
type SharedTranslation = Option<(Bytes, Bytes, bool)>;

thread_local! {
    /// By the piece's place in memory; each is kept with its piece, so that no other can have its place.
    static SHARED: RefCell<Vec<SharedTranslation>> = RefCell::new(vec![None; SHARED_PLACES]);
}

/// A session's stream.
#[derive(Debug)]
pub struct EngineStream {
    /// The revision that was agreed on, and what it allows.
    terms: GreetingTerms,
    /// The request or WebSocket that receives packets now.
    receiver: EngineReceiver,
    /// A WebSocket that the client tries.
    probe: Option<Box<EngineSocket>>,
    /// The client was told that a WebSocket works, so polls are answered at once.
    is_changing: bool,
    /// Until the last packet of all is about to be said: who asks after that finds no session.
    listing: Option<SessionListing>,
    /// Requests that the session's task has not taken yet.
    arrivals: VecDeque<EngineRequest>,
    /// How often something has begun to receive; 2 stands for more.
    receivers: u8,
    /// The last packet of all was said.
    is_finished: bool,
    /// When nothing received first; 0: something does.
    idle_since: u32,
    /// When its client was last asked for a sign of life, or the clock first saw it; 0: not yet.
    pinged_at: u32,
}

/// The request or WebSocket that receives packets.
#[derive(Debug)]
enum EngineReceiver {
    /// No request receives; packets wait.
    Nobody,
    Polling(oneshot::Sender<Bytes>),
    Socket(Box<EngineSocket>),
}

/// A WebSocket of a session.
#[derive(Debug)]
pub struct EngineSocket {
    stream: Stream,
    alive: LoadGuard,
    /// Translated bytes that were not taken yet, after the response to the handshake.
    queued: Outbox,
}

/// A request of a session's client.
#[derive(Debug)]
pub enum EngineRequest {
    /// Answered as soon as there is something to say.
    Polling(oneshot::Sender<Bytes>),
    /// Packets of a client; `heard` confirms that they were handled.
    Packets { packets: Vec<String>, bytes: usize, heard: oneshot::Sender<bool> },
    /// A message beyond the limit; `heard` confirms that the session was open.
    TooLarge { heard: oneshot::Sender<bool> },
    /// A WebSocket, the answer to its handshake, and what came behind that.
    Socket { stream: StreamInTransit, answer: Vec<u8>, early: Bytes, alive: LoadGuard },
}

impl EngineSocket {
    /// On this thread's runtime.
    pub fn new(stream: StreamInTransit, answer: Vec<u8>, alive: LoadGuard) -> io::Result<Self> {
        let mut queued = Outbox::default();
        queued.push(answer.into());
        Ok(Self { stream: stream.register_here()?, alive, queued })
    }

    pub fn into_parts(self) -> (Stream, LoadGuard) {
        (self.stream, self.alive)
    }

    /// Reads what there is; nothing in `buffer` means the client has ended its half.
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }

    fn is_holding(&self) -> bool {
        !self.queued.is_empty() || self.stream.is_holding()
    }

    /// Writes what is translated, until the socket takes no more.
    fn write_queued(&mut self) -> io::Result<()> {
        while self.is_holding() {
            let written = self.stream.try_write(&self.queued)?;
            if written == 0 && !self.queued.is_empty() {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.queued.advance(written);
        }
        Ok(())
    }

    /// Translates and writes the front of `outbox`; returns how many bytes of it are done, and whether they were
    /// the last. No more is translated than the socket takes, since translated bytes are not counted.
    ///
    /// # Errors
    /// The stream is broken; [`io::ErrorKind::WouldBlock`] if it takes nothing at the moment.
    fn write_outbox(&mut self, outbox: &Outbox, terms: GreetingTerms) -> io::Result<(usize, bool)> {
        let (mut taken, mut is_last) = (0, false);
        let mut pieces = outbox.iter();
        loop {
            match self.write_queued() {
                // Some of the outbox is translated already, and must be taken off it.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && taken > 0 => break,
                written => written?,
            }
            while self.queued.len() < RUN_BYTES
                && let Some(piece) = pieces.next()
            {
                let (translated, ends) = translation_of(piece, terms);
                taken += piece.len();
                is_last |= ends;
                if !translated.is_empty() {
                    self.queued.push(translated);
                }
            }
            if self.queued.is_empty() {
                break;
            }
        }
        Ok((taken, is_last))
    }
}

impl EngineStream {
    pub fn new(terms: GreetingTerms) -> Self {
        Self {
            terms,
            receiver: EngineReceiver::Nobody,
            probe: None,
            is_changing: false,
            listing: None,
            arrivals: VecDeque::new(),
            receivers: 0,
            is_finished: false,
            idle_since: 0,
            pinged_at: 0,
        }
    }

    pub fn terms(&self) -> GreetingTerms {
        self.terms
    }

    /// Whether a ping is due at second `now`; it then counts as sent.
    pub fn is_ping_due(&mut self, now: u32, interval: u32) -> bool {
        let is_due = self.pinged_at > 0 && now.saturating_sub(self.pinged_at) >= interval;
        if is_due || self.pinged_at == 0 {
            self.pinged_at = now;
        }
        is_due
    }

    /// Lets it be found for as long as it is not at its end.
    pub fn set_listing(&mut self, listing: SessionListing) {
        self.listing = Some(listing);
    }

    pub fn drop_listing(&mut self) {
        self.listing = None;
    }

    /// Takes in what a request says until the session's task sees it.
    pub(in crate::hub) fn take_request(&mut self, arrival: EngineRequest) {
        self.arrivals.push_back(arrival);
    }

    /// Bytes of packets that wait, each request counted with a minimum.
    pub fn waiting_bytes(&self) -> usize {
        let bytes = |one: &EngineRequest| match one {
            EngineRequest::Packets { bytes, .. } => bytes + REQUEST_BYTES,
            _ => REQUEST_BYTES,
        };
        self.arrivals.iter().map(bytes).sum()
    }

    /// The next request; packets only if they can be handled now.
    pub fn next_arrival(&mut self, hears: bool) -> Option<EngineRequest> {
        let waits = |one: &EngineRequest| matches!(one, EngineRequest::Packets { .. });
        let at = self.arrivals.iter().position(|one| hears || !waits(one))?;
        self.arrivals.remove(at)
    }

    /// Answers a poll with the next packets. An older poll, and any poll during the change to a WebSocket, gets an
    /// empty response.
    pub fn answer_to(&mut self, poll: oneshot::Sender<Bytes>) {
        self.idle_since = 0;
        self.receivers = (self.receivers + 1).min(2);
        match std::mem::replace(&mut self.receiver, EngineReceiver::Nobody) {
            // One poll at a time: the older may be one whose client is gone without a word.
            EngineReceiver::Polling(before) => self.answer_nothing(before),
            EngineReceiver::Socket(socket) => {
                self.receiver = EngineReceiver::Socket(socket);
                return self.answer_nothing(poll);
            }
            EngineReceiver::Nobody => {}
        }
        self.receiver = EngineReceiver::Polling(poll);
    }

    /// While the client changes to a WebSocket, a poll for which there was nothing to say ends.
    pub fn end_idle_poll(&mut self) {
        if self.is_changing
            && let EngineReceiver::Polling(_) = self.receiver
            && let EngineReceiver::Polling(poll) =
                std::mem::replace(&mut self.receiver, EngineReceiver::Nobody)
        {
            self.answer_nothing(poll);
        }
    }

    /// Ends a poll with a `noop` packet (6). A client asks again at once, or changes to its
    /// WebSocket.
    fn answer_nothing(&self, poll: oneshot::Sender<Bytes>) {
        let noop = self.terms.version.answer_body(packet_message(NOOP).bytes());
        // The client may have gone.
        let _ = poll.send(noop.into());
    }

    /// A WebSocket has come: the session's own if it begins with it, else one to be tried; whether it is that.
    pub fn take_socket(&mut self, socket: EngineSocket) -> bool {
        // A session begins by a poll or by a WebSocket; the one that comes second is a trial.
        if self.receivers > 0 {
            self.probe = Some(Box::new(socket));
        } else {
            self.receivers = 1;
            self.idle_since = 0;
            self.receiver = EngineReceiver::Socket(Box::new(socket));
        }
        self.probe.is_some()
    }

    /// Whether a WebSocket is being tested.
    pub fn has_probe(&self) -> bool {
        self.probe.is_some()
    }

    /// Reads from the WebSocket that is tried.
    pub fn poll_probe(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(probe) = &mut self.probe else { return Poll::Pending };
        match probe.write_queued() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // Written once it takes more, which wakes the task as well.
                let _ = probe.stream.poll_writable(cx)?;
            }
            written => written?,
        }
        probe.poll_read(cx, buffer)
    }

    /// Answers on the WebSocket that is tried, and lets it be changed to.
    pub fn answer_probe(&mut self, packet: &str) {
        if let Some(probe) = &mut self.probe {
            probe.queued.push(packet_message(packet).into_bytes());
            // The rest is written when it is next polled.
            let _ = probe.write_queued();
            self.is_changing = true;
        }
    }

    /// The WebSocket that was tried is of no use.
    pub fn drop_probe(&mut self) -> Option<EngineSocket> {
        self.is_changing = false;
        self.probe.take().map(|probe| *probe)
    }

    /// All that is said goes by the WebSocket that was tried.
    pub fn change_to_probe(&mut self) {
        if let Some(probe) = self.probe.take() {
            self.end_idle_poll();
            self.is_changing = false;
            // From now on the client is offered no upgrade.
            self.terms.upgrades = false;
            self.idle_since = 0;
            self.receiver = EngineReceiver::Socket(probe);
        }
    }

    /// Whether packets go out on a WebSocket.
    pub fn is_socket(&self) -> bool {
        matches!(self.receiver, EngineReceiver::Socket(_))
    }

    /// Whether the last packet was written and taken.
    pub fn is_finished(&self) -> bool {
        self.is_finished && !self.is_holding()
    }

    /// The session's WebSocket, to be closed when its client is done.
    pub fn take_finished(&mut self) -> Option<EngineSocket> {
        match std::mem::replace(&mut self.receiver, EngineReceiver::Nobody) {
            EngineReceiver::Socket(socket) => Some(*socket),
            EngineReceiver::Nobody | EngineReceiver::Polling(_) => None,
        }
    }

    /// Looks at the clock, once a second: for how many seconds nothing has received.
    pub fn idle_for(&mut self, now: u32) -> u32 {
        if !matches!(self.receiver, EngineReceiver::Nobody) {
            self.idle_since = 0;
            return 0;
        }
        if self.idle_since == 0 {
            self.idle_since = now;
        }
        now.saturating_sub(self.idle_since)
    }

    /// Since when nothing receives, nor has a request come that the session's task has yet to see.
    pub fn lull(&self) -> Option<SessionLull> {
        let is_left = matches!(self.receiver, EngineReceiver::Nobody) && self.arrivals.is_empty();
        is_left.then_some(SessionLull { has_returned: self.receivers > 1, since: self.idle_since })
    }

    /// Ready when the client has cut the poll that waits.
    pub fn poll_cut(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.receiver {
            EngineReceiver::Polling(poll) => poll.poll_closed(cx),
            EngineReceiver::Nobody | EngineReceiver::Socket(_) => Poll::Pending,
        }
    }

    /// Reads from the session's WebSocket.
    pub fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.receiver {
            EngineReceiver::Socket(socket) => socket.poll_read(cx, buffer),
            EngineReceiver::Nobody | EngineReceiver::Polling(_) => Poll::Pending,
        }
    }

    pub(super) fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.receiver {
            EngineReceiver::Nobody => Poll::Pending,
            EngineReceiver::Polling(_) => Poll::Ready(Ok(())),
            EngineReceiver::Socket(socket) => socket.stream.poll_writable(cx),
        }
    }

    /// Whether bytes wait that are not in the outbox.
    pub(super) fn is_holding(&self) -> bool {
        matches!(&self.receiver, EngineReceiver::Socket(socket) if socket.is_holding())
    }

    /// Says as much of `outbox` as is taken; the bytes of it that are dealt with.
    pub(super) fn try_write(&mut self, outbox: &Outbox) -> io::Result<usize> {
        let (taken, is_last) = match &mut self.receiver {
            EngineReceiver::Socket(socket) => socket.write_outbox(outbox, self.terms)?,
            EngineReceiver::Polling(_) if !outbox.is_empty() => self.answer_poll(outbox)?,
            _ => return Err(io::ErrorKind::WouldBlock.into()),
        };
        if is_last {
            self.is_finished = true;
            self.listing = None;
        }
        Ok(taken)
    }

    /// Ends the poll with what there is, as many packets as clients take at once, unless that says
    /// nothing to clients of Socket.IO: then it waits on. The rest is for the next poll.
    fn answer_poll(&mut self, outbox: &Outbox) -> io::Result<(usize, bool)> {
        let mut answer = PollAnswer::default();
        for piece in outbox.iter() {
            let (translated, ends) = translation_of(piece, self.terms);
            if !answer.take(&translated, ends, piece.len()) {
                answer.take_frames_of(piece.clone(), self.terms);
                break;
            }
        }
        let body = self.terms.version.answer_body(&answer.frames);
        if !body.is_empty()
            && let EngineReceiver::Polling(poll) =
                std::mem::replace(&mut self.receiver, EngineReceiver::Nobody)
        {
            poll.send(body.into()).map_err(|_| io::ErrorKind::BrokenPipe)?;
        }
        Ok((answer.taken, answer.is_last))
    }

    /// Ends our half.
    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let EngineReceiver::Socket(socket) = &mut self.receiver {
            ready!(Pin::new(&mut socket.stream).poll_shutdown(cx))?;
        }
        Poll::Ready(Ok(()))
    }
}

/// The response to one poll.
#[derive(Default)]
struct PollAnswer {
    /// Translated.
    frames: Vec<u8>,
    packets: usize,
    /// Bytes of the outbox that are said by it.
    taken: usize,
    is_last: bool,
}

impl PollAnswer {
    /// Takes what `source` bytes of the outbox were translated to, if it is no more than fits.
    fn take(&mut self, translated: &[u8], ends: bool, source: usize) -> bool {
        let packets = self.packets + count_packets(translated);
        // One frame is a few packets at most, so that an answer which has none yet always takes one.
        let fits = packets <= MAX_ANSWER_PACKETS;
        if fits {
            self.frames.extend_from_slice(translated);
            self.packets = packets;
            self.taken += source;
            self.is_last |= ends;
        }
        fits
    }

    /// Takes the frames of a piece that fit; a turn's events may be one piece.
    fn take_frames_of(&mut self, mut piece: Bytes, terms: GreetingTerms) {
        while let Some(len) = first_frame_len(&piece) {
            let made = translate_frames(&piece.split_to(len), terms);
            if !self.take(&made.frames, made.is_last, len) {
                break;
            }
        }
    }
}

/// Translates a piece, once a turn for all sessions that get it.
fn translation_of(piece: &Bytes, terms: GreetingTerms) -> (Bytes, bool) {
    let address = piece.as_ptr() as usize;
    // Most allocations are aligned to 16 bytes: the lowest four bits tell little apart.
    let place = (address >> 4 ^ address >> 10) % SHARED_PLACES;
    SHARED.with_borrow_mut(|shared| {
        let kept = shared.get_mut(place);
        if let Some(Some((of, translated, is_last))) = &kept
            && of.as_ptr() == piece.as_ptr()
            && of.len() == piece.len()
        {
            return (translated.clone(), *is_last);
        }
        let made = translate_frames(piece, terms);
        let (translated, is_last) = (Bytes::from(made.frames), made.is_last);
        // A piece that only this session gets, such as its greeting, is not cached.
        if !piece.is_unique()
            && let Some(kept) = kept
        {
            *kept = Some((piece.clone(), translated.clone(), is_last));
        }
        (translated, is_last)
    })
}

/// Lets go of the translations that are kept, and the pieces that they were made of.
pub fn forget_translations() {
    SHARED.with_borrow_mut(|shared| shared.iter_mut().for_each(|kept| *kept = None));
}
