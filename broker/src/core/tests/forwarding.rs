//! Forwards between partitions: by example, then random logs with lost, repeated and reordered forwards.

use std::collections::BTreeMap;

use proptest::prelude::*;
use trunkline_proto::{Batch, Offset, PartitionId, RecordKind, Source, v1};

use super::{
    super::{Applied, OutboxItem, Refusal, Reply, Verdict, expand},
    log::Log,
    *,
};

/// A channel of that partition, of two.
fn channel(partition: u16, count: u16) -> String {
    let count = trunkline_proto::PartitionCount::new(count).unwrap();
    (0..).map(|n| format!("c{n}")).find(|name| count.of_name(name) == PartitionId(partition)).unwrap()
}

fn pair() -> (Log, Log) {
    let (mut zero, mut one) = (Log::of(0, 2), Log::of(1, 2));
    zero.leader(&[attached("e1", 0, "n")]);
    one.leader(&[attached("e1", 1, "n")]);
    (zero, one)
}

/// The batches that the leader of `source` would send to `target`.
fn batches(source: &Log, target: PartitionId) -> Vec<(Offset, Batch)> {
    let state = &source.state;
    let batch = |entry: super::super::OutboxEntry<'_>| {
        let records = match entry.item {
            OutboxItem::Made(records) => records.to_vec(),
            OutboxItem::Logged => {
                let (_, logged) = source.entries.iter().find(|(index, _)| *index == entry.source.index()).unwrap();
                let mut records = logged.batches.iter().flat_map(Batch::iter);
                vec![records.nth(entry.source.position().into()).unwrap().unwrap()]
            }
        };
        let header = forward(state.id().0.into(), entry.source.0, entry.predecessor.0);
        (entry.source, Batch::new(header, &records))
    };
    state.outbox(target).map(batch).collect()
}

#[test]
fn a_join_of_another_partitions_channel_is_forwarded_with_the_edge() {
    let (mut zero, mut one) = pair();
    let away = channel(1, 2);
    let applied = zero.edge(&[opened(id(1), "", &[&away, &channel(0, 2)])]);
    assert_eq!((applied.verdict(0), applied.deliveries.len()), (Verdict::Applied, 1));
    let sent = batches(&zero, PartitionId(1));
    assert_eq!(sent.len(), 1);
    let applied = one.put(&[sent[0].1.clone()]);
    assert_eq!(applied.reply(), Reply::Watermark { offset: sent[0].0 });
    assert_eq!(applied.deliveries[0].record, expand::joined(id(1), &away, "e1"));
    assert_eq!(one.state.channel_members(&away).collect::<Vec<_>>(), [id(1)]);
    let done = v1::Forwarded { target: 1, through: sent[0].0.0 };
    assert_eq!(zero.state.outbox_len(), 1);
    zero.leader(&[of_leader(RecordKind::Forwarded, &done)]);
    assert_eq!((zero.state.outbox_len(), zero.state.outbox_targets().count()), (0, 0));
    // the next one knows its predecessor
    zero.edge(&[closed(id(1))]);
    let next = batches(&zero, PartitionId(1));
    assert!(one.put(&[next[0].1.clone()]).refused.is_empty());
    assert_eq!(one.state.channel_count(), 0);
}

#[test]
fn a_forward_that_does_not_follow_the_last_one_is_refused_and_told_the_watermark() {
    let (_, mut one) = pair();
    let command = [pushed(id_in(1, 1))];
    assert_eq!(one.one(forward(0, 100, 0), &command).reply(), Reply::Watermark { offset: Offset(100) });
    for (offset, predecessor) in [(100, 0), (200, 150), (100, 100), (50, 100), (200, 0)] {
        let applied = one.one(forward(0, offset, predecessor), &command);
        assert_eq!(
            (applied.verdict(0), applied.reply()),
            (refused(Refusal::ForwardGap), Reply::Watermark { offset: Offset(100) })
        );
    }
    assert_eq!(one.one(forward(0, 200, 100), &command).reply(), Reply::Watermark { offset: Offset(200) });
    for impossible in [1, 2, 70_000] {
        assert_eq!(one.one(forward(impossible, 9, 0), &command).verdict(0), refused(Refusal::Malformed));
    }
}

#[test]
fn commands_for_another_partition_are_forwarded_as_they_stand() {
    let (mut zero, mut one) = pair();
    let body: v1::ConnectionOpened = opened(id_in(1, 1), "", &[]).decode().unwrap();
    one.edge(&[Record::new(RecordKind::ConnectionOpened, id_in(1, 1), "chat", &body)]);
    let commands =
        [pushed(id_in(1, 1)), published(&channel(1, 2)), pushed(id_in(1, 9)), joined(id_in(1, 1), &channel(0, 2))];
    let applied = zero.one(submit(), &commands);
    assert_eq!(applied.forwarded, [0, 1, 2, 3].map(|position| (position, PartitionId(1))));
    assert_eq!(zero.verdict(submit(), accepted(id_in(1, 1), &[])), refused(Refusal::NotPending));
    for (n, (_, batch)) in batches(&zero, PartitionId(1)).into_iter().enumerate() {
        let verdict = if n == 2 { refused(Refusal::Gone) } else { Verdict::Applied };
        assert_eq!(one.put(&[batch]).verdict(0), verdict);
    }
    // the join goes back, to the channel's partition
    let back = batches(&one, PartitionId(0));
    assert_eq!(back.len(), 1);
    zero.put(&[back[0].1.clone()]);
    assert_eq!(zero.state.channel_members(&channel(0, 2)).collect::<Vec<_>>(), [id_in(1, 1)]);
}

