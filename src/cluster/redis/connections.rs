//! The connections of a link: to each server one for commands and one for subscriptions. A single server has
//! everything; each server of a Redis Cluster has some slots, and a command goes to the server with the slot of its
//! first key. When a slot moves, later commands follow at once, and its topics are reported for resubscription.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use redis::aio::{ConnectionLike as _, MultiplexedConnection};
use redis::{Client, Cmd, Pipeline, PushKind, Value, cmd};
use tokio::time::{Instant, sleep, timeout};

use super::LinkError;
use super::address::{self, RedisAddress};
use super::away::{AwayPart, AwayParts, MASTER_PATIENCE, ask_master};
use super::batch;
use super::leases::Lease;
use super::pushes::{PushQueue, PushStream, SlotMoves};
use super::server::{ConnectionRole, LeasedCommand, RedisServer, at_address};
use super::slots::{self, HostPort, Redirect, SLOTS};
use super::tls::RedisTls;
use crate::cluster::keys::RedisKeys;
use crate::cluster::reply;

/// How long to wait before what is on its way between two servers is asked for again.
/// A slot's move takes milliseconds; asking without a pause would only load both servers.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// How long commands wait for keys that are on their way: less than Redis may take to answer.
const SLOT_PATIENCE: Duration = Duration::from_millis(2500);

/// Rounds after which servers that point at each other are given time: asked, pointed on, and asked there.
/// More rounds than that happen while a slot is in the middle of its move.
const USUAL: usize = 2;

/// All connections of a link.
/// One object for one server and for many, so that nothing above asks which it is. A Redis Cluster's servers are
/// connected to as they are named, and stay connected until the link ends.
pub(super) struct RedisConnections {
    /// How any of them is logged in to.
    pub(super) login: Client,
    /// Certificates are read again for each connection.
    pub(super) tls: Arc<RedisTls>,
    /// Never shrinks: places stay valid, and a server that has lost its slots may get some again.
    pub(super) servers: Vec<RedisServer>,
    /// The place in `servers` of each slot's; empty where one server has everything.
    pub(super) slots: Vec<u16>,
    /// All connections that listen write to one queue, so that what comes is in one order.
    pub(super) pushes: PushQueue,
    /// Shared with the half that reads.
    pub(super) moves: Rc<RefCell<SlotMoves>>,
    pub(super) keys: RedisKeys,
    /// This node's number.
    pub(super) node: u64,
    /// The parts of a Redis Cluster that the link is made without.
    pub(super) away: AwayParts,
    /// Slots for which no server could be asked over this link.
    pub(super) dark: BTreeSet<u16>,
    /// The slots that masters had which are lost.
    pub(super) lost: BTreeMap<HostPort, BTreeSet<u16>>,
    /// Every lease under which something may be held still: those of before, and those that were registered over this
    /// link or may have been.
    pub(super) leases: Vec<Lease>,
}

/// A command that is to be sent: its place among all, and the server to ask for it although the slot is not
/// its yet.
/// Commands of one batch may go to many servers, and come back to their places.
struct RoutedCommand {
    /// The command's place in the batch.
    index: usize,
    /// The server that an `ASK` named, to which it is sent once with `ASKING`.
    asking: Option<u16>,
}

impl RedisConnections {
    /// Connects to the server that has everything, or to all that have slots but for what is `away`.
    /// # Errors
    /// No server answers; the caller tries again.
    pub(super) async fn connect_all(
        address: &mut RedisAddress,
        (keys, node): (RedisKeys, u64),
        mut away: AwayParts,
    ) -> Result<(Self, PushStream), LinkError> {
        address.pass_over(&mut away);
        // Of Sentinels the master, of a Redis Cluster any that answers.
        let login = address.pick_server().await?;
        let (pushes, incoming) = PushQueue::open();
        let moves = Rc::new(RefCell::new(SlotMoves::default()));
        let heard = PushStream::new(incoming, moves.clone());
        let at = address::host_port(&login);
        let first = RedisServer::connect((&login, address.tls()), at, &pushes).await?;
        let (servers, slots, leases, dark, lost) = Default::default();
        let tls = address.tls().clone();
        let mut all = Self {
            login,
            tls,
            servers,
            slots,
            pushes,
            moves,
            keys,
            node,
            away,
            dark,
            lost,
            leases,
        };
        if address.is_cluster(&mut first.connection_for(ConnectionRole::Commands)).await? {
            all.connect_to_all(first).await?;
            address.learn_servers(
                all.servers.iter().map(|server| at_address(&all.login, &server.at)),
            )?;
        } else {
            all.servers.push(first);
        }
        Ok((all, heard))
    }

