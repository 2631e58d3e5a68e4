//! Carries what one partition's log asks of others to them: one task for each partition that this broker leads. The state keeps an outbox
//! for each target; this sends it in order, a batch for each source record, and has the state drop what the target holds. Sending may
//! repeat, at any failure: the target's watermark refuses what it has, so that each command takes effect once (DESIGN.md 7).

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use trunkline_proto::{Batch, LogIndex, Offset, PartitionId, Record, RecordKind, Source, v1};

use crate::{
    append::{AppendError, Appended, Pending},
    core::{OutboxItem, Reply},
    node::{Node, PartitionHandle, ReadError, Role},
    submit,
    tail::TailRead,
};

/// Forwards to one target on their way at once. When full the outbox waits.
const PIPELINE_MAX: usize = 256;
/// Forwards that a target holds before the state is told, unless nothing else is under way.
const ACKNOWLEDGE_EVERY: usize = 256;
/// After a target could not be reached.
const RETRY: Duration = Duration::from_millis(250);

/// Runs the forwarders of all of the broker's partitions until `shutdown`.
pub async fn run(node: Node, shutdown: CancellationToken) {
    let mut tasks = JoinSet::new();
    if node.partition_count().get() == 1 {
        return; // nowhere to forward to
    }
    for id in node.partition_count().iter() {
        if let Some(partition) = node.partition(id) {
            tasks.spawn(lead(node.clone(), partition.clone(), shutdown.clone()));
        }
    }
    while tasks.join_next().await.is_some() {}
}

/// Forwards while this broker leads.
async fn lead(node: Node, partition: PartitionHandle, shutdown: CancellationToken) {
    let mut role = partition.role.clone();
    while !shutdown.is_cancelled() {
        let leads = matches!(*role.borrow_and_update(), Role::Leader { .. });
        let deposed = async {
            if role.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let mut forwarder = Forwarder { node: node.clone(), source: partition.clone(), targets: BTreeMap::new() };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = deposed => {}
            () = forwarder.run(), if leads => {}
        }
    }
}

/// What is on its way to one target.
#[derive(Default)]
struct Target {
    /// Source offset of the last forward sent.
    sent: Offset,
    pending: VecDeque<(Offset, Pending)>,
    /// The target holds everything up to here.
    held: Offset,
    /// The state knows that.
    acknowledged: Offset,
    /// Since then.
    unacknowledged: usize,
    /// One of the pipeline failed or was refused: those behind it will be too. Nothing more is sent until they are back.
    is_broken: bool,
    /// Cannot be reached before.
    retry_at: Option<tokio::time::Instant>,
}

struct Forwarder {
    node: Node,
    source: PartitionHandle,
    targets: BTreeMap<PartitionId, Target>,
}

/// A forward taken out of the outbox.
struct Item {
    offset: Offset,
    predecessor: Offset,
    /// `None`: the source record itself.
    made: Option<Vec<Record>>,
}

impl Forwarder {
    async fn run(&mut self) {
        loop {
            let seen = self.source.tail.applied();
            let progress = match self.fill().await {
                Ok(progress) => progress,
                Err(error) => {
                    tracing::error!(partition = %self.source.id, %error, "a command to forward cannot be read");
                    tokio::time::sleep(RETRY * 20).await;
                    false
                }
            };
            self.acknowledge().await;
            if progress {
                continue;
            }
            let retry_at = self.targets.values().filter_map(|target| target.retry_at).min();
            let source = self.source.tail.clone();
            tokio::select! {
                (target, offset, result) = next_result(&mut self.targets) => self.handle_result(target, offset, result),
                () = source.wait_past(seen) => {}
                () = tokio::time::sleep_until(retry_at.unwrap_or_else(tokio::time::Instant::now)), if retry_at.is_some() => {
                    for target in self.targets.values_mut() {
                        target.retry_at = None;
                    }
                }
            }
        }
    }

    /// Sends what the outbox holds, as far as the pipelines have room. Says whether anything was sent.
    async fn fill(&mut self) -> Result<bool, ReadError> {
        let waiting: Vec<PartitionId> = self.source.state.read().outbox_targets().collect();
        let mut progress = false;
        for id in waiting {
            let target = self.targets.entry(id).or_default();
            let room = PIPELINE_MAX.saturating_sub(target.pending.len());
            if room == 0 || target.is_broken || target.retry_at.is_some() {
                continue;
            }
            let items: Vec<Item> = {
                let state = self.source.state.read();
                let entries = state.outbox_after(id, target.sent).take(room.min(64));
                entries
                    .map(|entry| Item {
                        offset: entry.source,
                        predecessor: entry.predecessor,
                        made: match entry.item {
                            OutboxItem::Logged => None,
                            OutboxItem::Made(records) => Some(records.to_vec()),
                        },
                    })
                    .collect()
            };
            for item in items {
                let records = match item.made {
                    Some(records) => records,
                    None => vec![logged(&self.node, &self.source, item.offset).await?],
                };
                let source = v1::ForwardSource {
                    partition: u32::from(self.source.id.0),
                    offset: item.offset.0,
                    predecessor: item.predecessor.0,
                };
                let Some(target) = self.targets.get_mut(&id) else { break };
                if !send(&self.node, id, target, item.offset, Batch::new(Source::Forward(source), &records)).await {
                    break;
                }
                progress = true;
            }
        }
        Ok(progress)
    }

