//! The conversation of one connection: a message becomes a command, the command an operation of the node, and every
//! refusal a reply, a count and a line in the log. Knows no socket, and no clock but the worker's.

mod held_commands;

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use crate::console::{ConsoleFact, Kind};
use crate::hub::budget::WorkKind;
use crate::hub::connection::Connection;
use crate::hub::shown;
use crate::hub::withdrawal::Withdrawal;
use crate::metrics::{Limited, LogNotice, Reason};
use crate::node::Node;
use crate::protocol::command::{ClientCommand, ClientEvent, MalformedCommand, SignIn, Subscribe};
use crate::protocol::error::{self, Error, SubscriptionError, close};
use crate::protocol::event::Message;
use held_commands::{HeldCommand, HeldCommands, MAX_AHEAD_BYTES, PLACE_BYTES};

/// The conversation of one connection. Dropping it leaves all channels.
#[derive(Debug)]
pub struct Session {
    /// The worker's node, whose operations it calls.
    node: Rc<Node>,
    /// The connection, into whose outbox it answers.
    connection: Rc<Connection>,
    /// None for most.
    extras: Option<Box<SessionExtras>>,
}

/// State that few sessions need: rate limits, and commands that wait.
#[derive(Debug, Default)]
struct SessionExtras {
    /// Client events that it may send.
    whispers: MessageBucket,
    /// Messages of any kind that it may send.
    messages: MessageBucket,
    /// A subscription that waits for other nodes. Later messages wait behind it, since a connection's messages are
    /// handled in order.
    waiting: Option<HeldCommands>,
}

/// The code of what is not signed as it should be.
const SIGNATURE: u16 = 4009;

/// The close code of a breach of policy (RFC 6455 section 7.4.1). Clients come back after it as after a lost
/// connection, pusher-js a second later; 4301, the code of the refusal, would keep it away for good.
const POLICY: u16 = 1008;

/// A bucket of messages, from which each takes one and which fills again evenly.
#[derive(Debug, Default)]
struct MessageBucket {
    /// When it was looked at last.
    second: u32,
    /// Tokens that are missing in the bucket, each counted as the seconds in which the bucket refills.
    spent: u64,
}

/// A bucket instead of counts for each second: a burst over the turn of a second counts as one.
impl MessageBucket {
    /// Takes one of `messages` that come back within `seconds`, if there is one.
    fn take(&mut self, now: u32, (messages, seconds): (u32, u32)) -> bool {
        let (messages, parts) = (u64::from(messages), u64::from(seconds));
        let passed = u64::from(now.saturating_sub(self.second));
        self.second = now;
        // Exact in whole numbers: one message is as many parts as there are seconds.
        self.spent = self.spent.saturating_sub(passed * messages);
        let is_left = self.spent + parts <= messages * parts;
        self.spent += parts * u64::from(is_left);
        is_left
    }
}

impl SessionExtras {
    /// Whether nothing in it is needed any longer.
    fn is_unused(&self) -> bool {
        self.waiting.is_none() && self.whispers.spent == 0 && self.messages.spent == 0
    }
}

impl Session {
    /// Begins with nothing said and nothing waited for.
    pub fn new(node: Rc<Node>, connection: Rc<Connection>) -> Self {
        Self { node, connection, extras: None }
    }

    /// The extras, allocated at their first use.
    fn extras(&mut self) -> &mut SessionExtras {
        self.extras.get_or_insert_default()
    }

    /// Commands that wait for a subscription.
    fn waiting(&mut self) -> Option<&mut HeldCommands> {
        self.extras.as_mut()?.waiting.as_mut()
    }

    /// Takes the commands that waited.
    fn take_waiting(&mut self) -> Option<HeldCommands> {
        let waiting = self.extras.as_mut()?.waiting.take();
        if self.extras.as_ref().is_some_and(|extras| extras.is_unused()) {
            self.extras = None;
        }
        waiting
    }

    /// For the task that reads and writes its stream.
    pub fn connection(&self) -> &Rc<Connection> {
        &self.connection
    }

    /// The worker's door.
    pub fn node(&self) -> &Rc<Node> {
        &self.node
    }