    /// Connects to all that have slots, by what one of them says.
    /// In parallel: a cluster may have dozens of masters.
    async fn connect_to_all(&mut self, first: RedisServer) -> Result<(), LinkError> {
        let mut commands = first.connection_for(ConnectionRole::Commands);
        let ranges = slots::slot_ranges(&slots_of(&mut commands).await?, &first.at.0);
        let owners: BTreeSet<HostPort> = ranges.iter().map(|(_, _, at)| at.clone()).collect();
        self.away.keep_owners(&owners);
        let others = owners.iter().filter(|at| **at != first.at && !self.away.has_master(at));
        let connecting =
            others.map(|at| async { (at.clone(), self.connect_in_time(at.clone()).await) });
        let connected = join_all(connecting).await;
        self.servers.push(first);
        for (at, server) in connected {
            match server {
                Ok(server) => self.servers.push(server),
                Err(lost) => self.away.note_away(AwayPart::Master(at), lost.to_string()),
            }
        }
        self.slots = vec![u16::MAX; usize::from(SLOTS)];
        for (first, last, at) in &ranges {
            if self.away.has_master(at) {
                self.lost.entry(at.clone()).or_default().extend(*first..=*last);
            }
        }
        self.assign_all(ranges).await;
        // Nothing is subscribed to yet, and so nothing has moved.
        let mut moves = self.moves.borrow_mut();
        moves.moved.clear();
        moves.has_parts = true;
        drop(moves);
        self.note_dark();
        if self.dark.len() == self.slots.len() { Err(LinkError::Uncovered) } else { Ok(()) }
    }

    /// Connects to a master of a Redis Cluster.
    /// # Errors
    /// The server refuses, or does not answer in time.
    async fn connect_in_time(&self, at: HostPort) -> Result<RedisServer, LinkError> {
        let login = (&self.login, &*self.tls);
        timeout(MASTER_PATIENCE, RedisServer::connect(login, at, &self.pushes)).await?
    }

    /// Assigns slots to servers. Unreachable servers are left out; commands for their slots then fail as away.
    pub(super) async fn assign_all(&mut self, ranges: Vec<(u16, u16, HostPort)>) {
        for (first, last, at) in ranges {
            if let Ok(server) = self.place_of(at).await {
                (first..=last).for_each(|slot| self.assign_slot(slot, server));
            }
        }
    }

    /// A slot that has moved has its topics subscribed to anew.
    fn assign_slot(&mut self, slot: u16, server: u16) {
        if let Some(place) = self.slots.get_mut(usize::from(slot))
            && *place != server
        {
            *place = server;
            self.moves.borrow_mut().moved.insert(slot);
        }
    }

    /// The place of the server at an address, which is connected to if it is new.
    /// # Errors
    /// It cannot be connected to in time.
    async fn place_of(&mut self, at: HostPort) -> Result<u16, LinkError> {
        let known = self.servers.iter().position(|server| server.at == at);
        let place = match known {
            Some(place) if self.servers.get(place).is_some_and(|server| !server.lost) => place,
            _ if self.away.has_master(&at) => {
                return Err(LinkError::OfMaster(at, Box::new(LinkError::Uncovered)));
            }
            _ => {
                let server = self.connect_in_time(at.clone()).await;
                self.put_server(server.map_err(|lost| LinkError::OfMaster(at, Box::new(lost)))?)
            }
        };
        u16::try_from(place).map_err(|_| LinkError::Uncovered)
    }

