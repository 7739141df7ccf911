//! How far one worker has delivered the numbered events of its channels, and which connections to ping for
//! acknowledgements. Only channels of resumable clients have numbers.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use tokio::sync::Notify;

use crate::hub::connection::Connection;
use crate::hub::handles::ChannelHandle;

/// Never leaves its thread.
#[derive(Debug, Default)]
pub(in crate::hub) struct Deliveries {
    /// Only channels whose events are numbered.
    channels: RefCell<HashMap<ChannelHandle, DeliveredNumbers>>,
    /// Whether there are any, known without a look at them.
    any: Cell<bool>,
    /// Connections that are to be pinged, since they were given something.
    due: RefCell<Vec<Rc<Connection>>>,
    wake: Notify,
}

#[derive(Debug, Default, Clone, Copy)]
struct DeliveredNumbers {
    /// The number of the last event that its subscribers here were given.
    last: u64,
    /// The highest number that one of them was told when it came back.
    told: u64,
    /// Those for whom what comes in waits.
    held_back: u32,
}

impl Deliveries {
    /// Notes that the channel's events up to `last` are delivered; the number up to which some subscriber
    /// may have been told already.
    pub(in crate::hub) fn note_delivered(&self, channel: ChannelHandle, last: u64) -> u64 {
        self.any.set(true);
        let mut channels = self.channels.borrow_mut();
        let delivered = channels.entry(channel).or_default();
        delivered.last = last;
        if delivered.held_back > 0 { u64::MAX } else { delivered.told }
    }

    /// Notes that what comes in waits for one subscriber more.
    pub(in crate::hub) fn hold_back(&self, channel: ChannelHandle) {
        self.any.set(true);
        self.channels.borrow_mut().entry(channel).or_default().held_back += 1;
    }

    /// Notes that it does no longer.
    pub(in crate::hub) fn let_go(&self, channel: ChannelHandle) {
        if let Some(delivered) = self.channels.borrow_mut().get_mut(&channel) {
            delivered.held_back = delivered.held_back.saturating_sub(1);
        }
    }

    /// Notes that a subscriber was told the channel's events up to `number`.
    pub(in crate::hub) fn note_caught_up(&self, channel: ChannelHandle, number: u64) {
        self.any.set(true);
        let mut channels = self.channels.borrow_mut();
        let delivered = channels.entry(channel).or_default();
        delivered.told = delivered.told.max(number);
    }

    /// The number of the last event of the channel that its subscribers here were given.
    pub(in crate::hub) fn last_delivered(&self, channel: ChannelHandle) -> u64 {
        self.channels.borrow().get(&channel).map_or(0, |delivered| delivered.last)
    }

    /// Forgets a channel that has no subscribers here any more.
    pub(in crate::hub) fn forget_channel(&self, channel: ChannelHandle) {
        if self.any.get() {
            let mut channels = self.channels.borrow_mut();
            channels.remove(&channel);
            if channels.is_empty() {
                *channels = HashMap::new();
                self.any.set(false);
            }
        }
    }

    /// Puts a connection among those that are to be pinged.
    pub(in crate::hub) fn add_due(&self, connection: Rc<Connection>) {
        let mut due = self.due.borrow_mut();
        due.push(connection);
        if due.len() == 1 {
            self.wake.notify_one();
        }
    }

    /// Puts those back that cannot be pinged yet, without waking anybody.
    pub(in crate::hub) fn put_back(&self, due: Vec<Rc<Connection>>) {
        self.due.borrow_mut().extend(due);
    }

    /// Takes all of them, to be pinged or put back.
    pub(in crate::hub) fn take_due(&self) -> Vec<Rc<Connection>> {
        self.due.take()
    }

    /// Whether there are some.
    pub(in crate::hub) fn has_due(&self) -> bool {
        !self.due.borrow().is_empty()
    }

    /// Waits until there may be some.
    pub(in crate::hub) async fn wait_woken(&self) {
        self.wake.notified().await;
    }
}