    /// Does what one text frame asks. The answers are in the connection's outbox.
    /// Called for each message in the order they came. While a subscription waits for other nodes the text is kept,
    /// and handled behind it.
    pub fn on_text(&mut self, text: &str) {
        // A waiting message has not been counted; it is when it is handled.
        if self.waiting().is_some() && matches!(ClientCommand::parse(text), Ok(ClientCommand::Pong))
        {
            // The acknowledged events were sent before, so the pong may pass the waiting messages.
            return self.node.note_acknowledged(&self.connection);
        }
        if let Some(waiting) = self.waiting() {
            waiting.bytes += text.len() + PLACE_BYTES;
            waiting.texts.push_back(text.into());
            return;
        }
        self.connection.traffic().received.add(1);
        // A message that asks for nothing still costs the time to read it.
        self.connection.budget.spend(WorkKind::Frame);
        if self.is_over_rate() {
            return;
        }
        let command = ClientCommand::parse(text);
        if self.connection.is_frozen() {
            // A frozen connection handles nothing else: the client repeats it after it reconnects.
            if let Ok(ClientCommand::Unsubscribe(channel)) = &command {
                self.node.pass_leave_on(&self.connection, channel);
            }
            return;
        }
        if let (true, Ok(command)) = (shown::is_wanted(), &command) {
            self.show(command);
        }
        match command {
            // Answered even where the server itself pings: it is how clients find out that a connection is dead.
            Ok(ClientCommand::Ping) => {
                self.connection.budget.spend(WorkKind::Ping);
                self.connection.enqueue_message(Message::pong());
            }
            // The client has what was sent before the ping.
            Ok(ClientCommand::Pong) => self.node.note_acknowledged(&self.connection),
            Ok(ClientCommand::Subscribe(request)) => self.subscribe(request),
            Ok(ClientCommand::Unsubscribe(channel)) => {
                self.node.unsubscribe(&self.connection, &channel);
                self.emit_fact(Kind::Unsubscribed, |fact| fact.channel(&*channel));
            }
            Ok(ClientCommand::SignIn(request)) => {
                self.connection.budget.spend(WorkKind::SignIn);
                self.sign_in(request);
            }
            Ok(ClientCommand::ClientEvent(event)) => self.whisper(&event),
            Err(MalformedCommand::Subscribe { channel, field }) => {
                // Told by the channel too, for the callbacks of Echo listen to nothing else.
                self.refuse_subscription(&channel, &SubscriptionError::Mistyped(field), None);
                self.connection.enqueue_message(Message::error(&error::INVALID_MESSAGE, None));
            }
            Err(MalformedCommand::Message) => self.refuse(&error::INVALID_MESSAGE, None),
            Err(MalformedCommand::ClientEvent) => self.refuse(&error::INVALID_CLIENT_EVENT, None),
        }
    }

    /// Whether a message exceeds the rate, and is refused or ends the connection. Checked before the message is
    /// parsed, so that a flood costs little.
    fn is_over_rate(&mut self) -> bool {
        let (rate, close) = {
            let limits = &self.connection.app().limits;
            ((limits.messages_per_second, limits.messages_seconds), limits.messages_close)
        };
        let now = self.node.worker.now_seconds();
        if rate.0 == 0 || self.extras().messages.take(now, rate) {
            return false;
        }
        self.node.counts().limited.count(Limited::Messages as usize);
        self.refuse(&error::RATE_LIMIT, None);
        if close {
            let reason = Message::close(POLICY, &error::RATE_LIMIT.message);
            self.connection.end_with(reason, Reason::OverRate);
        }
        true
    }

    /// Only where `--debug` is on.
    #[cold]
    fn show(&self, command: &ClientCommand<'_>) {
        let (event, channel) = command.event_and_channel();
        let (app, socket) = (&self.connection.app().id, self.connection.id);
        debug!(%app, %socket, ?event, ?channel, "received");
    }

    /// Whether so many messages wait that reading must stop. TCP then makes the client wait (backpressure).
    pub fn is_ahead(&self) -> bool {
        let waiting = self.extras.as_ref().and_then(|extras| extras.waiting.as_ref());
        waiting.is_some_and(|waiting| waiting.bytes > MAX_AHEAD_BYTES)
    }

    /// For how long no more is to be read, because the connection has had more done for it than its share; nothing
    /// where it may go on. One that never stops is closed.
    /// In steps of 10 ms, the unit of the hub's clock.
    pub fn hold_up(&self) -> Option<Duration> {
        let (budget, node) = (&self.connection.budget, &self.node);
        if budget.spent() == 0 {
            return None;
        }
        let wait = budget.wait(node.hub().centis_since_start(Instant::now()));
        if wait == 0 {
            return None;
        }
        // Held up over and over, and still sending: it would never get through.
        if budget.is_hopeless() {
            self.connection.close_with(&close::FLOODING);
        }
        Some(Duration::from_millis(10) * wait)
    }

