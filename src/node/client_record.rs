//! Encoding of a client's state for other nodes: JSON, since it is small and rare, and newer versions may add fields.
//! Times and places are those of Redis.

use serde_json::{Value, json};

use crate::cluster::redis_clock::RedisClock;
use crate::hub::resume::ClientState;
use crate::protocol::channel::ChannelName;
use crate::protocol::member::UserId;
use crate::protocol::socket_id::SocketId;

/// A record that was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ClientRecord {
    pub(super) state: ClientState,
    /// When it was written, by this node's clock of Redis.
    pub(super) at: u64,
    /// Its connection had ended.
    pub(super) ended: bool,
}

/// Seconds of this node's clock, which says `seconds`, and the time of Redis.
#[derive(Clone, Copy)]
pub(super) struct Times<'a> {
    /// Redis's time, in which records are written.
    pub(super) clock: &'a RedisClock,
    /// The seconds of this node's own clock.
    pub(super) seconds: u32,
}

/// In microseconds, in which Redis gives its time.
const SECOND: u64 = 1_000_000;

impl Times<'_> {
    /// How a second of this node is written.
    fn said(self, second: u32) -> u64 {
        let ago = u64::from(self.seconds.saturating_sub(second)) * SECOND;
        self.clock.to_redis(self.clock.now().saturating_sub(ago))
    }

    /// The second of this node in which it was then.
    fn second(self, said: u64) -> u32 {
        let ago = self.clock.now().saturating_sub(self.clock.to_local(said)) / SECOND;
        self.seconds.saturating_sub(u32::try_from(ago).unwrap_or(u32::MAX))
    }
}

/// Writes what a client holds. A socket's third number is when it ended, `null` for one that is
/// open.
pub(super) fn write(state: &ClientState, ended: bool, times: Times<'_>) -> Vec<u8> {
    let Times { clock, seconds } = times;
    let sockets = state.sockets.iter().map(|(socket, second)| {
        // The highest number stands for a socket that is open.
        let at = (*second != u32::MAX).then(|| times.said(*second));
        json!([socket.node, socket.number, at])
    });
    let channels =
        state.channels.iter().map(|(name, acked)| json!([name.as_str(), clock.to_redis(*acked)]));
    let users = state.users.iter().map(UserId::as_str);
    json!({
        "at": times.said(seconds),
        "ended": ended,
        "answers": state.answers,
        "forgotten": (state.forgotten > 0).then(|| times.said(state.forgotten)),
        "sockets": sockets.collect::<Vec<_>>(),
        "users": users.collect::<Vec<_>>(),
        "channels": channels.collect::<Vec<_>>(),
    })
    .to_string()
    .into_bytes()
}

/// Reads a record; `None` for one that is not understood as a whole, whose client is then treated
/// as unknown. Fields that are not known are passed over.
pub(super) fn read(bytes: &[u8], times: Times<'_>) -> Option<ClientRecord> {
    let record: Value = serde_json::from_slice(bytes).ok()?;
    let list = |name: &str| record.get(name)?.as_array();
    let socket = |one: &Value| {
        let (node, number) = (one.get(0)?.as_u64()?, one.get(1)?.as_u64()?);
        let ended = one.get(2)?.as_u64().map_or(u32::MAX, |said| times.second(said));
        Some((SocketId { node, number }, ended))
    };
    let channel = |one: &Value| {
        let name = ChannelName::parse(one.get(0)?.as_str()?, usize::MAX).ok()?;
        Some((name, times.clock.to_local(one.get(1)?.as_u64()?)))
    };
    let state = ClientState {
        channels: list("channels")?.iter().map(channel).collect::<Option<_>>()?,
        sockets: list("sockets")?.iter().map(socket).collect::<Option<_>>()?,
        users: list("users")?
            .iter()
            .map(|user| UserId::parse(user.as_str()?))
            .collect::<Option<_>>()?,
        answers: record.get("answers")?.as_bool()?,
        // A version before this one does not say it.
        forgotten: record
            .get("forgotten")
            .and_then(Value::as_u64)
            .map_or(0, |said| times.second(said).max(1)),
    };
    let at = times.clock.to_local(record.get("at")?.as_u64()?);
    Some(ClientRecord { state, at, ended: record.get("ended")?.as_bool()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_node_reads_what_one_has_written() {
        let clock = RedisClock::default();
        let here = Times { clock: &clock, seconds: 1000 };
        let name = |name| ChannelName::parse(name, 200).unwrap();
        let acked = clock.now();
        let state = ClientState {
            channels: vec![(name("private-a"), acked), (name("#server-to-user-ü"), 7)],
            sockets: [
                (SocketId { node: 1, number: 2 }, 990),
                (SocketId { node: 1, number: 3 }, u32::MAX),
            ]
            .into_iter()
            .collect(),
            users: UserId::parse("ü").into_iter().collect(),
            answers: true,
            forgotten: 980,
        };
        let bytes = write(&state, true, here);
        let there = Times { clock: &clock, seconds: 50 };
        let read_there = read(&bytes, there).unwrap();
        assert!(read_there.ended && read_there.at >= acked);
        let sockets = read_there.state.sockets.clone();
        assert!((39..=41).contains(&sockets[0].1) && sockets[1].1 == u32::MAX, "{sockets:?}");
        assert!((29..=31).contains(&read_there.state.forgotten));
        let (sockets, forgotten) = (state.sockets.clone(), state.forgotten);
        assert_eq!(ClientState { sockets, forgotten, ..read_there.state }, state);
        for end in 0..bytes.len() {
            assert_eq!(read(&bytes[..end], there), None);
        }
    }
}