#[test]
fn a_join_for_an_edge_unknown_here_names_it() {
    let mut one = Log::of(1, 2);
    let join = expand::joined(id(1), &channel(1, 2), "e5");
    let applied = one.one(forward(0, 9, 0), &[join]);
    let edge = one.state.edge_index("e5").unwrap();
    assert!(applied.deliveries[0].targets.contains(edge));
    assert_eq!(one.state.edge("e5").unwrap().incarnation, 0);
}

#[test]
fn what_no_partition_would_forward_is_malformed() {
    let mut one = Log::of(1, 2);
    let (own, away) = (channel(1, 2), channel(0, 2));
    let records = [
        expand::joined(id(1), &away, "e1"), // not this partition's channel
        expand::joined(id(1), &own, ""),    // no edge
        pushed(id(1)),                      // not this partition's connection
        published(&away),
    ];
    let applied = one.one(forward(0, 9, 0), &records);
    assert_eq!(applied.refused, [0, 1, 2, 3].map(|position| (position, Refusal::Malformed)));
}

#[test]
fn what_is_not_forwarded_is_not_trimmed() {
    let (mut zero, _) = pair();
    zero.one(submit(), &[pushed(id_in(1, 1))]);
    let source = zero.offset(0).0;
    zero.leader(&[]);
    let trim = of_leader(RecordKind::Trimmed, &v1::Trimmed { through: source, ..Default::default() });
    assert_eq!(zero.verdict(Source::Leader, trim.clone()), refused(Refusal::NotOpen));
    zero.leader(&[of_leader(RecordKind::Forwarded, &v1::Forwarded { target: 1, through: source })]);
    assert_eq!(zero.verdict(Source::Leader, trim), Verdict::Applied);
}

const PARTITIONS: u8 = 3;

#[derive(Clone, Debug)]
enum Step {
    Open {
        partition: u8,
        n: u8,
        channels: Vec<u8>,
    },
    Close {
        partition: u8,
        n: u8,
    },
    Join {
        at: u8,
        partition: u8,
        n: u8,
        channel: u8,
    },
    Leave {
        at: u8,
        partition: u8,
        n: u8,
        channel: u8,
    },
    Push {
        at: u8,
        partition: u8,
        n: u8,
    },
    Publish {
        at: u8,
        channel: u8,
    },
    /// Sends the forward at this place of the outbox, in or out of turn, and remembers it.
    Send {
        from: u8,
        to: u8,
        place: u8,
    },
    /// Sends a forward of the past again.
    Resend {
        pick: prop::sample::Index,
    },
    /// Tells the source how far the target is.
    Forwarded {
        from: u8,
        to: u8,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let p = || 0..PARTITIONS;
    prop_oneof![
        3 => (p(), 0..4u8, prop::collection::vec(0..6u8, 0..4))
            .prop_map(|(partition, n, channels)| Step::Open { partition, n, channels }),
        2 => (p(), 0..4u8).prop_map(|(partition, n)| Step::Close { partition, n }),
        4 => (p(), p(), 0..4u8, 0..6u8).prop_map(|(at, partition, n, channel)| Step::Join { at, partition, n, channel }),
        2 => (p(), p(), 0..4u8, 0..6u8).prop_map(|(at, partition, n, channel)| Step::Leave { at, partition, n, channel }),
        2 => (p(), p(), 0..4u8).prop_map(|(at, partition, n)| Step::Push { at, partition, n }),
        2 => (p(), 0..6u8).prop_map(|(at, channel)| Step::Publish { at, channel }),
        8 => (p(), p(), prop_oneof![4 => Just(0u8), 1 => 0..4u8]).prop_map(|(from, to, place)| Step::Send { from, to, place }),
        2 => any::<prop::sample::Index>().prop_map(|pick| Step::Resend { pick }),
        3 => (p(), p()).prop_map(|(from, to)| Step::Forwarded { from, to }),
    ]
}

/// Partitions that forward to each other, and what each has taken from each.
struct Cluster {
    logs: Vec<Log>,
    /// Forwards ever put into an outbox, by (source, target), in order.
    asked: BTreeMap<(u16, u16), Vec<Offset>>,
    taken: BTreeMap<(u16, u16), Vec<Offset>>,
    sent: Vec<(u16, Batch)>,
}

impl Cluster {
    fn new() -> Self {
        let mut logs: Vec<Log> = (0..PARTITIONS).map(|id| Log::of(id.into(), PARTITIONS.into())).collect();
        for (n, log) in logs.iter_mut().enumerate() {
            log.leader(&[attached("e1", u64::from(n > 0), "n")]);
        }
        Self { logs, asked: BTreeMap::new(), taken: BTreeMap::new(), sent: Vec::new() }
    }

