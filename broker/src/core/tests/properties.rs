//! Properties over random logs: several edges, lives, groups, commands, duplicates, garbage, stale epochs.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};
use trunkline_proto::{
    Batch, Entry, EntryBuilder, LogIndex, Offset, PartitionCount, PartitionId, Record, RecordKind, Source, Timestamp,
    v1,
};

use super::{
    super::{
        Applied, LoggedEntry, Partition, Refusal, Reply, Targets, Verdict,
        expand::{self, Recipient},
        snapshot::Writer,
    },
    groups::{ack, commit},
    *,
};

/// What somebody tries; numbers are small so that attempts meet. `skew` is mostly 0: right.
#[derive(Clone, Debug)]
pub(super) enum Attempt {
    Attach { edge: u8, nonce: u8, skew: i8 },
    Lose { edge: u8, skew: i8 },
    Events { edge: u8, skew: i8, life: i8, events: Vec<Event> },
    Submit { key: Option<u8>, commands: Vec<Command> },
    Commit { group: u8, skew: i8, base: i8, settle: Vec<Fate>, holes: u8, commands: Vec<Command> },
    Assign { group: u8, skew: i8, give: u8, nobody: bool },
    Reset { group: u8, back: u8 },
    Release { group: u8, nth: u8, skew: i8, discard: bool },
    Forget { group: u8, skew: u8 },
    LeaderCloses { max: u8, also: u8 },
    Forward { skew: i8, commands: Vec<Command> },
    Forwarded { back: u8 },
    Trim { through: u8, skipping: u8 },
    Garbage { source: u8, kind: u8, body: Vec<u8> },
}

#[derive(Clone, Debug)]
pub(super) enum Event {
    Open { n: u8, group: Option<u8>, channels: Vec<u8> },
    Message { n: u8 },
    Close { n: u8 },
    Garbage { n: u8, kind: u8, body: Vec<u8> },
}

#[derive(Clone, Debug)]
pub(super) enum Command {
    Push { away: bool, n: u8 },
    Publish { channel: u8 },
    PublishApi,
    Close { n: u8 },
    Join { away: bool, n: u8, channel: u8, edge: bool },
    Leave { away: bool, n: u8, channel: u8 },
    Attributes { n: u8, bytes: u16 },
    Accept { n: u8, channels: Vec<u8> },
    Reject { n: u8 },
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Fate {
    Acknowledged,
    Refused,
    Parked,
}

fn skew() -> impl Strategy<Value = i8> {
    prop_oneof![8 => Just(0i8), 1 => -2..=2i8]
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (0..6u8, prop::option::of(0..2u8), prop::collection::vec(0..5u8, 0..3))
            .prop_map(|(n, group, channels)| Event::Open { n, group, channels }),
        5 => (0..6u8).prop_map(|n| Event::Message { n }),
        2 => (0..6u8).prop_map(|n| Event::Close { n }),
        1 => (0..6u8, any::<u8>(), prop::collection::vec(any::<u8>(), 0..8))
            .prop_map(|(n, kind, body)| Event::Garbage { n, kind, body }),
    ]
}

fn command() -> impl Strategy<Value = Command> {
    prop_oneof![
        (any::<bool>(), 0..6u8).prop_map(|(away, n)| Command::Push { away, n }),
        (0..5u8).prop_map(|channel| Command::Publish { channel }),
        Just(Command::PublishApi),
        (0..6u8).prop_map(|n| Command::Close { n }),
        (any::<bool>(), 0..6u8, 0..5u8, any::<bool>()).prop_map(|(away, n, channel, edge)| Command::Join {
            away,
            n,
            channel,
            edge
        }),
        (any::<bool>(), 0..6u8, 0..5u8).prop_map(|(away, n, channel)| Command::Leave { away, n, channel }),
        (0..6u8, 0..5000u16).prop_map(|(n, bytes)| Command::Attributes { n, bytes }),
        (0..6u8, prop::collection::vec(0..5u8, 0..3)).prop_map(|(n, channels)| Command::Accept { n, channels }),
        (0..6u8).prop_map(|n| Command::Reject { n }),
    ]
}