    /// Says that it is held up.
    /// Once for each stretch, not for each message.
    pub fn report_throttled(&self, wait: Duration) {
        let node = &self.node;
        node.counts().limited.count(Limited::Pace as usize);
        self.connection.traffic().held_up.add(1);
        let (app, socket) = (&self.connection.app().id, self.connection.id);
        let address = self.connection.address;
        self.emit_fact(Kind::HeldUp, |fact| {
            fact.address(address).why("it asks for more than its share, and is read later")
        });
        match node.shared.metrics.notices.take_due(LogNotice::HeldUp) {
            Some(others) => {
                warn!(%app, %socket, %address, others, "held up: it asks for more than its share");
            }
            None => debug!(%app, %socket, %address, ?wait, "held up"),
        }
    }

    /// Goes on where a subscription waited, if it need not any longer, and leaves what was closed to the
    /// connection meanwhile; whether there was anything to do.
    pub fn resume(&mut self) -> bool {
        let mut resumed = self.leave_withdrawn();
        // Several may have been waited for, one behind the other.
        while let Some(admitted) = self.connection.take_resumed() {
            let Some(HeldCommands { first, texts, bytes }) = self.take_waiting() else { break };
            resumed = true;
            match first {
                HeldCommand::Nodes(pending, channel) => {
                    match self.node.resume_pending(&self.connection, pending, admitted) {
                        Ok(()) => self.log_subscription(&channel),
                        Err(error) => self.refuse_subscription(&channel, &error, None),
                    }
                }
                HeldCommand::Clock(request) => self.subscribe(request),
                HeldCommand::SignIn(request) => self.sign_in(request),
            }
            self.on_held_texts(texts, bytes);
        }
        resumed
    }

    /// Leaves the channels that a backend has withdrawn, and tells the client of each. The rights themselves ended
    /// when the backend asked.
    fn leave_withdrawn(&self) -> bool {
        let withdrawals = self.connection.take_withdrawals();
        for name in withdrawals.iter().flat_map(Withdrawal::channels) {
            if self.node.leave_channel(&self.connection, name) {
                self.refuse_subscription(name.as_str(), &SubscriptionError::Withdrawn, None);
                self.emit_fact(Kind::Withdrawn, |fact| fact.channel(name.as_str()));
            }
        }
        !withdrawals.is_empty()
    }

    fn sign_in(&mut self, request: SignIn) {
        if self.node.waits_for_link(&self.connection) {
            return self.wait_for(HeldCommand::SignIn(request));
        }
        if let Err(error) = self.node.sign_in(&self.connection, &request) {
            self.refuse(&error, None);
        }
    }

    /// Three ways: at once, after other nodes have answered, or in the next second.
    fn subscribe(&mut self, request: Subscribe) {
        // Joins and leaves are announced to all members; a client that repeats them without end has to wait.
        if self.node.holds_up(&self.connection, &request.channel) {
            return self.wait_for(HeldCommand::Clock(request));
        }
        self.connection.budget.spend(WorkKind::Subscribe);
        match self.node.subscribe(&self.connection, &request) {
            Ok(None) => self.log_subscription(&request.channel),
            Ok(Some(pending)) => {
                self.wait_for(HeldCommand::Nodes(pending, request.channel.into()));
            }
            Err(error) => {
                let data = request.channel_data.as_deref();
                self.refuse_subscription(&request.channel, &error, data);
            }
        }
    }

    /// Everything said from now on waits behind it.
    fn wait_for(&mut self, first: HeldCommand) {
        self.extras().waiting = Some(HeldCommands { first, texts: VecDeque::new(), bytes: 0 });
    }

