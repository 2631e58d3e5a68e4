//! What must hold, checked from outside: by what the log says, what clients have sent and got, and what disks hold. The oracle
//! applies every committed entry itself, once, and everybody else must agree with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use trunkline_broker::core::{Applied, LoggedEntry, Partition, Refusal, Reply, Verdict};
use trunkline_proto::{ConnectionId, Entry, LogIndex, Offset, PartitionCount, PartitionId, Record, RecordKind, v1};

use crate::{GROUP, Rules, log::LogEntry, sabotage};

/// What can be broken: what Trunkline promises.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Invariant {
    /// What is acknowledged is in the synced logs of a majority.
    Durable,
    /// Replicas at the same index have the same log and state.
    SameState,
    /// The state agrees with itself (`Partition::check`).
    State,
    /// Per connection: opened, an unbroken prefix of what was sent, at most one closed.
    Prefix,
    /// Effects through Commit, forwards and keyed Submits happen once.
    Once,
    /// A push or publish is written to its socket once and in order.
    Delivered,
    /// What was read from a socket that lives is in the log, and the log knows that socket.
    Silent,
    /// Every queue keeps its bound.
    Bounded,
    /// Once nothing fails any more, everything is drained and closed.
    Rest,
}

/// A promise that was broken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// Which.
    pub invariant: Invariant,
    /// How.
    pub what: String,
}

impl Violation {
    pub(crate) fn new(invariant: Invariant, what: String) -> Self {
        Self { invariant, what }
    }

    /// Something does not come to rest.
    pub(crate) fn rest(what: impl Into<String>) -> Self {
        Self::new(Invariant::Rest, what.into())
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.invariant, self.what)
    }
}

/// A connection as the log has it.
#[derive(Default, Debug)]
pub(crate) struct Logged {
    pub(crate) opened: bool,
    pub(crate) messages: u64,
    pub(crate) closed: bool,
}

/// Deliveries that one socket is to get in this order.
#[derive(Default, Debug)]
struct Expected {
    payloads: Vec<Vec<u8>>,
    received: usize,
}

/// A key of [`Expected`]: the connection, and the channel or nothing for pushes.
type Way = (ConnectionId, String);

#[derive(Debug)]
struct Reference {
    state: Partition,
    log: Vec<(u64, u64)>,
    /// Messages of the log that nothing has answered yet.
    unanswered: BTreeSet<Offset>,
}

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Oracle {
    count: PartitionCount,
    rules: Rules,
    references: Vec<Reference>,
    pub(crate) connections: BTreeMap<ConnectionId, Logged>,
    expected: BTreeMap<Way, Expected>,
    effects: BTreeSet<Vec<u8>>,
    /// Entries that somebody has been told of, to be looked for on the disks: partition, index, term.
    pub(crate) acknowledged: Vec<(PartitionId, u64, u64)>,
    pub(crate) violation: Option<Violation>,
    pub(crate) counts: BTreeMap<&'static str, u64>,
}

impl Oracle {
    pub(crate) fn new(count: PartitionCount, rules: Rules) -> Self {
        let reference =
            |id| Reference { state: Partition::new(id, count), log: Vec::new(), unanswered: BTreeSet::new() };
        Self {
            count,
            rules,
            references: count.iter().map(reference).collect(),
            connections: BTreeMap::new(),
            expected: BTreeMap::new(),
            effects: BTreeSet::new(),
            acknowledged: Vec::new(),
            violation: None,
            counts: BTreeMap::new(),
        }
    }

    pub(crate) fn fail(&mut self, invariant: Invariant, what: String) {
        self.violation.get_or_insert(Violation::new(invariant, what));
    }

    pub(crate) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    pub(crate) fn state(&self, partition: PartitionId) -> &Partition {
        &self.references[usize::from(partition.0)].state
    }

    /// How many entries are committed.
    pub(crate) fn committed(&self, partition: PartitionId) -> u64 {
        self.references[usize::from(partition.0)].log.len() as u64
    }

    /// Of a committed entry.
    pub(crate) fn term_at(&self, partition: PartitionId, index: u64) -> Option<u64> {
        self.references[usize::from(partition.0)].log.get(index as usize - 1).map(|(term, _)| *term)
    }

    /// A replica has applied the entry and has this digest now.
    pub(crate) fn applied(&mut self, partition: PartitionId, index: u64, entry: &LogEntry, replica: &Partition) {
        let at = usize::from(partition.0);
        if self.references[at].log.len() as u64 + 1 == index {
            self.advance(partition, index, entry);
        }
        let known = self.references[at].log.get(index as usize - 1).copied();
        if known != Some((entry.term, replica.digest())) {
            let what = format!(
                "partition {partition}: entry {index} is {known:?} and now {:?}",
                (entry.term, replica.digest())
            );
            self.fail(Invariant::SameState, what);
        }
        let state = &self.references[at].state;
        if state.applied() == replica.applied()
            && index.is_multiple_of(8)
            && state.state_digest() != replica.state_digest()
        {
            self.fail(Invariant::SameState, format!("partition {partition}: states differ at {index}"));
        }
    }

