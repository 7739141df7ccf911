//! Commands that go to Redis in one round trip, and what their answers are for.

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
    expected: Vec<E>,
}

impl<E> CommandBatch<E> {
    pub(super) fn new() -> Self {
        Self { commands: Vec::new(), expected: Vec::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.expected.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.expected.len()
    }

    pub(super) fn add_command(&mut self, command: impl Into<LeasedCommand>, expected: E) {
        self.commands.push(command.into());
        self.expected.push(expected);
    }

    /// Sends all of it; the answers in the order of the commands. Where one of them is an error, whatever it says,
    /// Redis cannot be worked with, and nothing counts as done.
    pub(super) async fn send_all(
        self,
        servers: &mut RedisConnections,
        status: &LinkStatus,
    ) -> Result<Vec<(E, Value)>, LinkError> {
        let count = self.expected.len();
        if count == 0 {
            return Ok(Vec::new());
        }
        LinkMetrics::add_count(&status.figures.commands, count as u64);
        LinkMetrics::add_count(&status.figures.round_trips, 1);
        let begun = Instant::now();
        let answers = timeout(PATIENCE, servers.send_commands(self.commands)).await??;
        status.figures.round_trip.observe(begun.elapsed());
        let error = answers.iter().find_map(|answer| match answer {
            Value::ServerError(error) => Some(error),
            _ => None,
        });
        if let Some(error) = error {
            return Err(LinkError::of_server(error));
        }
        if answers.len() != count {
            return Err(LinkError::Unexpected);
        }
        Ok(self.expected.into_iter().zip(answers).collect())
    }
}

/// A script to be run, by the name that Redis knows it by.
pub(super) fn script_call(script: Script, keys: &[String]) -> LeasedCommand {
    let mut command = redis::cmd("EVALSHA");
    command.arg(script.sha1_name()).arg(keys.len()).arg(keys);
    LeasedCommand { command, fenced: script.is_fenced(), holds: script.says_holds() }
}