    /// The place of a server that was connected to, which is that of a lost one at its address.
    pub(super) fn put_server(&mut self, server: RedisServer) -> usize {
        let known = self.servers.iter().position(|other| other.at == server.at);
        match known.and_then(|place| Some((place, self.servers.get_mut(place)?))) {
            Some((place, other)) => {
                // What comes in on the connection that is replaced counts no more.
                self.moves.borrow_mut().passed_over.insert(other.number);
                *other = server;
                place
            }
            None => {
                self.servers.push(server);
                self.servers.len() - 1
            }
        }
    }

    /// The number of the database that they are logged in to.
    pub(super) fn database(&self) -> i64 {
        self.login.get_connection_info().redis_settings().db()
    }

    /// One server has no slots to look up.
    pub(super) fn is_cluster(&self) -> bool {
        !self.slots.is_empty()
    }

    /// The slots whose topics are to be subscribed to anew.
    pub(super) fn take_moved(&self) -> BTreeSet<u16> {
        std::mem::take(&mut self.moves.borrow_mut().moved)
    }

    /// Sends commands; the answers in their order.
    /// Each takes the lease of this node on its server with it, if it needs one.
    pub(super) async fn send_commands(
        &mut self,
        commands: Vec<LeasedCommand>,
    ) -> Result<Vec<Value>, LinkError> {
        self.send_round(ConnectionRole::Commands, commands).await
    }

    /// Subscribes to topics.
    /// Answered by pushes, which are taken for the answers of the commands in order. That goes wrong when a slot
    /// moves in between, and is found out by the names.
    /// # Errors
    /// Redis refuses, or three tries were answered by something else.
    pub(super) async fn subscribe_topics(&mut self, names: &[String]) -> Result<(), LinkError> {
        let names: Vec<&String> = names.iter().filter(|name| !self.is_away(name)).collect();
        for _ in 0..3 {
            let commands = names.iter().map(|name| of_topic("SSUBSCRIBE", name).into()).collect();
            let answers = self.send_round(ConnectionRole::Listening, commands).await?;
            self.look_for_refusal(&names, &answers)?;
            let is_of = |(answer, name): (&Value, &&String)| match answer {
                Value::Push { kind: PushKind::SSubscribe, data } => {
                    data.first().and_then(reply::as_text) == Some(*name)
                }
                _ => false,
            };
            if answers.iter().zip(&names).all(is_of) {
                return Ok(());
            }
            // The end of a subscription whose slot has moved was taken for an answer.
            self.verify_listeners().await?;
        }
        Err(LinkError::Deaf)
    }

    /// Ends subscriptions.
    /// Noted before it is sent, so that the reader knows that the end was wanted.
    pub(super) async fn unsubscribe_topics(&mut self, names: &[String]) -> Result<(), LinkError> {
        let names: Vec<&String> = names.iter().filter(|name| !self.is_away(name)).collect();
        for name in &names {
            self.moves.borrow_mut().note_ending(name);
        }
        let commands = names.iter().map(|name| of_topic("SUNSUBSCRIBE", name).into()).collect();
        let answers = self.send_round(ConnectionRole::Listening, commands).await?;
        self.look_for_refusal(&names, &answers)
    }

    /// Checks replies for one that refuses the subscription to a topic.
    fn look_for_refusal(&self, names: &[&String], answers: &[Value]) -> Result<(), LinkError> {
        let refused = names.iter().zip(answers).find_map(|(name, answer)| match answer {
            Value::ServerError(error) => {
                let slot = Some(slots::of_name(name.as_bytes()));
                Some(self.blame(slot, LinkError::Redis(error.clone().into())))
            }
            _ => None,
        });
        refused.map_or(Ok(()), Err)
    }

