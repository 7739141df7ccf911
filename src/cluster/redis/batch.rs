//! Commands that go to Redis in one round trip, and what their answers are for.

use redis::{Cmd, Value};
use tokio::time::{Instant, timeout};
use tracing::warn;

use super::servers::Servers;
use super::{Lost, PATIENCE, reply};
use crate::cluster::link::{Figures, Status};
use crate::cluster::scripts::Script;

/// Commands, each with what its answer is for.
#[derive(Debug)]
pub(super) struct Batch<E> {
    commands: Vec<Cmd>,
    expected: Vec<E>,
}

impl<E> Batch<E> {
    pub(super) fn new() -> Self {
        Self { commands: Vec::new(), expected: Vec::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.expected.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.expected.len()
    }

    pub(super) fn add(&mut self, command: Cmd, expected: E) {
        self.commands.push(command);
        self.expected.push(expected);
    }

    /// Sends all of it; the answers in the order of the commands. An answer that is an error of that one
    /// command reads as nothing.
    pub(super) async fn send(
        self,
        servers: &mut Servers,
        status: &Status,
    ) -> Result<Vec<(E, Value)>, Lost> {
        let count = self.expected.len();
        if count == 0 {
            return Ok(Vec::new());
        }
        Figures::add(&status.figures.commands, count as u64);
        Figures::add(&status.figures.round_trips, 1);
        let begun = Instant::now();
        let answers = timeout(PATIENCE, servers.send(self.commands)).await??;
        status.figures.round_trip.observe(begun.elapsed());
        if let Some(Value::ServerError(error)) = answers.iter().find(|value| reply::is_fatal(value))
        {
            return Err(Lost::Redis(error.clone().into()));
        }
        for answer in &answers {
            if let Value::ServerError(error) = answer {
                warn!(code = error.code(), "Redis refused a command");
            }
        }
        Ok(self.expected.into_iter().zip(answers).collect())
    }
}

/// A script to be run, by the name that Redis knows it by.
pub(super) fn script(script: Script, keys: &[String]) -> Cmd {
    let mut command = redis::cmd("EVALSHA");
    command.arg(script.name()).arg(keys.len()).arg(keys);
    command
}