fn commands() -> impl Strategy<Value = Vec<Command>> {
    prop::collection::vec(command(), 0..4)
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![3 => Just(Fate::Acknowledged), 1 => Just(Fate::Refused), 1 => Just(Fate::Parked)]
}

fn attempt() -> impl Strategy<Value = Attempt> {
    prop_oneof![
        3 => (0..3u8, 0..3u8, skew()).prop_map(|(edge, nonce, skew)| Attempt::Attach { edge, nonce, skew }),
        1 => (0..3u8, skew()).prop_map(|(edge, skew)| Attempt::Lose { edge, skew }),
        12 => (0..3u8, skew(), skew(), prop::collection::vec(event(), 0..6))
            .prop_map(|(edge, skew, life, events)| Attempt::Events { edge, skew, life, events }),
        5 => (prop::option::of(0..4u8), commands()).prop_map(|(key, commands)| Attempt::Submit { key, commands }),
        // the same again
        2 => (0..2u8).prop_map(|key| Attempt::Submit { key: Some(key), commands: vec![Command::Publish { channel: key }] }),
        8 => (0..2u8, skew(), skew(), prop::collection::vec(fate(), 0..4), 0..3u8, commands())
            .prop_map(|(group, skew, base, settle, holes, commands)| {
                Attempt::Commit { group, skew, base, settle, holes, commands }
            }),
        3 => (0..2u8, skew(), 0..4u8, any::<bool>())
            .prop_map(|(group, skew, give, nobody)| Attempt::Assign { group, skew, give, nobody }),
        1 => (0..2u8, 0..20u8).prop_map(|(group, back)| Attempt::Reset { group, back }),
        2 => (0..2u8, 0..4u8, skew(), any::<bool>())
            .prop_map(|(group, nth, skew, discard)| Attempt::Release { group, nth, skew, discard }),
        1 => (0..2u8, 0..4u8).prop_map(|(group, skew)| Attempt::Forget { group, skew: skew / 3 }),
        3 => (0..4u8, 0..6u8).prop_map(|(max, also)| Attempt::LeaderCloses { max, also }),
        3 => (skew(), commands()).prop_map(|(skew, commands)| Attempt::Forward { skew, commands }),
        1 => (0..5u8).prop_map(|back| Attempt::Forwarded { back }),
        1 => (any::<u8>(), prop_oneof![2 => Just(0), 1 => 1..4u8])
            .prop_map(|(through, skipping)| Attempt::Trim { through, skipping }),
        2 => (0..5u8, any::<u8>(), prop::collection::vec(any::<u8>(), 0..12))
            .prop_map(|(source, kind, body)| Attempt::Garbage { source, kind, body }),
    ]
}

/// An entry: a few attempts, and how much time has passed (now and then backwards, or past the idempotency window).
pub(super) fn entry() -> impl Strategy<Value = (Vec<Attempt>, i64)> {
    let time = prop_oneof![10 => 0..1000i64, 1 => -1000..0i64, 1 => Just(700_000_000i64)];
    (prop_oneof![3 => prop::collection::vec(attempt(), 1), 1 => prop::collection::vec(attempt(), 0..4)], time)
}

fn moved(value: u64, skew: i8) -> u64 {
    value.saturating_add_signed(skew.into())
}

fn edge_name(edge: u8) -> String {
    format!("e{edge}")
}

fn group_name(group: u8) -> String {
    format!("g{group}")
}

fn channel_name(channel: u8) -> String {
    format!("c{channel}")
}

fn garbage(kind: u8, id: ConnectionId, body: &[u8]) -> Record {
    let kind = RecordKind::ALL[usize::from(kind) % RecordKind::ALL.len()];
    let mut bytes = Record::new(kind, id, "chat", &()).bytes().to_vec();
    bytes.extend_from_slice(body);
    let length = bytes.len() as u32 - 4;
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    Record::split_from(&mut bytes.into()).unwrap()
}