    /// A state was made by a replay, or came from a peer.
    pub(crate) fn restored(&mut self, partition: PartitionId, index: u64, state: &Partition) {
        let known = self.references[usize::from(partition.0)].log.get(index as usize - 1).map(|(_, digest)| *digest);
        if known != Some(state.digest()) {
            let what = format!("partition {partition}: a state as of {index} has not the digest that apply had there");
            self.fail(Invariant::SameState, what);
        }
    }

    fn advance(&mut self, partition: PartitionId, index: u64, entry: &LogEntry) {
        let at = usize::from(partition.0);
        match &entry.bytes {
            None => self.references[at].state.skip(LogIndex(index)),
            Some(bytes) => match Entry::parse(bytes) {
                Err(error) => self.fail(Invariant::State, format!("partition {partition}: entry {index}: {error}")),
                Ok(parsed) => {
                    let before = self.references[at].state.clone();
                    let parsed = sabotage::rewrite(self.rules, &before, parsed);
                    let state = &mut self.references[at].state;
                    let applied = state.apply(LogIndex(index), &parsed);
                    sabotage::forget_losses(self.rules, state);
                    self.read(partition, &before, LogIndex(index), &parsed, &applied);
                }
            },
        }
        let reference = &mut self.references[at];
        reference.log.push((entry.term, reference.state.digest()));
        if let Err(wrong) = reference.state.check() {
            self.fail(Invariant::State, format!("partition {partition}, entry {index}: {wrong}"));
        }
    }

    /// Goes over what an entry has done.
    fn read(&mut self, partition: PartitionId, before: &Partition, index: LogIndex, entry: &Entry, applied: &Applied) {
        let logged = LoggedEntry { index, entry: entry.clone(), refused: applied.refused.clone() };
        for (offset, record) in logged.records() {
            let is_here = applied.verdict(offset.position()) == Verdict::Applied;
            match record.kind {
                RecordKind::ConnectionOpened | RecordKind::MessageReceived | RecordKind::ConnectionClosed => {
                    self.event(partition, offset, &record);
                }
                RecordKind::Pushed if is_here => self.pushed(&record),
                RecordKind::Published if is_here => self.published(before, index, entry, offset, &record),
                _ => {}
            }
        }
        for (_, refusal) in &applied.refused {
            self.count(match refusal {
                Refusal::Gone => "refused: gone",
                Refusal::OutOfSequence => "refused: out of sequence",
                Refusal::Fenced => "refused: fenced",
                Refusal::StaleEpoch => "refused: stale epoch",
                Refusal::NotOpen => "refused: not open",
                Refusal::Repeated { .. } => "refused: repeated",
                Refusal::ForwardGap => "refused: forward gap",
                Refusal::WithBatch => "refused: with batch",
                Refusal::NotPending => "refused: not pending",
                _ => "refused: other",
            });
        }
        if applied.outcomes.iter().any(|outcome| matches!(outcome.reply, Reply::Fenced { .. })) {
            self.count("batches fenced");
        }
    }

    fn event(&mut self, partition: PartitionId, offset: Offset, record: &Record) {
        let id = record.connection;
        let connection = self.connections.entry(id).or_default();
        let wrong = match record.kind {
            RecordKind::ConnectionOpened if connection.opened => Some("is opened twice".to_owned()),
            RecordKind::ConnectionOpened => {
                connection.opened = true;
                None
            }
            _ if !connection.opened => Some(format!("has {} before it is opened", record.kind.name())),
            _ if connection.closed => Some(format!("has {} after it is closed", record.kind.name())),
            RecordKind::MessageReceived => {
                let payload = record.decode::<v1::MessageReceived>().map(|body| body.payload).unwrap_or_default();
                let next = connection.messages.to_string();
                connection.messages += 1;
                self.references[usize::from(partition.0)].unanswered.insert(offset);
                (payload != next.as_bytes())
                    .then(|| format!("has message {} where {next} follows", String::from_utf8_lossy(&payload)))
            }
            _ => {
                connection.closed = true;
                None
            }
        };
        self.count(record.kind.name());
        if let Some(wrong) = wrong {
            self.fail(Invariant::Prefix, format!("connection {id} {wrong} (partition {partition}, {offset})"));
        }
    }

