//! Fan-out: puts the frames of one turn into the outboxes of their channels' subscribers. Successive frames of a
//! channel are joined into one piece that all its subscribers share. The worker flushes.

use std::rc::Rc;
use std::slice;

use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;

use super::connection::Connection;
use super::deflated::Compression;
use super::flush_line::TouchedList;
use super::handles::{ChannelHandle, Sequence};
use super::inbox::Delivery;
use super::worker::Worker;
use crate::metrics::AppTraffic;

/// Bytes of frames that are joined into one piece for all subscribers of a channel.
const MAX_JOINED_BYTES: usize = 64 << 10;

impl Worker {
    /// Delivers frames so that each subscriber gets its own in the order they came. Channels whose
    /// subscribers have no other come one after the other, for frames of one channel can be joined.
    pub(super) fn deliver_all(
        &self,
        frames: &mut Vec<Delivery>,
        touched: &mut TouchedList<Rc<Connection>>,
    ) {
        if frames.len() > 1 {
            let channels = self.channels.borrow();
            let place = |frame: &Delivery| {
                if channels.is_alone(frame.channel) { frame.channel.slot } else { u32::MAX }
            };
            if !frames.is_sorted_by_key(place) {
                // Stable: frames of one channel stay in the order in which they came.
                frames.sort_by_key(place);
            }
        }
        let mut run: SmallVec<[Delivery; 8]> = SmallVec::new();
        let mut run_bytes = 0;
        for next in frames.drain(..) {
            let joins = run.last().is_some_and(|last| {
                last.channel == next.channel && last.history.joins(next.history)
            });
            if !joins || run_bytes + next.frame.len() > MAX_JOINED_BYTES {
                self.deliver_run(&mut run, touched);
                run_bytes = 0;
            }
            run_bytes += next.frame.len();
            run.push(next);
        }
        self.deliver_run(&mut run, touched);
    }

    /// Delivers frames that follow each other on one channel, joined into one piece for all those who get
    /// all of them.
    fn deliver_run(
        &self,
        run: &mut SmallVec<[Delivery; 8]>,
        touched: &mut TouchedList<Rc<Connection>>,
    ) {
        let Some(first) = run.first() else { return };
        let channels = self.channels.borrow();
        let Some(channel) = channels.get(first.channel) else {
            run.clear();
            return;
        };
        let all = match run.as_slice() {
            [only] => only.frame.clone(),
            several => Delivery::join_frames(several),
        };
        let number = run.last().map_or(0, |last| last.number);
        if number > 0 && self.deliveries.note_delivered(first.channel, number) >= first.number {
            // A resumed subscriber may have received some of these events already.
            self.deliver_anew(channel, run, touched);
            return run.clear();
        }
        // Counted once for all, since a counter for each subscriber would be most of the work.
        let (mut deliveries, mut second) = (0, CompressedRun::default());
        let (history, plain) = (first.history, run.iter().all(|one| one.except.is_none()));
        for connection in &channel.subscribers {
            let before = deliveries;
            // Everything after a new frame is new as well.
            let is_new =
                history == Sequence::None || is_newer_than_seen(connection, first.channel, history);
            if is_new && (plain || !run.iter().any(|one| connection.is_excluded(one.except))) {
                self.give_frame(connection, second.pick_form(connection, run, &all, true), number);
                deliveries += run.len();
            } else {
                for one in run.iter().filter(|one| !connection.is_excluded(one.except)) {
                    let is_new = history == Sequence::None
                        || is_newer_than_seen(connection, one.channel, one.history);
                    if !is_new {
                        continue;
                    }
                    let alone =
                        second.pick_form(connection, slice::from_ref(one), &one.frame, false);
                    self.give_frame(connection, alone, number);
                    deliveries += 1;
                }
            }
            if deliveries > before && connection.mark_dirty() {
                touched.add_touched(connection.clone(), channel.subscribers.len());
            }
        }
        let traffic = channel.directory.traffic_of(self.index());
        traffic.deliveries.add(deliveries as u64);
        second.count_bytes(traffic);
        run.clear();
    }
}

/// Whether a frame's place in the channel's history is after what the subscriber received when it subscribed.
pub(super) fn is_newer_than_seen(
    connection: &Connection,
    channel: ChannelHandle,
    history: Sequence,
) -> bool {
    let subscriptions = connection.subscriptions.borrow();
    subscriptions.find(channel.slot).is_some_and(|subscription| match history {
        Sequence::None => true,
        Sequence::Presence(version) => subscription.told().presence < version,
        Sequence::Cache(version) => subscription.told().cache < version,
    })
}

/// The run as one piece for connections that take compressed events. A copy for this worker, so that workers do not
/// count references on one shared cache line.
pub(super) fn join_deflated(run: &[Delivery]) -> Bytes {
    let forms = run.iter().map(smallest_form);
    let mut all = BytesMut::with_capacity(forms.clone().map(<[u8]>::len).sum());
    forms.for_each(|form| all.extend_from_slice(form));
    all.freeze()
}

/// The shortest form of an event, for a connection that agreed on compression.
fn smallest_form(one: &Delivery) -> &[u8] {
    one.deflated
        .as_ref()
        .and_then(|deflated| deflated.deflated_form(&one.frame))
        .unwrap_or(&one.frame)
}

/// Frames that follow each other, for those of a channel's subscribers that take them compressed.
#[derive(Debug, Default)]
pub(super) struct CompressedRun {
    /// Of all of them together.
    all: Option<Bytes>,
    /// Bytes that the compressed events would have had plain.
    plain_bytes: usize,
    /// Bytes of the events as they were sent.
    deflated_bytes: usize,
}

impl CompressedRun {
    /// The form of `run` for `connection`; `plain` is the run in one piece, `all` everything that is delivered now.
    pub(super) fn pick_form(
        &mut self,
        connection: &Connection,
        run: &[Delivery],
        plain: &Bytes,
        all: bool,
    ) -> Bytes {
        if connection.life.compression.get() != Compression::Both
            || run.iter().all(|one| one.deflated.is_none())
        {
            return plain.clone();
        }
        let form = match &self.all {
            Some(form) if all => form.clone(),
            _ => join_deflated(run),
        };
        if all {
            self.all = Some(form.clone());
        }
        self.plain_bytes += plain.len();
        self.deflated_bytes += form.len();
        form
    }

    /// Added once for a turn, not for each subscriber.
    pub(super) fn count_bytes(&self, traffic: &AppTraffic) {
        if self.plain_bytes > 0 {
            traffic.plain_bytes.add(self.plain_bytes as u64);
            traffic.deflated_bytes.add(self.deflated_bytes as u64);
        }
    }
}
