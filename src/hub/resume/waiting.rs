//! Disconnected clients that may resume: for how long, and how much memory they may take together. Their state is in
//! `clients.rs`.

use std::collections::VecDeque;

use super::client::ResumableClient;
use super::clients::ResumableClients;
use super::held::channel_bytes;
use super::log::ChannelLogs;
use crate::protocol::channel::ChannelName;
use crate::protocol::resume_token::ResumeToken;
use crate::protocol::socket_id::SocketId;

/// Bytes from which a waiting client is among those that hold much: some sixty channels of the longest names. They
/// have a share of their own, so that a few connections that come and go with ever new tokens and as many channels
/// as they can have do not push out everybody else.
const LARGE_BYTES: usize = 16 << 10;

/// Where fewer bytes than that are allowed, that is about events: those who missed them are to be told so.
const MIN_BYTES: usize = 1 << 20;

/// Those without a connection.
#[derive(Debug, Default)]
pub(super) struct WaitingClients {
    small: WaitingLine,
    large: WaitingLine,
    clients: usize,
    /// The second up to which what is known may be incomplete, since one was forgotten before its time, or none were
    /// waited for: nobody knows what a client held that was here before and is not known. 0: it never was.
    incomplete: u32,
}

/// Some of them.
#[derive(Debug, Default)]
struct WaitingLine {
    /// In the order in which they went. Entries of those that came back are passed over.
    order: VecDeque<(ResumeToken, SocketId)>,
    /// Their bytes.
    bytes: usize,
}

/// How clients went.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct ForgottenClients {
    /// Their time was over.
    pub(super) expired: u64,
    /// There were too many.
    pub(super) crowded: u64,
}

impl WaitingClients {
    fn line(&mut self, is_large: bool) -> &mut WaitingLine {
        if is_large { &mut self.large } else { &mut self.small }
    }

    /// One more waits, whose last connection was `socket`.
    pub(super) fn add_client(&mut self, socket: SocketId, client: &mut ResumableClient) {
        let bytes = client.bytes();
        let is_large = bytes > LARGE_BYTES;
        client.set_large(is_large);
        self.clients += 1;
        let line = self.line(is_large);
        line.bytes += bytes;
        line.order.push_back((client.token.clone(), socket));
    }

    /// One that waited does so no more.
    pub(super) fn remove_client(&mut self, client: &ResumableClient) {
        self.clients -= 1;
        self.line(client.is_large()).bytes -= client.bytes();
    }

    /// A client, which may be among them, holds a channel no more.
    pub(super) fn note_given_up(&mut self, client: &ResumableClient, channel: &ChannelName) {
        if client.current.is_none() {
            self.line(client.is_large()).bytes -= channel_bytes(channel);
        }
    }

    /// Nobody waits.
    pub(super) fn clear(&mut self) {
        *self = Self { incomplete: self.incomplete, ..Self::default() };
    }

    /// Notes that until second `now` some that went may have been forgotten who are expected back.
    pub(super) fn note_incomplete(&mut self, now: u32) {
        self.incomplete = now.max(1);
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.clients
    }

    /// All entries, of both lines.
    pub(super) fn take_order(&mut self) -> impl Iterator<Item = (ResumeToken, SocketId)> {
        let [small, large] =
            [&mut self.small, &mut self.large].map(|line| std::mem::take(&mut line.order));
        small.into_iter().chain(large)
    }
}

impl ResumableClients {
    /// Forgets, at second `now`, those that went more than `window` seconds ago, and the first of those that are too
    /// many: half of `max` bytes is for most, and a quarter for those that hold much.
    pub(super) fn expire_clients(
        &mut self,
        (now, window): (u32, u32),
        max: usize,
        logs: &mut ChannelLogs,
    ) -> ForgottenClients {
        let mut forgotten = ForgottenClients::default();
        let max = max.max(MIN_BYTES);
        for (is_large, max) in [(false, max / 2), (true, max / 4)] {
            while let Some((token, socket)) = self.waiting.line(is_large).order.front().cloned() {
                let is_crowded = self.waiting.line(is_large).bytes > max;
                let waits = self.by_token.get(&token).filter(|client| client.waits_since(socket));
                let is_over = waits.map(|client| now.saturating_sub(client.ended()) > window);
                if is_over == Some(false) && !is_crowded {
                    break;
                }
                self.waiting.line(is_large).order.pop_front();
                match is_over {
                    Some(true) => forgotten.expired += 1,
                    Some(false) => forgotten.crowded += 1,
                    // It has come back since, and waits again further back if it went again.
                    None => continue,
                }
                self.forget_client(&token, logs);
            }
            let order = &mut self.waiting.line(is_large).order;
            if order.capacity() > 1024 && order.len() < order.capacity() / 4 {
                order.shrink_to_fit();
            }
        }
        if forgotten.crowded > 0 {
            self.waiting.note_incomplete(now);
        }
        forgotten
    }

    /// For how many seconds what is known has been complete, if that began after this process did.
    pub(super) fn complete_for(&self, now: u32) -> Option<u32> {
        (self.waiting.incomplete > 0).then(|| now.saturating_sub(self.waiting.incomplete))
    }

    /// Earlier connections are remembered as long as an event that was not for them.
    pub(super) fn expire_sockets(&mut self, now: u32, window: u32) {
        for client in self.by_token.iter_mut() {
            client.expire_sockets(now, window);
        }
    }
}