/// Turns attempts into batches as edges, handlers and the leader would, who see the state before the entry.
struct Writers<'a> {
    state: &'a Partition,
    /// Offsets of the events in the log, oldest first.
    events: &'a [Offset],
}

impl Writers<'_> {
    fn batch(&self, attempt: &Attempt) -> Batch {
        match attempt {
            Attempt::Attach { edge, nonce, skew } => {
                let current = self.state.edge(&edge_name(*edge)).map_or(0, |edge| edge.incarnation);
                let incarnation = if *skew == 0 { 0 } else { moved(current, skew - 1) };
                self.leader(attached(&edge_name(*edge), incarnation, &nonce.to_string()))
            }
            Attempt::Lose { edge, skew } => {
                let current = self.state.edge(&edge_name(*edge)).map_or(0, |edge| edge.incarnation);
                self.leader(lost(&edge_name(*edge), moved(current, *skew)))
            }
            Attempt::Events { edge, skew, life, events } => {
                let known = self.state.edge(&edge_name(*edge));
                let incarnation = moved(known.map_or(0, |edge| edge.incarnation), *life);
                let sequence = moved(known.map_or(0, |edge| edge.last_sequence) + 1, *skew);
                let records: Vec<Record> = events.iter().map(|event| self.event(*edge, incarnation, event)).collect();
                Batch::new(Source::Edge(v1::EdgeSource { edge: edge_name(*edge), incarnation, sequence }), &records)
            }
            Attempt::Submit { key, commands } => {
                let key = key.map(|key| key.to_string()).unwrap_or_default();
                Batch::new(keyed(&key, 0), &self.commands(commands))
            }
            Attempt::Commit { group, skew, base, settle, holes, commands } => {
                self.commit(*group, *skew, *base, settle, *holes, commands)
            }
            Attempt::Assign { group, skew, give, nobody } => self.leader(self.assign(*group, *skew, *give, *nobody)),
            Attempt::Forget { group, skew } => {
                let group = group_name(*group);
                let epoch = self.state.group(&group).map_or(0, |group| group.epoch) + u64::from(*skew);
                self.leader(of_leader(RecordKind::GroupDropped, &v1::GroupDropped { group, epoch }))
            }
            Attempt::Release { group, nth, skew, discard } => {
                let group = group_name(*group);
                let parked = self.state.group(&group).and_then(|group| group.parked().nth(usize::from(*nth)));
                let offset = moved(parked.map_or(1, |(offset, _)| offset.0), *skew);
                let body = v1::ParkedReleased { group, offsets: vec![offset], discard: *discard };
                self.leader(of_leader(RecordKind::ParkedReleased, &body))
            }
            Attempt::Reset { group, back } => {
                let at = self.events.len().saturating_sub(usize::from(*back));
                let through = self.events.get(at).map_or(0, |offset| offset.0);
                let body = v1::GroupReset { group: group_name(*group), through, ..Default::default() };
                self.leader(of_leader(RecordKind::GroupReset, &body))
            }
            Attempt::LeaderCloses { max, also } => {
                let owed = self.state.obligations(usize::from(*max));
                let mut records: Vec<Record> = owed.iter().map(|(id, _)| closed(*id)).collect();
                records.push(closed(id(*also)));
                Batch::new(Source::Leader, &records)
            }
            Attempt::Forward { skew, commands } => {
                let watermark = self.state.watermark(PartitionId(1)).0;
                Batch::new(forward(1, watermark + 5, moved(watermark, *skew)), &self.commands(commands))
            }
            Attempt::Forwarded { back } => {
                let sources: Vec<u64> = self.state.outbox(PartitionId(1)).map(|entry| entry.source.0).collect();
                let through =
                    sources.get(sources.len().saturating_sub(usize::from(*back))).copied().unwrap_or_default();
                self.leader(of_leader(RecordKind::Forwarded, &v1::Forwarded { target: 1, through }))
            }
            Attempt::Trim { through, skipping } => {
                let skipping: Vec<String> = (0..2).filter(|n| skipping >> n & 1 == 1).map(group_name).collect();
                let at_most = Some(self.state.retention_limit(&skipping)).filter(|_| through % 2 == 0);
                let event = self.events.get(usize::from(*through)).copied();
                let through = at_most.or(event).map_or(0, |offset| offset.0);
                self.leader(of_leader(RecordKind::Trimmed, &v1::Trimmed { through, skipping }))
            }
            Attempt::Garbage { source, kind, body } => {
                let known = self.state.edge("e0");
                let source = match source {
                    0 => Source::Edge(v1::EdgeSource {
                        edge: "e0".into(),
                        incarnation: known.map_or(0, |edge| edge.incarnation),
                        sequence: known.map_or(0, |edge| edge.last_sequence) + 1,
                    }),
                    1 => Source::Commit,
                    2 => submit(),
                    3 => forward(1, 1 << 40, self.state.watermark(PartitionId(1)).0),
                    _ => Source::Leader,
                };
                Batch::new(source, &[garbage(*kind, id(1), body)])
            }
        }
    }

    fn leader(&self, record: Record) -> Batch {
        Batch::new(Source::Leader, &[record])
    }

    fn event(&self, edge: u8, incarnation: u64, event: &Event) -> Record {
        match event {
            Event::Open { n, group, channels } => {
                let body = v1::ConnectionOpened {
                    edge: edge_name(edge),
                    incarnation,
                    handler_group: group.map(group_name).unwrap_or_default(),
                    channels: channels.iter().map(|channel| channel_name(*channel)).collect(),
                    ..Default::default()
                };
                Record::new(RecordKind::ConnectionOpened, id(*n), "chat", &body)
            }
            Event::Message { n } => message(id(*n)),
            Event::Close { n } => closed(id(*n)),
            Event::Garbage { n, kind, body } => garbage(*kind, id(*n), body),
        }
    }

    fn commands(&self, commands: &[Command]) -> Vec<Record> {
        let whose = |away: bool, n: u8| if away { id_in(1, n) } else { id(n) };
        let command = |command: &Command| match command {
            Command::Push { away, n } => pushed(whose(*away, *n)),
            Command::Publish { channel } => published(&channel_name(*channel)),
            Command::PublishApi => {
                let body = v1::Published { api: "chat".into(), kind: 1, ..Default::default() };
                Record::new(RecordKind::Published, ConnectionId::NONE, "", &body)
            }
            Command::Close { n } => close_requested(id(*n), 1000),
            Command::Join { away, n, channel, edge } => {
                expand::joined(whose(*away, *n), &channel_name(*channel), if *edge { "e1" } else { "" })
            }
            Command::Leave { away, n, channel } => left(whose(*away, *n), &channel_name(*channel)),
            Command::Attributes { n, bytes } => attributes(id(*n), &[("k", &"x".repeat(usize::from(*bytes)))], &[]),
            Command::Accept { n, channels } => {
                let channels: Vec<String> = channels.iter().map(|channel| channel_name(*channel)).collect();
                accepted(id(*n), &channels.iter().map(String::as_str).collect::<Vec<_>>())
            }
            Command::Reject { n } => rejected(id(*n), 403),
        };
        commands.iter().map(command).collect()
    }

    /// Fates for the first open holes and the next events; the last of the events go on as holes.
    fn commit(&self, group: u8, skew: i8, base_skew: i8, settle: &[Fate], holes: u8, commands: &[Command]) -> Batch {
        let name = group_name(group);
        let view = self.state.group(&name);
        let (epoch, base) = view.map_or((0, 0), |view| (view.epoch, view.through.0));
        let fresh: Vec<u64> = self.events.iter().map(|offset| offset.0).filter(|offset| *offset > base).collect();
        let open = view.iter().flat_map(|view| view.holes()).map(|(offset, _)| offset.0).take(1).chain(fresh.clone());
        let fate = |(offset, fate): (u64, &Fate)| match fate {
            Fate::Acknowledged => (offset, ack()),
            Fate::Refused => {
                (offset, v1::outcome::Verdict::Refused(v1::Refused { delay_ms: 5, released: offset % 2 == 0 }))
            }
            Fate::Parked => {
                let parked = v1::Parked { reason: "r".into(), record: "b".into(), attempt: 1 };
                (offset, v1::outcome::Verdict::Parked(parked))
            }
        };
        let outcomes: Vec<(u64, v1::outcome::Verdict)> = open.zip(settle).map(fate).collect();
        let settled = outcomes.iter().filter(|(offset, _)| *offset > base).count();
        let listed: Vec<(u64, u32)> =
            fresh.iter().skip(settled).take(holes.into()).map(|offset| (*offset, 1)).collect();
        let last = outcomes.iter().map(|(offset, _)| *offset).chain(listed.iter().map(|(offset, _)| *offset)).max();
        let through = last.unwrap_or(base).max(base);
        let records = self.commands(commands);
        commit(&name, moved(epoch, skew), moved(base, base_skew), through, &outcomes, &listed, &records)
    }

    fn assign(&self, group: u8, skew: i8, give: u8, nobody: bool) -> Record {
        let group = group_name(group);
        let view = self.state.group(&group);
        let base = view.map_or(0, |view| view.through.0);
        let given = self.events.iter().filter(|offset| offset.0 > base).take(give.into());
        let holes: Vec<v1::Hole> =
            given.map(|offset| v1::Hole { offset: offset.0, attempt: 2, not_before: 0 }).collect();
        let body = v1::HandlerAssigned {
            member: if nobody { String::new() } else { "m".into() },
            epoch: moved(view.map_or(0, |view| view.epoch) + 1, skew),
            base,
            through: holes.last().map_or(base, |hole| hole.offset),
            holes,
            group,
            ..Default::default()
        };
        of_leader(RecordKind::HandlerAssigned, &body)
    }
}