    fn pushed(&mut self, record: &Record) {
        let Ok(body) = record.decode::<v1::Pushed>() else { return };
        self.effect(&body.payload);
        let way = (record.connection, String::new());
        self.expected.entry(way).or_default().payloads.push(body.payload.to_vec());
    }

    /// Whom a publish is for is decided by the channel's members at its record.
    fn published(&mut self, before: &Partition, index: LogIndex, entry: &Entry, offset: Offset, record: &Record) {
        let Ok(body) = record.decode::<v1::Published>() else { return };
        self.effect(&body.payload);
        let mut then = before.clone();
        then.apply_until(index, entry, offset.position());
        for member in then.channel_members(&body.channel) {
            let expected = self.expected.entry((member, body.channel.clone())).or_default();
            expected.payloads.push(body.payload.to_vec());
        }
    }

    fn effect(&mut self, payload: &[u8]) {
        self.count("effects");
        let text = String::from_utf8_lossy(payload);
        let mut words = text.split(' ');
        // "publish CHANNEL PARTITION OFFSET" answers a message
        if words.next() == Some("publish")
            && let (Some(partition), Some(offset)) = (words.nth(1), words.next())
            && let (Ok(partition), Ok(offset)) = (partition.parse::<usize>(), offset.parse())
            && let Some(reference) = self.references.get_mut(partition)
        {
            reference.unanswered.remove(&Offset(offset));
        }
        if !self.effects.insert(payload.to_vec()) {
            self.fail(Invariant::Once, format!("{text:?} took effect twice"));
        }
    }

    /// Whether an effect has happened.
    pub(crate) fn has_effect(&self, payload: &[u8]) -> bool {
        self.effects.contains(payload)
    }

    /// A client has got a message.
    pub(crate) fn received(&mut self, connection: ConnectionId, payload: &[u8]) {
        self.count("received");
        let text = String::from_utf8_lossy(payload).into_owned();
        let mut words = text.split(' ');
        let channel = match words.next() {
            Some("publish" | "submit") => words.next().unwrap_or_default(),
            _ => "",
        };
        let expected = self.expected.entry((connection, channel.to_owned())).or_default();
        let next = expected.payloads.get(expected.received).map(|next| String::from_utf8_lossy(next).into_owned());
        expected.received += 1;
        // an edge that has not heard that it is lost goes on for a while with what the log has closed
        if next.is_none() && self.connections.get(&connection).is_some_and(|logged| logged.closed) {
            return;
        }
        if next.as_deref() != Some(&text) {
            self.fail(Invariant::Delivered, format!("connection {connection} got {text:?} where {next:?} follows"));
        }
    }

    /// Everything meant for this socket has reached it.
    pub(crate) fn check_received(&self, connection: ConnectionId) -> Result<(), Violation> {
        let ways = self.expected.range((connection, String::new())..);
        for ((_, channel), expected) in ways.take_while(|((id, _), _)| *id == connection) {
            if expected.received < expected.payloads.len() {
                let next = String::from_utf8_lossy(&expected.payloads[expected.received]);
                let what = format!("connection {connection} has not got {next:?} of channel {channel:?}");
                return Err(Violation::new(Invariant::Delivered, what));
            }
        }
        Ok(())
    }

    /// Nothing is under way any more, in no partition.
    pub(crate) fn check_rest(&self, all_closed: bool) -> Result<(), Violation> {
        for (id, reference) in self.count.iter().zip(&self.references) {
            let state = &reference.state;
            if state.outbox_len() > 0 {
                return Err(Violation::rest(format!("partition {id} has {} forwards left", state.outbox_len())));
            }
            if let Some(group) = state.group(GROUP)
                && (group.lag > 0 || group.hole_count() > 0)
            {
                let (lag, holes) = (group.lag, group.hole_count());
                return Err(Violation::rest(format!("partition {id}: the group lags by {lag}, {holes} holes")));
            }
            let parked = |offset: &Offset| {
                state.group(GROUP).is_some_and(|group| group.parked().any(|(parked, _)| parked == *offset))
            };
            if let Some(lost) = reference.unanswered.iter().find(|offset| !parked(offset)) {
                let what = format!("partition {id}: the message at {lost} is settled and was never answered");
                return Err(Violation::new(Invariant::Once, what));
            }
            if all_closed && (state.connection_count() > 0 || state.channel_count() > 0) {
                let (open, channels) = (state.connection_count(), state.channel_count());
                let what = format!("partition {id} has {open} connections and {channels} channels left");
                return Err(Violation::rest(what));
            }
        }
        let open = |logged: &&Logged| logged.opened && !logged.closed;
        let open = self.connections.values().filter(open).count();
        match all_closed && open > 0 {
            true => Err(Violation::new(Invariant::Prefix, format!("{open} connections are never closed"))),
            false => Ok(()),
        }
    }
}
