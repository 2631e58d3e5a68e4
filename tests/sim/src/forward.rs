//! Carries a partition's outbox to its targets while this broker leads, after `broker/src/forward.rs`. The target's leader may be on
//! another broker.

use std::collections::{BTreeMap, VecDeque};

use trunkline_broker::core::{OutboxItem, Partition};
use trunkline_proto::{Batch, Offset, PartitionId, Record, RecordKind, Source, v1};

use crate::{
    Time,
    context::Context,
    delivery::View,
    millis,
    net::{Body, Node},
};

/// Forwards to one target on their way at once.
const PIPELINE_MAX: usize = 8;
/// Forwards that a target holds before the state is told, unless nothing else is under way.
const ACKNOWLEDGE_EVERY: usize = 4;
/// After a target could not be reached.
const RETRY: Time = millis(100);
/// Without an answer.
const PATIENCE: Time = millis(800);

#[derive(Debug)]
struct Sent {
    offset: Offset,
    ticket: u64,
    at: Time,
    /// The answer, once it has come.
    answer: Option<Option<Offset>>,
}

#[derive(Default, Debug)]
struct Target {
    sent: Offset,
    pending: VecDeque<Sent>,
    held: Offset,
    acknowledged: Offset,
    unacknowledged: usize,
    is_broken: bool,
    retry_at: Time,
}

/// See the module's head.
#[derive(Default, Debug)]
pub(crate) struct Forwarder {
    targets: BTreeMap<PartitionId, Target>,
}

impl Forwarder {
    /// Sends what waits, and gives what the state is to be told.
    pub(crate) fn pump(&mut self, context: &mut Context, view: View<'_>, leaders: &[Option<u8>]) -> Option<Batch> {
        let waiting: Vec<PartitionId> = view.state.outbox_targets().collect();
        for id in waiting {
            let target = self.targets.entry(id).or_default();
            target.settle(context.now);
            target.fill(context, view, id, leaders[usize::from(id.0)]);
        }
        self.acknowledge()
    }

    fn acknowledge(&mut self) -> Option<Batch> {
        let mut records = Vec::new();
        for (id, target) in &mut self.targets {
            let due = target.unacknowledged >= ACKNOWLEDGE_EVERY || target.pending.is_empty();
            if due && target.held > target.acknowledged {
                let forwarded = v1::Forwarded { target: u32::from(id.0), through: target.held.0 };
                records.push(Record::new(RecordKind::Forwarded, Default::default(), "", &forwarded));
                target.acknowledged = target.held;
                target.unacknowledged = 0;
            }
        }
        (!records.is_empty()).then(|| Batch::new(Source::Leader, &records))
    }

    pub(crate) fn answered(&mut self, to: PartitionId, ticket: u64, watermark: Option<Offset>) {
        let Some(target) = self.targets.get_mut(&to) else { return };
        if let Some(sent) = target.pending.iter_mut().find(|sent| sent.ticket == ticket) {
            sent.answer.get_or_insert(watermark);
        }
    }

    /// The most that may be under way to one target.
    pub(crate) fn is_bounded(&self) -> bool {
        self.targets.values().all(|target| target.pending.len() <= PIPELINE_MAX)
    }
}

impl Target {
    /// Takes the answers in the order of what was sent.
    fn settle(&mut self, now: Time) {
        while let Some(first) = self.pending.front() {
            let answer = match first.answer {
                Some(answer) => answer,
                None if now >= first.at + PATIENCE => None,
                None => break,
            };
            let offset = first.offset;
            self.pending.pop_front();
            match answer {
                Some(watermark) => {
                    self.unacknowledged += 1;
                    self.held = self.held.max(watermark);
                    self.is_broken |= watermark != offset;
                }
                None => self.is_broken = true,
            }
            if self.is_broken && self.pending.is_empty() {
                self.is_broken = false;
                self.sent = self.held;
                self.retry_at = now + RETRY;
            }
        }
    }

    fn fill(&mut self, context: &mut Context, view: View<'_>, id: PartitionId, leader: Option<u8>) {
        let Some(leader) = leader else { return };
        let room = PIPELINE_MAX - self.pending.len();
        if self.is_broken || context.now < self.retry_at || room == 0 {
            return;
        }
        let items: Vec<(Offset, Batch)> = items(view.state, view, id, self.sent).take(room).collect();
        for (offset, batch) in items {
            let ticket = context.serial();
            let body = Body::Forward { to: id, from: view.state.id(), ticket, batch };
            context.send(Node::Broker(view.broker), Node::Broker(leader), body);
            context.oracle.count("forwards sent");
            self.sent = offset;
            self.pending.push_back(Sent { offset, ticket, at: context.now, answer: None });
        }
    }
}

fn items<'a>(
    state: &'a Partition,
    view: View<'a>,
    target: PartitionId,
    after: Offset,
) -> impl Iterator<Item = (Offset, Batch)> + 'a {
    state.outbox_after(target, after).filter_map(move |entry| {
        let records = match entry.item {
            OutboxItem::Logged => vec![view.record(entry.source)?],
            OutboxItem::Made(records) => records.to_vec(),
        };
        let source = v1::ForwardSource {
            partition: u32::from(state.id().0),
            offset: entry.source.0,
            predecessor: entry.predecessor.0,
        };
        Some((entry.source, Batch::new(Source::Forward(source), &records)))
    })
}