    fn run(&mut self, step: Step) {
        let name = |channel: u8| format!("c{channel}");
        match step {
            Step::Open { partition, n, channels } => {
                let names: Vec<String> = channels.into_iter().map(name).collect();
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                self.at(partition, |log| log.edge(&[opened(id_in(partition, n), "", &names)]));
            }
            Step::Close { partition, n } => {
                self.at(partition, |log| log.edge(&[closed(id_in(partition, n))]));
            }
            Step::Join { at, partition, n, channel } => self.submit(at, joined(id_in(partition, n), &name(channel))),
            Step::Leave { at, partition, n, channel } => self.submit(at, left(id_in(partition, n), &name(channel))),
            Step::Push { at, partition, n } => self.submit(at, pushed(id_in(partition, n))),
            Step::Publish { at, channel } => self.submit(at, published(&name(channel))),
            Step::Send { from, to, place } => {
                if let Some((_, batch)) =
                    batches(&self.logs[usize::from(from)], PartitionId(to.into())).get(usize::from(place))
                {
                    self.sent.push((to.into(), batch.clone()));
                    self.deliver(to.into(), batch.clone());
                }
            }
            Step::Resend { pick } => {
                if !self.sent.is_empty() {
                    let (to, batch) = pick.get(&self.sent).clone();
                    self.deliver(to, batch);
                }
            }
            Step::Forwarded { from, to } => {
                let through = self.logs[usize::from(to)].state.watermark(PartitionId(from.into())).0;
                if from != to {
                    let body = v1::Forwarded { target: to.into(), through };
                    self.at(from, |log| log.leader(&[of_leader(RecordKind::Forwarded, &body)]));
                }
            }
        }
    }

    fn submit(&mut self, at: u8, record: Record) {
        self.at(at, |log| log.one(super::submit(), &[record]));
    }

    /// Runs a step at a partition and notes what it put into its outbox.
    fn at(&mut self, partition: u8, step: impl FnOnce(&mut Log) -> Applied) -> Applied {
        let log = &mut self.logs[usize::from(partition)];
        let applied = step(log);
        let now = log.state.applied();
        for target in log.state.outbox_targets() {
            // one record an entry here
            assert_eq!(log.state.outbox_after(target, Offset::new(now, 0)).count(), 0);
            let before = Offset::end_of(trunkline_proto::LogIndex(now.0 - 1));
            let new = log.state.outbox_after(target, before).map(|entry| entry.source);
            self.asked.entry((partition.into(), target.0)).or_default().extend(new);
        }
        applied
    }

    fn deliver(&mut self, to: u16, batch: Batch) {
        let Source::Forward(source) = batch.source.clone() else { panic!("no forward") };
        let applied = self.at(to as u8, |log| log.put(&[batch]));
        if applied.reply() == (Reply::Watermark { offset: Offset(source.offset) })
            && !applied.refused.contains(&(0, Refusal::ForwardGap))
        {
            self.taken.entry((source.partition as u16, to)).or_default().push(Offset(source.offset));
        }
    }

    /// Sends all that waits until nothing does.
    fn heal(&mut self) {
        for _ in 0..10 {
            for from in 0..PARTITIONS {
                for to in (0..PARTITIONS).filter(|to| *to != from) {
                    for (_, batch) in batches(&self.logs[usize::from(from)], PartitionId(to.into())) {
                        self.deliver(to.into(), batch);
                    }
                    self.run(Step::Forwarded { from, to });
                }
            }
        }
        assert!(self.logs.iter().all(|log| log.state.outbox_len() == 0));
    }

    /// Channel members are exactly the open connections that have the channel on their list.
    fn check_members(&self) {
        let mut expected = std::collections::BTreeSet::new();
        let mut found = std::collections::BTreeSet::new();
        for log in &self.logs {
            for view in log.state.connections_after(None) {
                expected.extend(view.channels.iter().map(|channel| (channel.to_string(), view.id)));
            }
            for channel in log.state.channels() {
                found.extend(log.state.channel_members(channel).map(|id| (channel.to_owned(), id)));
            }
        }
        assert_eq!(expected, found);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(128) })]

    #[test]
    fn every_forward_is_taken_once_and_in_order(steps in prop::collection::vec(step(), 1..120)) {
        let mut cluster = Cluster::new();
        for step in steps {
            cluster.run(step);
            for (pair, taken) in &cluster.taken {
                prop_assert!(cluster.asked[pair].starts_with(taken), "{:?}", pair);
            }
        }
        cluster.heal();
        for (pair, asked) in &cluster.asked {
            if !asked.is_empty() {
                prop_assert_eq!(Some(asked), cluster.taken.get(pair));
            }
        }
        cluster.check_members();
        for log in &cluster.logs {
            prop_assert!(log.replayed() == log.state);
        }
    }
}