/// What the properties say must hold, kept apart from the state machine.
#[derive(Default)]
pub(super) struct Model {
    /// Connections between opened and closed.
    open: BTreeSet<ConnectionId>,
    /// Last applied sequence by edge and incarnation.
    sequences: BTreeMap<(String, u64), u64>,
    epochs: BTreeMap<String, u64>,
    through: BTreeMap<String, Offset>,
    settled: BTreeMap<String, BTreeSet<u64>>,
    /// Applied events, oldest first.
    events: Vec<Offset>,
}

impl Model {
    pub(super) fn note(&mut self, index: LogIndex, entry: &Entry, applied: &Applied, state: &Partition) {
        for (batch, outcome) in entry.batches.iter().zip(&applied.outcomes) {
            if let (Source::Edge(source), Reply::Edge { last_sequence }) = (&batch.source, &outcome.reply) {
                let last = self.sequences.entry((source.edge.clone(), source.incarnation)).or_default();
                if *last_sequence == source.sequence && *last + 1 == source.sequence {
                    *last = source.sequence;
                } else {
                    assert_eq!((outcome.refusals(applied), *last), (batch.count, *last_sequence));
                }
            }
            for (n, record) in batch.iter().map(Result::unwrap).enumerate() {
                let position = outcome.first + n as u16;
                if !matches!(applied.verdict(position), Verdict::Refused(_)) {
                    self.record(Offset::new(index, position), &record);
                }
            }
        }
        for view in state.groups() {
            let through = self.through.entry(view.name.into()).or_default();
            assert!(view.through >= *through, "group {} went back", view.name);
            *through = view.through;
        }
    }

