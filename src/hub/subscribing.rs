//! How a connection's subscription begins and ends on its worker, in the order that loses no frame: the worker first and
//! the directory second, and back in reverse. `node.rs` decides whether it may; `subscriptions.rs` has what a connection
//! keeps of it.

use std::rc::Rc;

use super::connection::Connection;
use super::directory::{Subscribed, Unsubscribed};
use super::handles::Sequence;
use super::seats::WorkerTarget;
use super::subscriptions::{SeenVersions, Subscription, counted_bytes};
use super::worker::Worker;
use crate::app::{ChannelFull, PresenceBounds};
use crate::protocol::channel::ChannelName;
use crate::protocol::event::{MemberText, Message};
use crate::protocol::member::{Member, UserId};

/// The effects of the end of a subscription.
#[derive(Debug)]
pub struct EndedSubscription {
    pub channel: ChannelName,
    /// The changes that the end brought.
    pub change: Unsubscribed,
    pub user: Option<UserId>,
}

impl Worker {
    /// The user as whom a connection is present in a channel. The outer `Option` is the subscription, the inner one
    /// the member.
    pub fn subscribed_as(&self, connection: &Connection, name: &str) -> Option<Option<UserId>> {
        let local = self.channels.borrow().find(&connection.directory, name)?;
        let subscriptions = connection.subscriptions.borrow();
        subscriptions.find(local.slot).map(|subscription| subscription.user().cloned())
    }

    /// Subscribes a connection that is not subscribed yet: on the worker first and in the directory second, in one
    /// synchronous step. So no frame is missed after the confirmation, and none before it is out of order. `told`
    /// is called once it is subscribed, for the versions that the confirmation has.
    pub fn subscribe_connection(
        &self,
        connection: &Rc<Connection>,
        name: &ChannelName,
        member: Option<(&Member, PresenceBounds)>,
        seen: impl FnOnce(&Subscribed) -> SeenVersions,
    ) -> Result<Subscribed, ChannelFull> {
        let directory = &connection.directory;
        let mut channels = self.channels.borrow_mut();
        let local = channels.find_or_open(directory, name);
        let position = channels.at_mut(local.slot).map_or(0, |channel| {
            // Before the directory knows of it, so that no event that it sends here misses this subscriber.
            channel.subscribers.push(connection.clone());
            channel.subscribers.len() - 1
        });
        // Called while the channel's entry is locked, so that members are announced in the order of their versions.
        let tell = |seats: &[WorkerTarget], member: &MemberText, version| {
            let (message, history) =
                (Message::member_added(name, member), Sequence::Presence(version));
            self.hub().publish_frame(seats, message.bytes(), Some(connection.id), history);
        };
        let subscribed = match directory.add_subscriber(name, (self.index(), local), member, tell) {
            Ok(subscribed) => subscribed,
            Err(full) => {
                // The last one pushed is this one: nothing has come between.
                if let Some(channel) = channels.at_mut(local.slot) {
                    channel.subscribers.pop();
                }
                channels.close_if_empty(local.slot);
                return Err(full);
            }
        };
        let mut subscriptions = connection.subscriptions.borrow_mut();
        let bytes = counted_bytes(name);
        directory.held().add_bytes(bytes);
        channels.note_shared(local.slot, &subscriptions);
        let mut subscription = Subscription::new(local, position as u32, bytes as u32);
        // Asked only now, so that what the answer contains is no older than the subscription.
        subscription.set_told(seen(&subscribed));
        member.into_iter().for_each(|(member, _)| subscription.set_user(member.user_id.clone()));
        subscriptions.push(subscription);
        Ok(subscribed)
    }

    /// Updates the versions that a subscriber has, after its confirmation was sent again: older frames on their way
    /// must be skipped.
    pub fn update_seen(
        &self,
        connection: &Connection,
        name: &str,
        seen: impl FnOnce(&mut SeenVersions),
    ) {
        let Some(local) = self.channels.borrow().find(&connection.directory, name) else { return };
        let mut subscriptions = connection.subscriptions.borrow_mut();
        if let Some(subscription) = subscriptions.find_mut(local.slot) {
            let mut versions = subscription.told();
            seen(&mut versions);
            subscription.set_told(versions);
        }
    }

    /// Ends a subscription; `None` if there is none.
    pub fn unsubscribe_connection(
        &self,
        connection: &Connection,
        name: &str,
    ) -> Option<EndedSubscription> {
        let slot = self.channels.borrow().find(&connection.directory, name)?.slot;
        let subscription = connection.subscriptions.borrow_mut().take(slot)?;
        self.end_subscription(connection, subscription)
    }

    /// Ends all subscriptions, one a call; `None` once there are none.
    pub fn unsubscribe_next(&self, connection: &Connection) -> Option<EndedSubscription> {
        let subscription = connection.subscriptions.borrow_mut().pop()?;
        self.end_subscription(connection, subscription)
    }

    /// In the reverse order of subscribing: when the directory removes it, no subscriber is left on the worker.
    fn end_subscription(
        &self,
        connection: &Connection,
        subscription: Subscription,
    ) -> Option<EndedSubscription> {
        let Subscription { channel: local, position, bytes, .. } = subscription;
        let user = subscription.into_user();
        // Nothing of it waits for a log any longer.
        self.let_go(connection, local);
        let mut channels = self.channels.borrow_mut();
        let slot = local.slot;
        connection.directory.held().sub_bytes(bytes as usize);
        let channel = channels.at_mut(slot)?;
        // The last subscriber has moved to the free place, and must know it.
        if let Some(moved) = channel.remove(position as usize)
            && let Some(one) = moved.subscriptions.borrow_mut().find_mut(slot)
        {
            one.position = position;
        }
        let name = channel.name.clone();
        channels.note_unshared(slot, &connection.subscriptions.borrow());
        // A channel that is opened again has another generation, so late frames for this one reach nobody.
        if channels.close_if_empty(slot) {
            self.deliveries.forget_channel(local);
        }
        drop(channels);
        let tell = |seats: &[WorkerTarget], member: &MemberText, version| {
            let tells_info = connection.app().features.socketio.enabled;
            let message = Message::member_removed(&name, member, tells_info);
            self.hub().publish_frame(seats, message.bytes(), None, Sequence::Presence(version));
        };
        let change =
            connection.directory.remove_subscriber(&name, self.index(), user.as_ref(), tell)?;
        Some(EndedSubscription { channel: name, change, user })
    }
}
