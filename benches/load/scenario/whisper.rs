//! Client events: everybody in a room whispers in turn, and everybody else there is to hear it. No backend
//! takes part.

use std::io;

use clap::Args;
use memchr::memmem;

use crate::crowd::{Crowd, Heard};
use crate::meter::{Latency, Pace, due, payload, wait};
use crate::report::Report;
use crate::target::Target;

/// Seconds without a delivery after which the rest is missing.
const PATIENCE: u64 = 3_000_000_000;

#[derive(Args, Clone, Debug)]
pub(crate) struct Whisper {
    /// Clients in all
    #[arg(long, default_value_t = 1000)]
    conns: usize,
    /// Clients a room
    #[arg(long, default_value_t = 20)]
    room: usize,
    /// Whispers a second over all rooms; 0: as fast as the window lets
    #[arg(long, default_value_t = 0.0)]
    rate: f64,
    /// Without a rate: whispers that may be under way
    #[arg(long, default_value_t = 256)]
    window: usize,
    /// Bytes of a whisper's data
    #[arg(long, default_value_t = 128)]
    size: usize,
    /// Seconds of sending
    #[arg(long, default_value_t = 8.0)]
    secs: f64,
}

#[derive(Debug)]
struct Tally {
    sent: u64,
    received: u64,
    refused: u64,
    closed: u64,
    last: u64,
    latency: Latency,
}

impl Whisper {
    pub(crate) fn run(&self, target: &Target) -> io::Result<()> {
        let rooms = (self.conns / self.room).max(1);
        let conns = rooms * self.room;
        let room = |client| format!("private-room-{}", client % rooms);
        let mut crowd = Crowd::new(target, 0)?;
        crowd.gather(conns, |client| vec![room(client)], |_| {})?;
        // Numbers of clients are given in the order they are connected in.
        let mut report = Report::begin("whisper", target);
        let began = crowd.clock.now();
        let latency = Latency::new();
        let mut tally = Tally { sent: 0, received: 0, refused: 0, closed: 0, last: began, latency };
        self.drive(&mut crowd, &mut tally, (began, conns), room)?;
        let wall = (tally.last - began) as f64 / 1e9;
        let expected = tally.sent * self.others();
        report.add("conns", conns);
        report.add("room", self.room);
        report.add("rate", self.rate);
        report.add("size", self.size);
        report.add("sent", tally.sent);
        report.add("refused", tally.refused);
        report.add("received", tally.received);
        report.add("missing", expected.saturating_sub(tally.received));
        report.add("closed", tally.closed);
        report.number("wall_s", wall);
        report.number("whispers_per_s", tally.sent as f64 / wall);
        report.number("deliveries_per_s", tally.received as f64 / wall);
        report.usage(wall, "cpu_us_per_delivery", tally.received);
        report.latency(&tally.latency);
        report.print().map(drop)
    }

    fn drive(
        &self,
        crowd: &mut Crowd,
        tally: &mut Tally,
        (began, conns): (u64, usize),
        room: impl Fn(usize) -> String,
    ) -> io::Result<()> {
        let stop = began + (self.secs * 1e9) as u64;
        loop {
            let now = crowd.clock.now();
            let whole = tally.received >= tally.sent * self.others();
            if now >= stop && (whole || now > tally.last.max(stop) + PATIENCE) {
                return Ok(());
            }
            let mut next = None;
            if now < stop {
                loop {
                    let due = match self.due(tally, began) {
                        Some(due) if due > now => {
                            next = Some(due);
                            break;
                        }
                        Some(due) => due,
                        None if self.is_full(tally) => break,
                        None => crowd.clock.now(),
                    };
                    let from = (tally.sent % conns as u64) as usize;
                    let text = format!(
                        r#"{{"event":"client-load","channel":"{}","data":{}}}"#,
                        room(from),
                        payload(due, self.size)
                    );
                    tally.sent += 1;
                    if let Some(client) = crowd.clients.get_mut(from) {
                        client.say(&text)?;
                    }
                }
            }
            crowd.turn(wait(next, now), |heard| tally.hear(&heard))?;
        }
    }

    /// Who is to hear a whisper.
    fn others(&self) -> u64 {
        self.room as u64 - 1
    }

    /// When the next whisper is due, where there is a rate.
    fn due(&self, tally: &Tally, began: u64) -> Option<u64> {
        Pace { rate: self.rate, burst: 1 }.due(tally.sent).map(|due| began + due)
    }

    /// Whether as many deliveries are under way as may be.
    fn is_full(&self, tally: &Tally) -> bool {
        let under_way = (tally.sent * self.others()).saturating_sub(tally.received);
        under_way >= self.window as u64 * self.others()
    }
}

impl Tally {
    fn hear(&mut self, heard: &Heard<'_>) {
        match heard {
            Heard::Text { text, at, .. } => {
                if let Some(due) = due(text) {
                    self.received += 1;
                    self.last = *at;
                    self.latency.record(at.saturating_sub(due));
                } else if memmem::find(text, b"pusher:error").is_some() {
                    self.refused += 1;
                }
            }
            Heard::Gone { .. } => self.closed += 1,
            Heard::Ready { .. } | Heard::Answered { .. } => {}
        }
    }
}