    fn record(&mut self, offset: Offset, record: &Record) {
        match record.kind {
            RecordKind::ConnectionOpened => assert!(self.open.insert(record.connection), "opened twice"),
            RecordKind::MessageReceived => assert!(self.open.contains(&record.connection), "message outside a life"),
            RecordKind::ConnectionClosed => assert!(self.open.remove(&record.connection), "closed twice"),
            RecordKind::HandlerAssigned => {
                let body: v1::HandlerAssigned = record.decode().unwrap();
                let epoch = self.epochs.entry(body.group).or_default();
                assert_eq!(body.epoch, *epoch + 1);
                *epoch = body.epoch;
            }
            RecordKind::GroupReset => {
                let body: v1::GroupReset = record.decode().unwrap();
                self.through.insert(body.group.clone(), Offset::ZERO);
                self.settled.entry(body.group).or_default().retain(|offset| *offset <= body.through);
            }
            RecordKind::ParkedReleased => {
                let body: v1::ParkedReleased = record.decode().unwrap();
                let settled = self.settled.entry(body.group).or_default();
                if !body.discard {
                    settled.retain(|offset| !body.offsets.contains(offset));
                }
            }
            RecordKind::GroupDropped => {
                let group = record.decode::<v1::GroupDropped>().unwrap().group;
                self.epochs.remove(&group);
                self.through.remove(&group);
                self.settled.remove(&group);
            }
            RecordKind::HandlerCommitted => {
                let body: v1::HandlerCommitted = record.decode().unwrap();
                assert_eq!(Some(&body.epoch), self.epochs.get(&body.group));
                let settled = self.settled.entry(body.group).or_default();
                for outcome in body.outcomes {
                    if !matches!(outcome.verdict, Some(v1::outcome::Verdict::Refused(_))) {
                        assert!(settled.insert(outcome.offset), "settled twice");
                    }
                }
            }
            _ => {}
        }
        if record.kind.is_event() {
            self.events.push(offset);
        }
    }
}

