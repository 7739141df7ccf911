//! Acknowledgements: a worker pings resumable clients soon after it delivered events, and knows what each pong
//! confirms. It uses `pusher:ping`, since browsers answer WebSocket pings even if the page never sees the messages.

use std::rc::Rc;
use std::slice;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::task::yield_now;
use tokio::time::sleep;

use super::resumption::Resumption;
use crate::hub::channels::WorkerChannel;
use crate::hub::connection::Connection;
use crate::hub::fanout::CompressedRun;
use crate::hub::fanout::is_newer_than_seen;
use crate::hub::flush_line::TouchedList;
use crate::hub::handles::{ChannelHandle, Sequence};
use crate::hub::inbox::Delivery;
use crate::hub::worker::Worker;
use crate::protocol::channel::ChannelName;
use crate::protocol::event::Message;

/// How soon after its first unacknowledged event a client is asked to acknowledge.
const ACKNOWLEDGE_EVERY: Duration = Duration::from_millis(200);

/// How many are asked in one turn, which takes about a millisecond: a crowd that has come back at once is due at once.
const ASKED_AT_ONCE: usize = 128;

impl Worker {
    /// Puts frames into one subscriber's outbox. With a number, its client is to acknowledge them.
    pub(in crate::hub) fn give_frame(
        &self,
        connection: &Rc<Connection>,
        frame: Bytes,
        number: u64,
    ) {
        if number == 0 {
            return connection.enqueue(frame);
        }
        connection.push_logged(frame);
        self.expect_acknowledgement(connection);
    }

    /// Delivers frame by frame, to each subscriber those that it was not told when it came back.
    pub(in crate::hub) fn deliver_anew(
        &self,
        channel: &WorkerChannel,
        run: &[Delivery],
        touched: &mut TouchedList<Rc<Connection>>,
    ) {
        let (mut deliveries, mut second) = (0, CompressedRun::default());
        for connection in &channel.subscribers {
            let told = |one: &Delivery| {
                connection.resumption().map_or(0, |it| it.delivered_up_to(one.channel))
            };
            for one in run.iter().filter(|one| !connection.is_excluded(one.except)) {
                let is_known = one.number > 0 && one.number <= told(one);
                let is_old = one.history != Sequence::None
                    && !is_newer_than_seen(connection, one.channel, one.history);
                if !is_known && !is_old {
                    let alone =
                        second.pick_form(connection, slice::from_ref(one), &one.frame, false);
                    self.give_or_hold_back(connection, one, alone);
                    deliveries += 1;
                }
            }
            if connection.mark_dirty() {
                touched.add_touched(connection.clone(), channel.subscribers.len());
            }
        }
        let traffic = channel.directory.traffic_of(self.index());
        traffic.deliveries.add(deliveries);
        second.count_bytes(traffic);
    }

    /// Gives a connection an event, unless such wait until it is known what its client has missed.
    fn give_or_hold_back(&self, connection: &Rc<Connection>, one: &Delivery, frame: Bytes) {
        let max = connection.app().limits.outbox_bytes;
        let held = connection.resumption().and_then(|resumption| {
            resumption.queue_held_back(one.channel, one.number, &frame, max)
        });
        match held {
            None => self.give_frame(connection, frame, one.number),
            Some(true) => {}
            Some(false) => connection.close_slow(),
        }
    }

    /// Notes that a subscriber of the channel was told its events up to `number` when it came back.
    pub fn note_caught_up(&self, connection: &Rc<Connection>, name: &ChannelName, number: u64) {
        let local = self.channels.borrow().find(&connection.directory, name.as_str());
        if let (Some(local), Some(resumption)) = (local, connection.resumption()) {
            resumption.set_delivered(local, number);
            self.deliveries.note_caught_up(local, number);
        }
    }

    /// Puts a connection of a resumable client among those that are to be pinged soon.
    pub fn expect_acknowledgement(&self, connection: &Rc<Connection>) {
        if connection.resumption().is_some_and(Resumption::mark_due) {
            self.deliveries.add_due(connection.clone());
        }
    }

    /// The last event of each channel that a connection of a resumable client has been sent.
    fn sent_events(&self, connection: &Connection) -> Box<[(ChannelHandle, u64)]> {
        let Some(resumption) = connection.resumption() else { return Box::default() };
        let subscriptions = connection.subscriptions.borrow();
        let sent = subscriptions.iter().map(|one| {
            let number = self
                .deliveries
                .last_delivered(one.channel)
                .max(resumption.delivered_up_to(one.channel));
            (one.channel, number)
        });
        sent.filter(|(_, number)| *number > 0).collect()
    }

    /// Notes that a `pusher:ping` goes out to the connection at `now`: its answer acknowledges all before it.
    pub fn note_ping(&self, connection: &Connection, now: Instant) {
        if let Some(resumption) = connection.resumption() {
            let sent = if resumption.has_backlog() {
                Box::default()
            } else {
                self.sent_events(connection)
            };
            resumption.note_ping(now, sent);
        }
    }

    /// The events that the connection's `pusher:pong` acknowledges, by the channels' names.
    pub fn take_acknowledged(&self, connection: &Connection) -> Option<Vec<(ChannelName, u64)>> {
        let answered = connection.resumption()?.take_answered()?;
        let channels = self.channels.borrow();
        let name = |(local, number): &(ChannelHandle, u64)| {
            channels.get(*local).map(|channel| (channel.name.clone(), *number))
        };
        Some(answered.iter().filter_map(name).collect())
    }

    /// Pings, soon after they got events, the connections of resumable clients, for ever.
    pub async fn keep_acknowledged(&self) {
        loop {
            self.deliveries.wait_woken().await;
            loop {
                sleep(ACKNOWLEDGE_EVERY).await;
                let mut due = self.deliveries.take_due();
                while self.ping_some(&mut due, Instant::now()) {
                    // Events go out in between.
                    yield_now().await;
                }
                if !self.deliveries.has_due() {
                    break;
                }
            }
        }
    }

    /// Pings those that may be at `now`.
    pub fn ping_due(&self, now: Instant) {
        let mut due = self.deliveries.take_due();
        while self.ping_some(&mut due, now) {}
    }

    /// Pings some of those that may be at `now`, and puts back those that may not; whether more are left.
    fn ping_some(&self, due: &mut Vec<Rc<Connection>>, now: Instant) -> bool {
        let mut some = due.split_off(due.len().saturating_sub(ASKED_AT_ONCE));
        some.retain(|connection| !self.ping_if_due(connection, now));
        self.deliveries.put_back(some);
        !due.is_empty()
    }

    /// Pings the connection if it may be; whether it need not be looked at again before it gets more.
    fn ping_if_due(&self, connection: &Connection, now: Instant) -> bool {
        let Some(resumption) = connection.resumption() else { return true };
        if connection.is_closing() {
            return true;
        }
        if !resumption.may_ping(now) {
            return false;
        }
        connection.enqueue_message(Message::ping());
        self.note_ping(connection, now);
        connection.flush();
        true
    }
}
