//! Commands that go to Redis in one round trip, each with a tag that tells what its reply is for.

use std::collections::BTreeSet;

use redis::Value;
use tokio::time::{Instant, timeout};

use super::connections::RedisConnections;
use super::server::LeasedCommand;
use super::{LinkError, PATIENCE};
use crate::cluster::link::{LinkMetrics, LinkStatus};
use crate::cluster::scripts::Script;

/// Commands, each with what its answer is for.
#[derive(Debug)]
pub(super) struct CommandBatch<E> {
    commands: Vec<LeasedCommand>,
    /// A tag for each command's reply, in the same order.
    expected: Vec<E>,
}

impl<E> CommandBatch<E> {
    /// An empty batch.
    pub(super) fn new() -> Self {
        Self { commands: Vec::new(), expected: Vec::new() }
    }

    /// Whether nothing is to be sent.
    pub(super) fn is_empty(&self) -> bool {
        self.expected.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.expected.len()
    }

    /// Adds a command, and the tag that its reply is returned with.
    pub(super) fn add_command(&mut self, command: impl Into<LeasedCommand>, expected: E) {
        self.commands.push(command.into());
        self.expected.push(expected);
    }

    /// Sends all commands; returns the replies in their order. Commands for parts of a Redis Cluster that are away
    /// are left out, and have no reply.
    /// # Errors
    /// Any reply that is an error: then nothing counts as done.
    pub(super) async fn send_all(
        mut self,
        servers: &mut RedisConnections,
        status: &LinkStatus,
    ) -> Result<Vec<(E, Value)>, LinkError> {
        let slots = self.leave_out_away(servers);
        let count = self.expected.len();
        if count == 0 {
            return Ok(Vec::new());
        }
        LinkMetrics::add_count(&status.figures.commands, count as u64);
        LinkMetrics::add_count(&status.figures.round_trips, 1);
        let begun = Instant::now();
        let answers = timeout(PATIENCE, servers.send_commands(self.commands)).await??;
        status.figures.round_trip.observe(begun.elapsed());
        let refused = answers.iter().enumerate().find_map(|(index, answer)| match answer {
            Value::ServerError(error) => Some((index, LinkError::of_server(error))),
            _ => None,
        });
        if let Some((index, lost)) = refused {
            return Err(servers.blame(slots.get(index).copied().flatten(), lost));
        }
        if answers.len() != count {
            return Err(LinkError::Unexpected);
        }
        Ok(self.expected.into_iter().zip(answers).collect())
    }

    /// The slots of the commands that are sent to a Redis Cluster.
    fn leave_out_away(&mut self, servers: &RedisConnections) -> Vec<Option<u16>> {
        if !servers.is_cluster() {
            return Vec::new();
        }
        let slots: Vec<_> = self.commands.iter().map(LeasedCommand::slot).collect();
        if !servers.is_partial() {
            return slots;
        }
        let all = std::mem::take(&mut self.commands).into_iter();
        let all = all.zip(std::mem::take(&mut self.expected)).zip(&slots);
        for ((command, expected), _) in all.filter(|(_, slot)| !servers.is_dark(**slot)) {
            self.add_command(command, expected);
        }
        slots.into_iter().filter(|slot| !servers.is_dark(*slot)).collect()
    }
}

/// Joins and leaves must arrive in order. If some commands are sent again, so are later ones of the same slot,
/// although they were answered. Repeating them changes nothing but the order.
pub(super) fn joins_behind(commands: &[LeasedCommand], again: BTreeSet<usize>) -> Vec<usize> {
    let (mut slots, mut behind) = (BTreeSet::new(), Vec::new());
    if again.is_empty() {
        return behind;
    }
    for (index, command) in commands.iter().enumerate() {
        if !matches!(command.script, Some(Script::Join | Script::Leave)) {
            continue;
        }
        if again.contains(&index) {
            slots.insert(command.slot());
        } else if slots.contains(&command.slot()) {
            behind.push(index);
        }
    }
    behind
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_back_while_a_slot_moves_comes_behind_having_left() {
        let call = |script: Script, key: &str| LeasedCommand::from(script.call(&[key]));
        let commands = [
            call(Script::Join, "{x}"),
            call(Script::Leave, "{x}"),
            call(Script::Join, "{y}"),
            call(Script::Publish, "{x}"),
            call(Script::Join, "{x}"),
            call(Script::Count, "{x}"),
            call(Script::Leave, "{x}"),
        ];
        assert_eq!(joins_behind(&commands, BTreeSet::from([1])), [4, 6]);
        assert_eq!(joins_behind(&commands, BTreeSet::from([1, 4])), [6]);
        assert!(joins_behind(&commands, BTreeSet::from([2, 3, 5])).is_empty());
        assert!(joins_behind(&commands, BTreeSet::new()).is_empty());
    }
}
