//! A frame on its way into the inboxes of the workers that have subscribers. The directory has found those before;
//! each worker hands the frame to its own subscribers.

use bytes::Bytes;

use super::deflated::DeflatedEvent;
use super::flush_line::is_crowd;
use super::handles::Sequence;
use super::inbox::{Delivery, TracedDelivery, WorkerTask};
use super::seats::WorkerTarget;
use super::traced::EventPlace;
use super::{Hub, shown};
use crate::protocol::socket_id::SocketId;

impl Hub {
    /// Sends one frame to all subscribers that `seats` lead to: one order a worker. Each worker but the
    /// first gets a copy of its own, so that they do not count references on one shared cache line.
    pub fn publish_frame(
        &self,
        seats: &[WorkerTarget],
        frame: &Bytes,
        except: Option<SocketId>,
        history: Sequence,
    ) {
        self.publish_event(seats, frame, (except, history), None, 0);
    }

    /// The same for an event: those that take it are sent it compressed if its text has `compression_min` bytes,
    /// and it may have a number in the channel's log, 0 if it is in none.
    pub fn publish_event<'a>(
        &self,
        seats: &[WorkerTarget],
        frame: &Bytes,
        place: impl Into<EventPlace<'a>>,
        compression_min: Option<usize>,
        number: u64,
    ) {
        let EventPlace { except, history, trace } = place.into();
        if shown::is_wanted() {
            shown::show_published(frame);
        }
        let deflated = compression_min.and_then(|min| DeflatedEvent::for_frame(frame, min));
        for (index, seat) in seats.iter().enumerate() {
            let frame = if index == 0 { frame.clone() } else { Bytes::copy_from_slice(frame) };
            let deflated = deflated.clone();
            let (channel, subscribers) = (seat.channel, seat.subscribers.get() as usize);
            // One worker alone gathers events while it writes.
            let is_for_crowd = seats.len() > 1 && is_crowd(subscribers);
            let deliver =
                Delivery { channel, frame, deflated, except, history, number, is_for_crowd };
            let task = match trace {
                None => WorkerTask::Deliver(deliver),
                Some(trace) => WorkerTask::DeliverTraced(Box::new(TracedDelivery {
                    delivery: deliver,
                    trace: trace.clone(),
                })),
            };
            self.inbox(seat.worker).put_task(task);
        }
    }
}