    /// Asks all connections that listen whether they do, until the answers are those to the questions.
    /// Answers and pushes share a connection; after a mix-up each connection is asked for a word of its own until it
    /// comes back.
    pub(super) async fn verify_listeners(&self) -> Result<(), LinkError> {
        let there = self.servers.iter().filter(|server| !server.lost);
        let questions = there.map(|server| {
            let mut connection = server.connection_for(ConnectionRole::Listening);
            let at = server.at.clone();
            async move {
                for number in 0..10_u8 {
                    let word = format!("fanfare-{number}");
                    let mut ping = cmd("PING");
                    let asked = ping.arg(&word).query_async(&mut connection);
                    let answer: Value = ask_master(at.clone(), asked).await?;
                    if reply::as_text(&answer) == Some(&word) {
                        return Ok(());
                    }
                    sleep(RETRY_PAUSE).await;
                }
                Err(LinkError::Deaf)
            }
        });
        join_all(questions).await.into_iter().collect()
    }

    /// Sends commands, each to the server it belongs to, and again where an answer points elsewhere.
    /// With one server it is a pipeline and nothing else. With several each command goes where its slot is;
    /// redirections are followed until `PATIENCE` is over.
    async fn send_round(
        &mut self,
        which: ConnectionRole,
        commands: Vec<LeasedCommand>,
    ) -> Result<Vec<Value>, LinkError> {
        if !self.is_cluster() {
            let Some(server) = self.servers.first() else { return Err(LinkError::Uncovered) };
            let (mut connection, count) = (server.connection_for(which), commands.len());
            let mut pipeline = redis::pipe();
            commands.into_iter().for_each(|routed| {
                pipeline.add_command(server.fenced_command(&self.keys, &self.leases, routed));
            });
            return Ok(connection.req_packed_commands(&pipeline, 0, count).await?);
        }
        let end = Instant::now() + SLOT_PATIENCE;
        let mut answers = vec![Value::Nil; commands.len()];
        let mut left: Vec<RoutedCommand> =
            (0..commands.len()).map(|index| RoutedCommand { index, asking: None }).collect();
        let mut rounds = 0;
        while !left.is_empty() {
            if Instant::now() > end {
                let left = left.iter().filter_map(|errand| commands.get(errand.index));
                let stuck = left.filter_map(|routed| Some((routed.slot()?, routed.keys())));
                return Err(LinkError::Stuck(stuck.collect()));
            }
            rounds += 1;
            if rounds > USUAL {
                sleep(RETRY_PAUSE).await;
            }
            if rounds > 1 && self.current_leases().next().is_some() {
                self.renew_moved_leases().await?;
            }
            let replies = self.send_each(which, &commands, &left).await?;
            left = self.sort_answers(&commands, replies, &mut answers).await?;
        }
        Ok(answers)
    }

    /// Puts replies in their places. Returns the commands to be sent again, and those that must follow them.
    async fn sort_answers(
        &mut self,
        commands: &[LeasedCommand],
        replies: Vec<(usize, u16, Value)>,
        answers: &mut [Value],
    ) -> Result<Vec<RoutedCommand>, LinkError> {
        let (mut left, mut moved, mut without_lease) = (Vec::new(), None, BTreeSet::new());
        for (index, server, value) in replies {
            let asked = self.servers.get(usize::from(server)).map_or("", |server| &server.at.0);
            let redirect = match &value {
                Value::ServerError(error) => Redirect::of_error(error, asked),
                _ => None,
            };
            let mut asking = None;
            match redirect {
                None => {
                    if let Some(answer) = answers.get_mut(index) {
                        *answer = value;
                    }
                    continue;
                }
                Some(Redirect::Moved(slot, at)) => {
                    let server = self.place_of(at).await?;
                    self.assign_slot(slot, server);
                    moved = Some(server);
                }
                Some(Redirect::Ask(at)) => asking = Some(self.place_of(at).await?),
                Some(Redirect::Later) => {}
                Some(Redirect::Lease) => {
                    if commands.get(index).is_some_and(LeasedCommand::is_fenced) {
                        without_lease.insert(server);
                    }
                }
            }
            left.push(RoutedCommand { index, asking });
        }
        for server in without_lease {
            self.move_lease(server).await?;
        }
        if let Some(server) = moved.and_then(|server| self.servers.get(usize::from(server))) {
            // Where one slot has moved, others have.
            let asked = server.at.0.clone();
            let slots = slots_by(server).await?;
            self.assign_all(slots::slot_ranges(&slots, &asked)).await;
        }
        let behind =
            batch::joins_behind(commands, left.iter().map(|errand| errand.index).collect());
        left.extend(behind.into_iter().map(|index| RoutedCommand { index, asking: None }));
        left.sort_unstable_by_key(|errand| errand.index);
        Ok(left)
    }

