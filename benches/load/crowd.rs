//! All the sockets of a run, clients and publishers, on one thread and one poll, so that the meter takes as
//! little of the machine as it can.

use std::io;
use std::time::Duration;

use mio::event::Event;
use mio::{Events, Poll, Registry, Token};
use slab::Slab;

use crate::client::Client;
use crate::inflate::Inflate;
use crate::meter::Clock;
use crate::publisher::Publisher;
use crate::target::Target;

/// Where the tokens of publishers begin.
const PUBLISHERS: usize = 1 << 40;

/// Bytes read in one call at most.
const SCRATCH: usize = 256 << 10;

/// Seconds without any progress after which nothing more is expected.
const PATIENCE: u64 = 20;

/// What happened.
#[derive(Debug)]
pub(crate) enum Heard<'a> {
    /// A client was told something at that time, in so many bytes of the wire.
    Text { client: usize, text: &'a [u8], at: u64, bytes: usize },
    /// All of a client's subscriptions are confirmed.
    Ready { client: usize },
    /// A client's connection ended, and the client has been forgotten.
    Gone { client: usize, ready: bool, error: io::Error },
    /// A publisher's request was answered.
    Answered { publisher: usize, status: u16 },
}

/// The sockets.
#[derive(Debug)]
pub(crate) struct Crowd {
    pub target: Target,
    pub clock: Clock,
    poll: Poll,
    events: Events,
    scratch: Vec<u8>,
    inflate: Inflate,
    pub clients: Slab<Client>,
    pub publishers: Vec<Publisher>,
}

impl Crowd {
    pub(crate) fn new(target: &Target, publishers: usize) -> io::Result<Self> {
        let publishers = (0..publishers)
            .map(|index| Publisher::new(target.api(), Token(PUBLISHERS + index)))
            .collect();
        Ok(Self {
            target: target.clone(),
            clock: Clock::start(),
            poll: Poll::new()?,
            events: Events::with_capacity(1024),
            scratch: vec![0; SCRATCH],
            inflate: Inflate::default(),
            clients: Slab::new(),
            publishers,
        })
    }

    /// Begins a client; its number.
    pub(crate) fn connect(&mut self, user: usize, channels: Vec<String>) -> io::Result<usize> {
        let entry = self.clients.vacant_entry();
        let key = entry.key();
        let address = self.target.address(user);
        let place = (self.poll.registry(), Token(key));
        entry.insert(Client::connect(&self.target, address, place, (user, channels))?);
        Ok(key)
    }

    /// Connects `count` clients, some of them at a time, and waits until all are subscribed. The error of
    /// one ends it.
    pub(crate) fn gather(
        &mut self,
        count: usize,
        channels: impl Fn(usize) -> Vec<String>,
        mut hear: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        let (mut begun, mut ready) = (0, 0);
        let mut progress = self.clock.now();
        while ready < count {
            while begun < count && begun - ready < self.target.together {
                self.connect(begun, channels(begun))?;
                begun += 1;
            }
            let mut failed = None;
            let before = ready;
            self.turn(Duration::from_millis(100), |heard| match heard {
                Heard::Text { text, .. } => hear(text),
                Heard::Ready { .. } => ready += 1,
                Heard::Gone { error, .. } => failed = Some(error),
                Heard::Answered { .. } => {}
            })?;
            if let Some(error) = failed {
                return Err(error);
            }
            if ready > before {
                progress = self.clock.now();
            } else if self.clock.now() > progress + PATIENCE * 1_000_000_000 {
                return Err(io::Error::other(format!("only {ready} of {count} could subscribe")));
            }
        }
        Ok(())
    }

    /// Listens for so long.
    pub(crate) fn listen(
        &mut self,
        seconds: f64,
        mut hear: impl FnMut(Heard<'_>),
    ) -> io::Result<()> {
        let until = self.clock.now() + (seconds * 1e9) as u64;
        while self.clock.now() < until {
            self.turn(Duration::from_millis(20), &mut hear)?;
        }
        Ok(())
    }

    /// The number of a publisher that has nothing to do.
    pub(crate) fn free_publisher(&self) -> Option<usize> {
        self.publishers.iter().position(|publisher| !publisher.is_busy())
    }

    /// Publishes; `path` is what follows `/apps/{id}`.
    pub(crate) fn publish(&mut self, publisher: usize, path: &str, body: &str) -> io::Result<()> {
        let request = self.target.post(path, body);
        self.publishers[publisher].send(self.poll.registry(), request)
    }

    /// Waits at most so long for something to happen, and tells all that did.
    pub(crate) fn turn(
        &mut self,
        wait: Duration,
        mut hear: impl FnMut(Heard<'_>),
    ) -> io::Result<()> {
        match self.poll.poll(&mut self.events, Some(wait)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            polled => polled?,
        }
        let Self { target, clock, poll, events, scratch, inflate, clients, publishers } = self;
        for event in events.iter() {
            let token = event.token().0;
            if token < PUBLISHERS {
                let place = (&*target, poll.registry());
                serve(event, (place, *clock), clients, (scratch, inflate), &mut hear);
                continue;
            }
            let index = token - PUBLISHERS;
            let publisher = &mut publishers[index];
            if event.is_writable() {
                // If it fails, the read below finds the end of the stream.
                let _ = publisher.flush();
            }
            if let Some(status) = publisher.read(poll.registry(), scratch)? {
                hear(Heard::Answered { publisher: index, status });
            }
        }
        Ok(())
    }
}

fn serve(
    event: &Event,
    ((target, registry), clock): ((&Target, &Registry), Clock),
    clients: &mut Slab<Client>,
    buffers: (&mut Vec<u8>, &mut Inflate),
    hear: &mut impl FnMut(Heard<'_>),
) {
    let key = event.token().0;
    let Some(client) = clients.get_mut(key) else { return };
    let at = clock.now();
    let was_ready = client.is_ready();
    let flushed = if event.is_writable() && client.is_blocked() { client.flush() } else { Ok(()) };
    let done = flushed.and_then(|()| {
        client.read((target, (registry, event.token())), buffers, |(text, bytes)| {
            hear(Heard::Text { client: key, text, at, bytes });
        })
    });
    let is_ready = client.is_ready();
    if is_ready && !was_ready {
        hear(Heard::Ready { client: key });
    }
    if let Err(error) = done {
        clients.remove(key);
        hear(Heard::Gone { client: key, ready: is_ready, error });
    }
}
