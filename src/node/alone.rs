//! Operations of a single server, whose directory is complete: subscribing, leaving, publishing and signing in are
//! decided and announced in one step. Their counterparts for a cluster are in `clustered.rs` and `watchlist.rs`.

use std::rc::Rc;
use std::sync::Arc;

use super::room::no_room;
use super::{Node, Publication, sends_count};
use crate::app::App;
use crate::hub::budget::WorkKind;
use crate::hub::cache::{self, CacheTerms, CachedEvent};
use crate::hub::connection::Connection;
use crate::hub::directory::{Directory, Joined};
use crate::hub::handles::Sequence;
use crate::hub::subscribing::EndedSubscription;
use crate::hub::subscriptions::SeenVersions;
use crate::hub::traced::EventPlace;
use crate::protocol::channel::ChannelName;
use crate::protocol::error::{self, SubscriptionError};
use crate::protocol::event::Message;
use crate::protocol::member::{Member, User};
use crate::webhook::Fact;

impl Node {
    /// Subscribes, and sends all frames that follow. Clients rely on their order: the confirmation is the first
    /// frame of the channel, the cached event the second, and everything published later comes after both.
    /// # Errors
    /// The presence channel is full; nothing has changed then.
    pub(super) fn subscribe_alone(
        &self,
        connection: &Rc<Connection>,
        name: &ChannelName,
        member: Option<Member>,
    ) -> Result<(), SubscriptionError> {
        let (app, kind) = (connection.app(), name.kind());
        let mut cached = None;
        let present = member.as_ref().map(|member| (member, app.limits.presence_bounds()));
        let subscribed = self
            .worker
            .subscribe_connection(connection, name, present, |facts| {
                // Only now, so that an event is either kept already or finds this subscriber.
                cached = kind.cache.then(|| connection.directory.cache.last_event(name)).flatten();
                SeenVersions {
                    presence: facts.joined.as_ref().map_or(0, |joined| joined.version),
                    cache: cached.as_ref().map_or(0, |cached: &CachedEvent| cached.version.get()),
                }
            })
            .map_err(|full| no_room(&app, full))?;
        let caught = self.catch_up(connection, name);
        // Facts go to webhooks before anything is queued for clients; neither waits for the other.
        self.report_fact(&app, subscribed.occupied.then_some(()), |()| {
            Fact::Occupied(name.clone())
        });
        // A user's second tab is not a second member, and is not announced.
        let is_new = subscribed.joined.as_ref().is_some_and(|joined| joined.member.is_some());
        // The costs for other connections are charged to this one.
        if subscribed.occupied {
            connection.budget.spend(WorkKind::NewChannel);
        }
        connection.budget.spend(WorkKind::Notices(if is_new { subscribed.count } else { 0 }));
        self.report_fact(&app, member.filter(|_| is_new), |new| {
            Fact::Joined(name.clone(), new.user_id)
        });
        match subscribed.joined {
            Some(Joined { roster, .. }) => connection.enqueue_message(roster),
            None => connection.enqueue_message(Message::subscription_succeeded(name)),
        }
        if !self.send_missed(connection, name, caught) && kind.cache {
            let misses = cached.is_none().then_some(());
            self.report_fact(&app, misses, |()| Fact::CacheMiss(name.clone()));
            connection.enqueue_message(
                cached.map_or_else(|| Message::cache_miss(name), |cached| cached.message),
            );
        }
        // Last, so that the new subscriber counts itself.
        let told = self.announce_count(&connection.directory, name, subscribed.count, &app);
        connection.budget.spend(WorkKind::Notices(told));
        Ok(())
    }

    /// Sends a subscriber the confirmation again, with the current state. The roster is read again, since members
    /// may have come and gone. Frames in flight that the roster includes are recognised by its version.
    pub(super) fn confirm_alone(&self, connection: &Connection, name: &ChannelName) {
        match connection.directory.roster(name) {
            Some((roster, version)) => {
                connection.enqueue_message(roster);
                self.worker.update_seen(connection, name.as_str(), |told| told.presence = version);
            }
            None => connection.enqueue_message(Message::subscription_succeeded(name)),
        }
        if !name.kind().cache {
            return;
        }
        // Frames in flight come first, so that the cached event is neither repeated nor overtakes one.
        let cached = connection.directory.cache.last_after(name, || self.worker.deliver_now());
        if let Some(cached) = &cached {
            let version = cached.version.get();
            self.worker.update_seen(connection, name.as_str(), |told| told.cache = version);
        }
        connection.enqueue_message(
            cached.map_or_else(|| Message::cache_miss(name), |cached| cached.message),
        );
    }

    /// Announces the end of a subscription; returns the number of notices, which is charged to the connection that
    /// left.
    pub(super) fn announce_leave_alone(
        &self,
        directory: &Directory,
        ended: &EndedSubscription,
        app: &Arc<App>,
    ) -> usize {
        let name = &ended.channel;
        let left = ended.user.as_ref().filter(|_| ended.change.member_left);
        self.report_fact(app, left, |user| Fact::Left(name.clone(), user.clone()));
        self.report_fact(app, ended.change.vacated.then_some(()), |()| Fact::Vacated(name.clone()));
        let told = self.announce_count(directory, name, ended.change.count, app);
        told + left.map_or(0, |_| ended.change.count)
    }