impl super::super::BatchOutcome {
    /// How many of its records are refused.
    fn refusals(&self, applied: &Applied) -> u16 {
        let records = self.first..self.first + self.count;
        applied.refused.iter().filter(|(position, _)| records.contains(position)).count() as u16
    }
}

/// What is refused as a whole.
fn is_refused(batch: &Batch, applied: &Applied) -> bool {
    let outcome = &applied.outcomes[0];
    let first = applied.refused.first().map(|(_, refusal)| refusal);
    match &batch.source {
        Source::Edge(source) => outcome.reply != Reply::Edge { last_sequence: source.sequence },
        Source::Commit => batch.count > 0 && applied.refused.first().is_some_and(|(position, _)| *position == 0),
        Source::Forward(_) => first == Some(&Refusal::ForwardGap),
        Source::Submit(source) => source.key.is_empty() && outcome.refusals(applied) == batch.count,
        Source::Leader => outcome.refusals(applied) == batch.count,
    }
}

fn sections(state: &Partition) -> Vec<u8> {
    let mut out = Writer(Vec::new());
    state.encode_sections(&mut out);
    out.0
}

/// Every delivery of apply is among those that a reader of the log makes for that edge, and no refused record makes others.
fn check_expansion(state: &Partition, index: LogIndex, entry: &Entry, applied: &Applied) {
    let logged = LoggedEntry { index, entry: entry.clone(), refused: applied.refused.clone() };
    let all: Vec<_> = expand::entry(state.id(), state.partition_count(), &logged).collect();
    let at = |position| all.iter().filter(move |(offset, _)| offset.position() == position).map(|(_, found)| found);
    for (position, refusal) in &applied.refused {
        let made = applied.deliveries.iter().filter(|delivery| delivery.position == *position).count();
        assert_eq!(at(*position).count(), made, "of a record refused as {refusal:?}");
    }
    for delivery in &applied.deliveries {
        let expanded: Vec<_> = at(delivery.position).collect();
        let reaches = |recipient: &Recipient| match (recipient, &delivery.targets) {
            (Recipient::Everyone, _) => true,
            (Recipient::Edge(name), Targets::Edges(edges)) => edges[..] == [state.edge_index(name).unwrap()],
            // closed later in the same entry: nobody needs it
            (Recipient::Connection(id), Targets::Edges(edges)) => {
                state.connection(id).is_none_or(|view| edges[..] == [view.edge_index])
            }
            _ => false,
        };
        let found = expanded.iter().any(|found| found.record == delivery.record && reaches(&found.recipient));
        assert!(found, "{delivery:?} is not among {expanded:?}");
    }
}