    /// Sends commands to all servers at once; each answer with the command's place and the server's.
    async fn send_each(
        &self,
        which: ConnectionRole,
        commands: &[LeasedCommand],
        errands: &[RoutedCommand],
    ) -> Result<Vec<(usize, u16, Value)>, LinkError> {
        let mut parts: BTreeMap<u16, (Pipeline, Vec<Option<usize>>)> = BTreeMap::new();
        for RoutedCommand { index, asking } in errands {
            let Some(routed) = commands.get(*index) else { continue };
            // Commands without a key go to the server of slot 0.
            let (slot, fenced) = (routed.slot().unwrap_or_default(), routed.is_fenced());
            let of_slot = self.slots.get(usize::from(slot)).copied();
            // One that has no slots yet has no lease; it is waited for.
            let has_lease = |place: &u16| {
                self.servers.get(usize::from(*place)).is_some_and(|server| server.lease.is_some())
            };
            let asking = asking.filter(|place| !fenced || has_lease(place));
            let place = asking.or(of_slot).unwrap_or(u16::MAX);
            let Some(server) = self.servers.get(usize::from(place)) else {
                return Err(LinkError::Uncovered);
            };
            let (pipeline, places) = parts.entry(place).or_default();
            if asking.is_some() {
                pipeline.add_command(cmd("ASKING"));
                places.push(None);
            }
            pipeline.add_command(server.fenced_command(&self.keys, &self.leases, routed.clone()));
            places.push(Some(*index));
        }
        let mut sending = Vec::new();
        for (place, (pipeline, places)) in parts {
            let Some(server) = self.servers.get(usize::from(place)) else {
                return Err(LinkError::Uncovered);
            };
            let (mut connection, at) = (server.connection_for(which), server.at.clone());
            sending.push(async move {
                let count = places.len();
                let asked = connection.req_packed_commands(&pipeline, 0, count);
                let answers = ask_master(at, asked).await?;
                let answers = places.into_iter().zip(answers);
                let answers = answers.filter_map(|(index, value)| Some((index?, place, value)));
                Ok::<_, LinkError>(answers.collect::<Vec<_>>())
            });
        }
        let mut replies = Vec::with_capacity(errands.len());
        for answers in join_all(sending).await {
            replies.extend(answers?);
        }
        Ok(replies)
    }
}

/// Asks a server which master has which slots.
pub(super) async fn slots_of(commands: &mut MultiplexedConnection) -> Result<Value, LinkError> {
    Ok(cmd("CLUSTER").arg("SLOTS").query_async(commands).await?)
}

/// The same of a server of the link, which is to blame where it does not answer.
pub(super) async fn slots_by(server: &RedisServer) -> Result<Value, LinkError> {
    let slots = slots_of(&mut server.connection_for(ConnectionRole::Commands)).await;
    slots.map_err(|lost| LinkError::OfMaster(server.at.clone(), Box::new(lost)))
}

/// A command with a topic as its only argument.
fn of_topic(name: &str, topic: &str) -> Cmd {
    let mut command = cmd(name);
    command.arg(topic);
    command
}