    /// Announces the count to subscribers that get counts; returns to how many.
    fn announce_count(
        &self,
        directory: &Directory,
        name: &ChannelName,
        count: usize,
        app: &Arc<App>,
    ) -> usize {
        // Large crowds get counts every few seconds at most: see `hub/count_throttle.rs`.
        let told =
            sends_count(app, name) && count > 0 && directory.counting.is_due_now(name, count);
        if told {
            self.announce_count_now(directory, name, app);
        }
        if told { count } else { 0 }
    }

    /// The count is read under the channel's lock together with its targets, so that two changes are announced in
    /// order.
    pub(super) fn announce_count_now(
        &self,
        directory: &Directory,
        name: &ChannelName,
        app: &Arc<App>,
    ) {
        directory.announce_count(name.as_str(), |seats, count| {
            self.report_fact(app, Some(count), |count| Fact::Count(name.clone(), count));
            let message = Message::subscription_count(name, count);
            self.hub().publish_frame(seats, message.bytes(), None, Sequence::None);
        });
    }

    /// Publishes an event of the API to those who are subscribed, and keeps it where the channel or the app says so.
    /// Three ways, by what has to be remembered: a cache channel keeps the event as its last; a channel that a
    /// client may come back to logs it; all others hand it to the workers that have subscribers, and nothing is
    /// kept.
    pub(super) fn publish_alone(
        &self,
        app: &App,
        directory: &Directory,
        publication: Publication<'_>,
    ) {
        if self.pass_publication_on(app, publication) {
            return self.publish_to_others(app, directory, publication);
        }
        let Publication { channel, event, data, except, trace } = publication;
        if channel.kind().cache {
            let message = Message::event(channel, event, data);
            let keep = CacheTerms {
                ttl: app.features.cache_ttl,
                max_bytes: app.limits.cache_bytes,
                has_memory: self.has_memory_for(cache::counted_bytes(&message, data)),
            };
            directory.cache.store_event(channel, (&message, data), keep, |version| {
                let history = Sequence::Cache(version);
                if app.features.resume.is_zero() {
                    self.publish_to_seats(app, directory, (publication, &message), history, 0);
                } else {
                    self.publish_logged(app, directory, (publication, &message), history);
                }
            });
            return;
        }
        // Only apps whose clients may come back take the log's lock, and only channels that such a client holds are logged.
        if !app.features.resume.is_zero() && directory.resume.is_held(channel) {
            let message = Message::event(channel, event, data);
            return self.publish_logged(app, directory, (publication, &message), Sequence::None);
        }
        let seats = directory.targets_of(channel.as_str());
        // An event without subscribers is not even encoded.
        if !seats.is_empty() {
            let message = Message::event(channel, event, data);
            let place = EventPlace { except, history: Sequence::None, trace };
            let min = app.compression_min(channel);
            self.hub().publish_event(&seats, message.bytes(), place, min, 0);
        }
    }

    /// Tells a user's watchers that it is online, and, if it `watches` others, which of those are.
    /// Each of its watchers costs a frame, which is charged to the connection.
    pub(super) fn go_online_alone(&self, connection: &Connection, user: &User, watches: bool) {
        let online = Message::watchlist_events(std::slice::from_ref(&user.id), &[]);
        let (mut told, now) = (0, self.worker.now_seconds());
        connection.directory.users.sign_in(&user.id, now, |place| {
            told += 1;
            self.hub().send_to(place, online.bytes().clone());
        });
        connection.budget.spend(WorkKind::Notices(told));
        if !watches {
            return;
        }
        if !user.watchlist.ids.is_empty() {
            let (mut online, mut offline) = (Vec::new(), Vec::new());
            for watched in &user.watchlist.ids {
                // Watching and reading are one step, so that no change in between is lost.
                let is_online =
                    connection.directory.users.watch_user(watched, connection.connection_ref());
                if is_online { &mut online } else { &mut offline }.push(watched.clone());
            }
            connection.enqueue_message(Message::watchlist_events(&online, &offline));
        }
        if user.watchlist.cut {
            connection.enqueue_message(Message::error(&error::WATCHLIST_CUT, None));
        }
    }

    /// Ends what [`Self::go_online_alone`] began.
    pub(super) fn go_offline_alone(&self, connection: &Connection, user: &User) {
        // Even if the app has no watchlists now: it may have had them before a reload.
        for watched in &user.watchlist.ids {
            connection.directory.users.unwatch_user(watched, connection.id);
        }
        let offline = Message::watchlist_events(&[], std::slice::from_ref(&user.id));
        connection.directory.users.sign_out(&user.id, self.worker.now_seconds(), |place| {
            self.hub().send_to(place, offline.bytes().clone());
        });
    }
}