    fn handle_result(&mut self, id: PartitionId, offset: Offset, result: Result<Appended, AppendError>) {
        let Some(target) = self.targets.get_mut(&id) else { return };
        target.pending.pop_front();
        match result {
            Ok(appended) => match appended.outcome().reply {
                Reply::Watermark { offset: watermark } => {
                    target.unacknowledged += 1;
                    target.held = target.held.max(watermark);
                    if watermark != offset {
                        // refused: the target has more, or less, than was thought; everything behind it is refused too
                        tracing::debug!(source = %self.source.id, target = %id, %offset, %watermark, "forward out of step");
                        target.is_broken = true;
                    }
                }
                ref other => tracing::error!(target = %id, ?other, "a forward was answered with something else"),
            },
            Err(error) => {
                tracing::debug!(source = %self.source.id, target = %id, %error, "forward failed");
                target.is_broken = true;
            }
        }
        if target.is_broken && target.pending.is_empty() {
            // begin again after what the target holds
            target.is_broken = false;
            target.sent = target.held;
            target.retry_at = Some(tokio::time::Instant::now() + RETRY);
        }
    }

    /// Has the state drop what its target holds: when much is held, or nothing else is under way.
    async fn acknowledge(&mut self) {
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
        // not awaited: what is lost with the leadership is acknowledged again by the next leader
        if !records.is_empty()
            && let Err(error) = self.source.append.enqueue(Batch::new(Source::Leader, &records)).await
        {
            tracing::debug!(source = %self.source.id, %error, "forwards are not acknowledged");
            for target in self.targets.values_mut() {
                target.acknowledged = Offset::ZERO;
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// Queues a batch at the target. False if it cannot be reached now.
async fn send(node: &Node, id: PartitionId, target: &mut Target, offset: Offset, batch: Batch) -> bool {
    let queued = match node.partition(id) {
        Some(partition) => partition.append.enqueue(batch).await,
        None => Err(AppendError::NotLeader { leader: None }),
    };
    match queued {
        Ok(pending) => {
            target.sent = offset;
            target.pending.push_back((offset, pending));
            true
        }
        Err(error) => {
            tracing::debug!(target = %id, %error, "forward waits");
            target.retry_at = Some(tokio::time::Instant::now() + RETRY);
            false
        }
    }
}

/// The next answer of any target, in order for each. Waits for ever with nothing under way. Cancel safe.
async fn next_result(
    targets: &mut BTreeMap<PartitionId, Target>,
) -> (PartitionId, Offset, Result<Appended, AppendError>) {
    std::future::poll_fn(|context| {
        for (id, target) in targets.iter_mut() {
            let Some((offset, pending)) = target.pending.front_mut() else { continue };
            let result = std::pin::pin!(submit::resolve(pending)).poll(context);
            if let std::task::Poll::Ready(result) = result {
                return std::task::Poll::Ready((*id, *offset, result));
            }
        }
        std::task::Poll::Pending
    })
    .await
}

/// The record at `offset` of the source's log.
async fn logged(node: &Node, source: &PartitionHandle, offset: Offset) -> Result<Record, ReadError> {
    let before = LogIndex(offset.index().0.saturating_sub(1));
    let damaged = || ReadError::Damaged {
        place: format!("partition {}, offset {offset}", source.id),
        reason: "a command to forward is not there".to_owned(),
    };
    if let TailRead::Entries(entries) = source.tail.read(before, 1)
        && let Some(entry) = entries.first().filter(|entry| entry.logged.index == offset.index())
    {
        return entry.logged.records().find(|(at, _)| *at == offset).map(|(_, record)| record).ok_or_else(damaged);
    }
    let read = node.read_log(source.id, before, 1).await?;
    let entry = read.entries.first().filter(|entry| entry.index == offset.index()).ok_or_else(damaged)?;
    entry.records().find(|(at, _)| *at == offset).map(|(_, record)| record).ok_or_else(damaged)
}