/// The entry that these attempts make.
pub(super) fn written(state: &Partition, model: &Model, attempts: &[Attempt], time: i64) -> Bytes {
    let writers = Writers { state, events: &model.events };
    let mut builder = EntryBuilder::new(Timestamp(time as u64), 0);
    for attempt in attempts {
        builder.push(&writers.batch(attempt));
    }
    builder.finish()
}

/// The properties say nothing about what random logs never do.
#[test]
fn random_logs_reach_every_kind_of_record_and_refusal() {
    let mut runner = TestRunner::deterministic();
    let mut reached = Reached::default();
    for _ in 0..200 {
        let entries = prop::collection::vec(entry(), 80).new_tree(&mut runner).unwrap().current();
        let mut state = Partition::new(PartitionId(0), PartitionCount::new(2).unwrap());
        let (mut model, mut time) = (Model::default(), 1_000_000_000i64);
        for (n, (attempts, passed)) in entries.iter().enumerate() {
            time += passed;
            let index = LogIndex(n as u64 + 1);
            let entry = Entry::parse(&written(&state, &model, attempts, time)).unwrap();
            let applied = state.apply(index, &entry);
            model.note(index, &entry, &applied, &state);
            reached.note(&entry, &applied);
        }
    }
    reached.check();
}

/// Kinds of records that were applied, and refusals.
#[derive(Clone, PartialEq, Eq, Default)]
pub(super) struct Reached {
    kinds: BTreeSet<String>,
    refusals: BTreeSet<String>,
}

impl Reached {
    pub(super) fn note(&mut self, entry: &Entry, applied: &Applied) {
        for (position, record) in entry.batches.iter().flat_map(Batch::iter).map(Result::unwrap).enumerate() {
            match applied.verdict(position as u16) {
                Verdict::Refused(refusal) => {
                    self.refusals.insert(format!("{refusal:?}").split(' ').next().unwrap().to_owned())
                }
                Verdict::Applied => self.kinds.insert(format!("{:?}", record.kind)),
                Verdict::Forwarded(_) => self.kinds.insert(format!("{:?} forwarded", record.kind)),
            };
        }
    }

