//! Events that are traced: each is delivered by itself, so that its receivers can be counted, and is reported once it
//! was flushed. Other events are not affected.

use std::rc::Rc;

use tracing::debug;

use super::connection::Connection;
use super::flush::TracedFlush;
use super::flush_line::TouchedList;
use super::handles::Sequence;
use super::inbox::{Delivery, TracedDelivery};
use super::worker::Worker;
use crate::console::Kind;
use crate::protocol::socket_id::SocketId;
use crate::protocol::trace::Trace;

/// Where an event belongs, and who follows it.
#[derive(Clone, Copy, Debug)]
pub struct EventPlace<'a> {
    /// The connection that sent it does not get it.
    pub except: Option<SocketId>,
    /// The event's place in the channel's history.
    pub history: Sequence,
    /// Nothing for almost all events.
    pub trace: Option<&'a Trace>,
}

impl From<(Option<SocketId>, Sequence)> for EventPlace<'_> {
    fn from((except, history): (Option<SocketId>, Sequence)) -> Self {
        Self { except, history, trace: None }
    }
}

impl Worker {
    /// Delivers one event by itself; `frames` is empty before and after. Returns the report of its flush, unless
    /// the channel has no subscribers here any more.
    pub(super) fn deliver_traced(
        &self,
        TracedDelivery { delivery, trace }: TracedDelivery,
        frames: &mut Vec<Delivery>,
        touched: &mut TouchedList<Rc<Connection>>,
    ) -> Option<TracedFlush> {
        let (directory, channel, app) = {
            let channels = self.channels.borrow();
            let channel = channels.get(delivery.channel)?;
            let app = channel.subscribers.first()?.app().id.clone();
            (channel.directory.clone(), channel.name.clone(), app)
        };
        let deliveries = &directory.traffic_of(self.index()).deliveries;
        let before = deliveries.value();
        frames.push(delivery);
        self.deliver_all(frames, touched);
        let subscribers = deliveries.value().wrapping_sub(before);
        Some(TracedFlush { trace, app, channel, subscribers })
    }

    /// Says of each that it was flushed. A subscriber that is slow may have it in its queue still.
    pub(super) fn emit_flushed(&self, traced: &mut Vec<TracedFlush>) {
        for TracedFlush { trace, app, channel, subscribers } in traced.drain(..) {
            let worker = self.index();
            let channel = channel.as_str();
            debug!(trace = trace.as_str(), %app, ?channel, worker, subscribers, "flushed");
            self.hub().console.send(Kind::Flushed, |fact| {
                let fact = fact.app(app.as_str().to_owned()).channel(channel.to_owned());
                let fact = fact.count(subscribers as usize).more("trace", trace.to_string());
                fact.more("worker", worker.to_string())
            });
        }
    }
}