    /// Reports a fact. Without a reader this costs one load of a flag, and `make` is not called.
    fn emit_fact<'a>(&self, kind: Kind, make: impl FnOnce(ConsoleFact<'a>) -> ConsoleFact<'a>) {
        self.node.emit_fact(kind, &self.connection, make);
    }

    /// Logs a subscription, on a presence channel with its user.
    fn log_subscription(&self, channel: &str) {
        self.emit_fact(Kind::Subscribed, |fact| {
            let present_as = self.node.worker.subscribed_as(&self.connection, channel).flatten();
            let fact = fact.channel(channel.to_owned());
            match present_as {
                Some(user) => fact.user(user.as_str().to_owned()),
                None => fact,
            }
        });
    }

    /// A subscription is refused by an event of the channel (`pusher:subscription_error`), with which client
    /// libraries call back; every refusal is counted and charged.
    fn refuse_subscription(&self, channel: &str, error: &SubscriptionError, data: Option<&str>) {
        let (code, text) =
            (error.error_code().unwrap_or_else(|| error.status()), error.error_text(channel));
        self.count_refusal(code, &text);
        self.emit_fact(Kind::Refused, |fact| {
            // The text that should have been signed, but never the secret.
            let signed = match (error, data) {
                (SubscriptionError::Auth(_), None) => format!("{}:{channel}", self.connection.id),
                (SubscriptionError::Auth(_), Some(data)) => {
                    format!("{}:{channel}:{data}", self.connection.id)
                }
                _ => String::new(),
            };
            let fact = fact.event("pusher:subscribe").channel(channel.to_owned()).code(code);
            fact.why(text).more("signed", signed)
        });
        for message in Message::subscription_error(channel, error) {
            self.connection.enqueue_message(message);
        }
    }

    /// Refuses a subscription that the app's backend has refused, or was not there to decide; `packet` says so.
    #[cfg(feature = "socketio")]
    pub fn refuse_for_backend(&self, channel: &str, status: u16, why: &str, packet: &str) {
        self.count_refusal(status, why);
        self.emit_fact(Kind::Refused, |fact| {
            let fact = fact.event("subscribe").channel(channel.to_owned()).code(status);
            fact.why(why.to_owned())
        });
        self.connection.enqueue_message(crate::protocol::socketio::packet_message(packet));
    }

    /// Refuses what is no command of the Pusher protocol.
    #[cfg(feature = "socketio")]
    pub fn refuse_packet(&self, error: &Error) {
        self.refuse(error, None);
    }

    /// A client event that is one too many is refused by an error, without the connection's end.
    fn whisper(&mut self, event: &ClientEvent<'_>) {
        let rate = {
            let limits = &self.connection.app().limits;
            (limits.client_events_per_second, limits.client_events_seconds)
        };
        let now = self.node.worker.now_seconds();
        let told = if rate.0 == 0 || self.extras().whispers.take(now, rate) {
            self.node.whisper(&self.connection, event)
        } else {
            self.node.counts().limited.count(Limited::ClientEvents as usize);
            Err(error::RATE_LIMIT)
        };
        if let Err(error) = told {
            self.refuse(&error, Some(&event.channel));
        }
    }

    /// `pusher:error`, with the channel where there is one.
    fn refuse(&self, error: &Error, channel: Option<&str>) {
        self.count_refusal(error.code, &error.message);
        self.emit_fact(Kind::Refused, |fact| {
            // Refusals of the connection itself name no channel.
            let channel = channel.unwrap_or_default().to_owned();
            fact.channel(channel).code(error.code).why(error.message.to_string())
        });
        self.connection.enqueue_message(Message::error(error, channel));
    }

    /// Told apart for the budget: being over a rate is dearer than being wrong.
    fn count_refusal(&self, code: u16, text: &str) {
        self.node.counts().refused_messages.add(1);
        let is_over_rate = code == error::RATE_LIMIT.code && text == error::RATE_LIMIT.message;
        self.connection.budget.spend(if is_over_rate {
            WorkKind::OverRate
        } else {
            WorkKind::Refused
        });
        let (app, socket) = (&self.connection.app().id, self.connection.id);
        // Of all that clients get wrong, what backends sign for them is what can be mended here.
        let others = (code == SIGNATURE)
            .then(|| self.node.shared.metrics.notices.take_due(LogNotice::Signature))
            .flatten();
        match others {
            Some(others) => warn!(%app, %socket, code, others, why = ?text, "refused"),
            None => debug!(%app, %socket, code, why = ?text, "refused"),
        }
    }

    /// Whether the connection has left everything.
    pub fn has_left(&self) -> bool {
        self.connection.life.has_left.get()
    }

    /// Ends what it had part in, `most` of its subscriptions at once.
    /// A crowd's leave is spread over turns: each channel that it was on may have many to tell.
    pub fn leave(&mut self, most: usize) {
        if self.has_left() {
            return;
        }
        // Nobody waits for it now, and its hold on the topic must go.
        if let Some(HeldCommand::Nodes(pending, _)) = self.take_waiting().map(|one| one.first) {
            self.node.cancel_pending(&pending);
        }
        self.connection.life.has_left.set(self.node.leave_some(&self.connection, most));
    }
}

impl Drop for Session {
    /// Leaves everything at once, since the task that would do it in parts has ended.
    fn drop(&mut self) {
        self.leave(usize::MAX);
        // Not when it left: a stream that lingers is looked after to its end.
        self.node.worker.remove_connection(&self.connection);
    }
}