    /// That these are all there are.
    pub(super) fn check(&self) {
        let Self { kinds, refusals } = self;
        let mut expected: BTreeSet<String> = RecordKind::ALL.iter().map(|kind| format!("{kind:?}")).collect();
        expected.remove("ApplyVersion"); // none can apply while there is one version
        expected
            .extend(["Pushed", "Published", "ChannelJoined", "ChannelLeft"].map(|kind| format!("{kind} forwarded")));
        assert_eq!(expected.difference(kinds).collect::<Vec<_>>(), [""; 0]);
        let expected = [
            "Gone",
            "OutOfSequence",
            "Fenced",
            "ConnectionExists",
            "StaleEpoch",
            "NotOpen",
            "NotPending",
            "Repeated",
            "KeyReused",
            "ForwardGap",
            "Limit",
            "Malformed",
            "WithBatch",
        ];
        assert_eq!(*refusals, expected.map(str::to_owned).into());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn the_state_is_a_function_of_its_log(
        entries in prop::collection::vec(entry(), 1..80),
        snapshot_at in any::<prop::sample::Index>(),
    ) {
        let count = PartitionCount::new(2).unwrap();
        let mut state = Partition::new(PartitionId(0), count);
        let (mut replica, mut restored) = (state.clone(), state.clone());
        let (mut model, mut time) = (Model::default(), 1_000_000_000i64);
        let snapshot_at = snapshot_at.index(entries.len());
        for (n, (attempts, passed)) in entries.iter().enumerate() {
            time += passed;
            let index = LogIndex(n as u64 + 1);
            let bytes = written(&state, &model, attempts, time);
            let entry = Entry::parse(&bytes).unwrap();

            let mut before = state.clone();
            let applied = state.apply(index, &entry);
            state.check().map_err(TestCaseError::fail)?;
            model.note(index, &entry, &applied, &state);
            check_expansion(&state, index, &entry, &applied);
            prop_assert!(applied.refused.is_sorted_by(|one, next| one.0 < next.0));
            prop_assert!(applied.forwarded.is_sorted_by(|one, next| one.0 < next.0));

            let same = replica.apply(index, &Entry::parse(&bytes).unwrap());
            prop_assert_eq!(&same, &applied);
            prop_assert_eq!(replica.digest(), state.digest());
            prop_assert_eq!(restored.apply(index, &entry), applied.clone());
            if n == snapshot_at {
                restored = Partition::decode(&restored.encode()).unwrap();
            }
            if let [batch] = &entry.batches[..] && is_refused(batch, &applied) {
                before.dedup.expire(applied.time);
                prop_assert_eq!(sections(&before), sections(&state), "{:?}", attempts);
            }
        }
        prop_assert_eq!(state.state_digest(), replica.state_digest());
        prop_assert_eq!(state.state_digest(), restored.state_digest());
        let open: BTreeSet<ConnectionId> = state.connections_after(None).map(|view| view.id).collect();
        prop_assert_eq!(open, model.open);
    }

    #[test]
    fn the_state_inside_an_entry_is_that_of_an_entry_that_ends_there(
        entries in prop::collection::vec(entry(), 1..40),
        picked in any::<prop::sample::Index>(),
    ) {
        let mut state = Partition::new(PartitionId(0), PartitionCount::new(2).unwrap());
        let (mut model, mut time) = (Model::default(), 1_000_000_000i64);
        for (n, (attempts, passed)) in entries.iter().enumerate() {
            time += passed;
            let index = LogIndex(n as u64 + 1);
            let entry = Entry::parse(&written(&state, &model, attempts, time)).unwrap();
            let records: u16 = entry.batches.iter().map(|batch| batch.count).sum();
            let (position, mut inside) = (picked.index(usize::from(records.max(1))) as u16, state.clone());
            inside.apply_until(index, &entry, position);
            inside.check().map_err(TestCaseError::fail)?;
            let (shorter, cuts_commit) = ending_at(&entry, position);
            if !cuts_commit {
                let mut ended = state.clone();
                ended.apply(index, &shorter);
                prop_assert_eq!(inside.digest(), ended.digest());
                prop_assert_eq!(inside.encode(), ended.encode(), "{:?}", attempts);
            }
            let mut last = state.clone();
            last.apply_until(index, &entry, records.saturating_sub(1));
            let applied = state.apply(index, &entry);
            prop_assert_eq!(last.encode(), state.encode());
            model.note(index, &entry, &applied, &state);
        }
    }
}

/// The entry without the records after `position`, and whether that takes some from a commit, which says how many it has.
fn ending_at(entry: &Entry, position: u16) -> (Entry, bool) {
    let (mut builder, mut left) = (EntryBuilder::new(entry.time, 0), position + 1);
    for batch in &entry.batches {
        let taken = batch.count.min(left);
        left -= taken;
        let records: Vec<Record> = batch.iter().map(Result::unwrap).take(usize::from(taken)).collect();
        if taken > 0 || batch.count == 0 {
            builder.push(&Batch::new(batch.source.clone(), &records));
        }
        if taken < batch.count {
            let cuts_commit = taken > 0 && batch.source == Source::Commit;
            return (Entry::parse(&builder.finish()).unwrap(), cuts_commit);
        }
    }
    (entry.clone(), false)
}
