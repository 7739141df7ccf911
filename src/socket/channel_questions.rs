//! Authorization of a session's channels by the app's backend, since Socket.IO clients bring no signature. An
//! allowed channel is signed here, and from then on handled like any other.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use tracing::{debug, warn};

use crate::metrics::LogNotice;
use crate::protocol::socketio::{channel_data, subscribe_command, subscription_error_packet};
use crate::session::Session;
use crate::webhook::channel_auth::{ChannelQuestion, ChannelVerdict, ClientHeaders, ask_backend};

/// Questions of one session that are asked at a time.
/// A page subscribes to a handful at once; a backend should not feel a client that asks for
/// hundreds.
const MAX_ASKED: usize = 8;

/// Those that may wait before nothing more is read of its client.
const MAX_WAITING: usize = 64;

/// The status that laravel-echo-server sent if a backend could not be reached.
const UNANSWERED: u16 = 0;

/// A request to the backend on its way; dropped, it is broken off.
type Verdict = Pin<Box<dyn Future<Output = ChannelVerdict>>>;

/// The questions of one session.
/// Answers come in any order; each is carried out when it comes.
pub(super) struct ChannelQuestions {
    /// Headers of the client that the backend gets.
    headers: ClientHeaders,
    /// Requests to the backend whose answers are awaited, in order.
    asked: Vec<(String, Verdict)>,
    /// Requests that wait for their turn.
    waiting: VecDeque<(String, ChannelQuestion)>,
}

impl fmt::Debug for ChannelQuestions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (asked, waiting) = (self.asked.len(), self.waiting.len());
        write!(f, "ChannelQuestions({asked} asked, {waiting} waiting)")
    }
}

impl ChannelQuestions {
    /// `headers` are those of the session's first request, among them the cookies that may be
    /// passed on.
    pub(super) fn new(headers: ClientHeaders) -> Self {
        Self { headers, asked: Vec::new(), waiting: VecDeque::new() }
    }

    /// Whether so many requests wait that no more messages are read.
    pub(super) fn is_full(&self) -> bool {
        self.waiting.len() >= MAX_WAITING
    }

    /// Asks about one more, in the place of an older question about the same channel.
    pub(super) fn ask(&mut self, session: &Session, channel: String, given: Vec<(String, String)>) {
        // A client that asks again has changed its mind, or its headers.
        self.cancel(&channel);
        let connection = session.connection();
        let app = connection.app().clone();
        let settings = &app.features.socketio;
        if settings.auth_url.is_empty() {
            let why = "socketio.auth_url is not set, so nobody may subscribe to private channels";
            session.refuse_for_backend(
                &channel,
                403,
                why,
                &subscription_error_packet(&channel, 403),
            );
            return log_auth_failure(session, why);
        }
        let question = ChannelQuestion {
            url: settings.auth_url.clone(),
            timeout: settings.auth_timeout,
            channel: channel.clone(),
            socket: connection.id.to_string(),
            headers: self.headers.with_given(given),
        };
        self.waiting.push_back((channel, question));
    }

    /// Forgets about a channel that the client has left again.
    pub(super) fn cancel(&mut self, channel: &str) {
        self.asked.retain(|(other, _)| other != channel);
        self.waiting.retain(|(other, _)| other != channel);
    }

    /// Asks those whose turn it is, and takes in what has been answered; whether anything was.
    pub(super) fn poll_answers(&mut self, session: &mut Session, cx: &mut Context<'_>) -> bool {
        let mut has_answers = false;
        loop {
            while self.asked.len() < MAX_ASKED
                && let Some((channel, question)) = self.waiting.pop_front()
            {
                self.asked.push((channel, Box::pin(ask_backend(question))));
            }
            let mut answered = Vec::new();
            let mut at = 0;
            while let Some((_, verdict)) = self.asked.get_mut(at) {
                match verdict.as_mut().poll(cx) {
                    Poll::Pending => at += 1,
                    Poll::Ready(verdict) => answered.push((self.asked.remove(at).0, verdict)),
                }
            }
            if answered.is_empty() {
                return has_answers;
            }
            has_answers = true;
            for (channel, verdict) in answered {
                conclude(session, &channel, verdict);
            }
            session.connection().flush();
        }
    }
}

/// Subscribes, or tells the client the reason.
fn conclude(session: &mut Session, channel: &str, verdict: ChannelVerdict) {
    let connection = session.connection().clone();
    if connection.is_closing() {
        return;
    }
    match verdict {
        ChannelVerdict::Allowed(answer) => {
            // The backend's `channel_data` only matters on presence channels.
            let data = Some(()).filter(|()| channel.starts_with("presence-"));
            let data = data.and_then(|()| channel_data(&answer));
            let (app, socket) = (connection.app().clone(), connection.id.to_string());
            let mut parts = vec![&*socket, ":", channel];
            parts.extend(data.iter().flat_map(|data| [":", &**data]));
            let auth = format!("{}:{}", app.key, app.signer.sign(&parts));
            session.on_text(&subscribe_command(channel, Some((&auth, data.as_deref()))));
        }
        ChannelVerdict::Refused(status) => {
            let why = format!("the app's backend answered {status}");
            let packet = subscription_error_packet(channel, status);
            session.refuse_for_backend(channel, status, &why, &packet);
            // 401 and 403 are ordinary refusals, and no fault to log.
            if !matches!(status, 401 | 403) {
                log_auth_failure(session, &why);
            }
        }
        ChannelVerdict::Unanswered(why) => {
            let packet = subscription_error_packet(channel, UNANSWERED);
            session.refuse_for_backend(channel, UNANSWERED, &why, &packet);
            log_auth_failure(session, &why);
        }
    }
}

/// The line of a backend that did not do its part.
fn log_auth_failure(session: &Session, why: &str) {
    let app = session.connection().app().id.clone();
    match session.node().shared.metrics.notices.take_due(LogNotice::ChannelAuth) {
        Some(others) => {
            warn!(%app, others, why, "socketio: a backend did not say who may subscribe");
        }
        None => debug!(%app, why, "socketio: a backend did not say who may subscribe"),
    }
}
