//! Carries what one partition's log asks of others to them: one task for each partition that this broker leads. The state keeps an outbox
//! for each target; this sends it in order, a batch for each source record, and has the state drop what the target holds. Sending may
//! repeat, at any failure: the target's watermark refuses what it has, so that each command takes effect once.

mod remote;

use std::{
    collections::{BTreeMap, VecDeque},
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

pub use remote::answer;
use tokio::{task::JoinSet, time::Instant};
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
/// After a target could not be reached, or its queue was full.
const RETRY: Duration = Duration::from_millis(250);
/// After a command to forward could not be read.
const UNREADABLE_RETRY: Duration = Duration::from_secs(5);
/// Taken out of the outbox at once for one target.
const ITEMS_MAX: usize = 64;

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
        let mut forwarder = Forwarder::new(node.clone(), partition.clone());
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = deposed => {}
            () = forwarder.run(), if leads => {}
        }
    }
}

/// A forward on its way.
enum Flight {
    /// Into a log that this broker leads.
    Here(Pending),
    /// To another broker.
    There(remote::Answer),
}

impl Future for Flight {
    type Output = Result<Offset, String>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            Self::Here(pending) => std::pin::pin!(submit::resolve(pending)).poll(context).map(watermark),
            Self::There(answer) => {
                Pin::new(answer).poll(context).map(|answer| answer.unwrap_or_else(|_| Err("gone".into())))
            }
        }
    }
}

/// What an append of a forward says of its target.
fn watermark(result: Result<Appended, AppendError>) -> Result<Offset, String> {
    let appended = result.map_err(|error| error.to_string())?;
    match appended.outcome().reply {
        Reply::Watermark { offset } => Ok(offset),
        ref other => Err(format!("a forward was answered with {other:?}")),
    }
}

/// What is on its way to one target.
#[derive(Default)]
struct Target {
    /// Source offset of the last forward sent.
    sent: Offset,
    pending: VecDeque<(Offset, Flight)>,
    /// The target holds everything up to here.
    held: Offset,
    /// The state knows that.
    acknowledged: Offset,
    /// Since then.
    unacknowledged: usize,
    /// One of the pipeline failed or was refused: those behind it will be too. Nothing more is sent until they are back.
    is_broken: bool,
    /// Nothing is sent before: it cannot be reached, or what it is to get cannot be read.
    retry_at: Option<Instant>,
}

impl Target {
    /// How many more forwards may be sent to it now.
    fn room(&self) -> usize {
        if self.is_broken || self.retry_at.is_some() { 0 } else { PIPELINE_MAX.saturating_sub(self.pending.len()) }
    }

    fn retry_after(&mut self, delay: Duration) {
        self.retry_at = Some(Instant::now() + delay);
    }
}

struct Forwarder {
    node: Node,
    source: PartitionHandle,
    /// Each waits for itself alone.
    targets: BTreeMap<PartitionId, Target>,
    /// The source's own log does not take acknowledgements before.
    acknowledge_at: Option<Instant>,
}

/// A forward taken out of the outbox.
struct Item {
    offset: Offset,
    predecessor: Offset,
    /// `None`: the source record itself.
    made: Option<Vec<Record>>,
}

impl Forwarder {
    fn new(node: Node, source: PartitionHandle) -> Self {
        Self { node, source, targets: BTreeMap::new(), acknowledge_at: None }
    }

    async fn run(&mut self) {
        loop {
            let seen = self.source.tail.applied();
            let progress = self.fill().await;
            self.acknowledge();
            if progress {
                continue;
            }
            let retries = self.targets.values().filter_map(|target| target.retry_at);
            let retry_at = retries.chain(self.acknowledge_at).min();
            let source = self.source.tail.clone();
            tokio::select! {
                (target, offset, result) = next_result(&mut self.targets) => self.handle_result(target, offset, result),
                () = source.wait_past(seen) => {}
                () = tokio::time::sleep_until(retry_at.unwrap_or_else(Instant::now)), if retry_at.is_some() => {}
            }
            self.handle_time(Instant::now());
        }
    }

    /// Those whose time has come may go on.
    fn handle_time(&mut self, now: Instant) {
        let retries = self.targets.values_mut().map(|target| &mut target.retry_at);
        for retry_at in retries.chain([&mut self.acknowledge_at]) {
            retry_at.take_if(|at| *at <= now);
        }
    }

    /// Sends what the outbox holds, to each target as far as its pipeline has room. Says whether anything was sent.
    async fn fill(&mut self) -> bool {
        let waiting: Vec<PartitionId> = self.source.state.read().outbox_targets().collect();
        let mut progress = false;
        for id in waiting {
            let broker = self.node.other_leader(id);
            // one call at a time keeps the order
            if broker.is_some() && self.targets.get(&id).is_some_and(|target| !target.pending.is_empty()) {
                continue;
            }
            let (mut call, mut bytes) = (Vec::new(), 0);
            for item in self.items(id) {
                // one target's trouble, to be read or to be reached, is no other's
                let batch = self.batch(&item).await;
                let target = self.targets.entry(id).or_default();
                match batch {
                    Ok(batch) if broker.is_some() => {
                        bytes += batch.records.len();
                        if bytes > remote::CALL_BYTES_MAX && !call.is_empty() {
                            break;
                        }
                        call.push((item.offset, batch));
                    }
                    Ok(batch) => {
                        if !send(&self.node, id, target, item.offset, batch) {
                            break;
                        }
                        progress = true;
                    }
                    Err(error) => {
                        tracing::error!(source = %self.source.id, target = %id, %error, "a command to forward cannot be read");
                        target.retry_after(UNREADABLE_RETRY);
                        break;
                    }
                }
            }
            if let (Some(broker), Some((last, _))) = (broker, call.last()) {
                let target = self.targets.entry(id).or_default();
                target.sent = *last;
                let flights = remote::send(&self.node, broker, (self.source.id, id), call);
                target.pending.extend(flights.into_iter().map(|(offset, answer)| (offset, Flight::There(answer))));
                progress = true;
            }
        }
        progress
    }

    /// What is next for a target.
    fn items(&mut self, id: PartitionId) -> Vec<Item> {
        let target = self.targets.entry(id).or_default();
        let state = self.source.state.read();
        let entries = state.outbox_after(id, target.sent).take(target.room().min(ITEMS_MAX));
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
    }

    async fn batch(&self, item: &Item) -> Result<Batch, ReadError> {
        let source = v1::ForwardSource {
            partition: u32::from(self.source.id.0),
            offset: item.offset.0,
            predecessor: item.predecessor.0,
        };
        let source = Source::Forward(source);
        Ok(match &item.made {
            Some(records) => Batch::new(source, records),
            None => Batch::new(source, &[logged(&self.node, &self.source, item.offset).await?]),
        })
    }

    fn handle_result(&mut self, id: PartitionId, offset: Offset, result: Result<Offset, String>) {
        let Some(target) = self.targets.get_mut(&id) else { return };
        target.pending.pop_front();
        match result {
            Ok(watermark) => {
                target.unacknowledged += 1;
                target.held = target.held.max(watermark);
                if watermark != offset {
                    // refused: the target has more, or less, than was thought; everything behind it is refused too
                    tracing::debug!(source = %self.source.id, target = %id, %offset, %watermark, "forward out of step");
                    target.is_broken = true;
                }
            }
            Err(error) => {
                tracing::debug!(source = %self.source.id, target = %id, %error, "forward failed");
                target.is_broken = true;
            }
        }
        if target.is_broken && target.pending.is_empty() {
            // begin again after what the target holds
            target.is_broken = false;
            target.sent = target.held;
            target.retry_after(RETRY);
        }
    }

    /// Has the state drop what its target holds: when much is held, or nothing else is under way.
    fn acknowledge(&mut self) {
        if self.acknowledge_at.is_some() {
            return;
        }
        let (mut records, mut told) = (Vec::new(), Vec::new());
        for (id, target) in &self.targets {
            let due = target.unacknowledged >= ACKNOWLEDGE_EVERY || target.pending.is_empty();
            if due && target.held > target.acknowledged {
                let forwarded = v1::Forwarded { target: u32::from(id.0), through: target.held.0 };
                records.push(Record::new(RecordKind::Forwarded, Default::default(), "", &forwarded));
                told.push(*id);
            }
        }
        if records.is_empty() {
            return;
        }
        // the answer is not awaited: what is lost with the leadership is acknowledged again by the next leader
        if let Err(error) = self.source.append.try_enqueue(Batch::new(Source::Leader, &records)) {
            tracing::debug!(source = %self.source.id, %error, "forwards are not acknowledged yet");
            self.acknowledge_at = Some(Instant::now() + RETRY);
            return;
        }
        for id in told {
            let target = self.targets.entry(id).or_default();
            target.acknowledged = target.held;
            target.unacknowledged = 0;
        }
    }
}

/// Queues a batch at the target. False if it cannot be reached now, or has no room: what is not sent stays in the outbox.
fn send(node: &Node, id: PartitionId, target: &mut Target, offset: Offset, batch: Batch) -> bool {
    let queued = match node.partition(id) {
        Some(partition) => partition.append.try_enqueue(batch),
        None => Err(AppendError::NotLeader { leader: None }),
    };
    match queued {
        Ok(pending) => {
            target.sent = offset;
            target.pending.push_back((offset, Flight::Here(pending)));
            true
        }
        Err(error) => {
            tracing::debug!(target = %id, %error, "forward waits");
            target.retry_after(RETRY);
            false
        }
    }
}

/// The next answer of any target, in order for each. Waits for ever with nothing under way. Cancel safe.
async fn next_result(targets: &mut BTreeMap<PartitionId, Target>) -> (PartitionId, Offset, Result<Offset, String>) {
    std::future::poll_fn(|context| {
        for (id, target) in targets.iter_mut() {
            let Some((offset, flight)) = target.pending.front_mut() else { continue };
            if let Poll::Ready(result) = Pin::new(flight).poll(context) {
                return Poll::Ready((*id, *offset, result));
            }
        }
        Poll::Pending
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::RwLock;
    use trunkline_proto::{ConnectionId, Entry, EntryBuilder, Timestamp};

    use super::*;
    use crate::{
        core,
        node::NodeConfig,
        testing::{attach, connection, count, edge},
    };

    const SOURCE: PartitionId = PartitionId(0);
    const PATIENCE: Duration = Duration::from_secs(20);

    async fn node(dir: &tempfile::TempDir) -> Node {
        let node = Node::open(NodeConfig::new(dir.path(), "test", count(3))).await.unwrap();
        node.wait_ready().await.unwrap();
        node
    }

    fn push(to: u16) -> Record {
        let body = v1::Pushed { kind: 1, payload: "x".into() };
        Record::new(RecordKind::Pushed, connection(to, 1), "", &body)
    }

    async fn until(what: &str, done: impl Fn() -> bool) {
        let waited = tokio::time::timeout(PATIENCE, async {
            while !done() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        assert!(waited.await.is_ok(), "never: {what}");
    }

    #[tokio::test]
    async fn a_target_whose_queue_is_full_holds_up_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let node = node(&dir).await;
        let holds = |id: u16| node.partition(PartitionId(id)).unwrap().state.read().watermark(SOURCE) > Offset::ZERO;
        let full = node.partition(PartitionId(1)).unwrap().append.fill();
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(run(node.clone(), shutdown.clone()));
        let source = node.partition(SOURCE).unwrap();
        let commands = Batch::new(Source::Submit(v1::SubmitSource::default()), &[push(1), push(2)]);
        source.append.append(commands).await.unwrap();
        until("the other has its own", || holds(2)).await;
        assert!(!holds(1));
        drop(full);
        until("the full one has room and its own", || holds(1)).await;
        until("nothing waits", || source.state.read().outbox_len() == 0).await;
        shutdown.cancel();
        running.await.unwrap();
        node.shutdown().await;
    }

    #[tokio::test]
    async fn a_command_that_cannot_be_read_holds_up_no_other_target() {
        let dir = tempfile::tempdir().unwrap();
        let node = node(&dir).await;
        // a state whose log is not there: a command for 1 that only the log has, and a join for 2 that the state has
        let mut state = core::Partition::new(SOURCE, count(3));
        let owned_by_2 = (0..).map(|n| format!("c{n}")).find(|name| count(3).of_name(name) == PartitionId(2)).unwrap();
        let body = v1::ConnectionOpened {
            edge: "e1".into(),
            incarnation: 1,
            channels: vec![owned_by_2],
            ..Default::default()
        };
        let opened = Record::new(RecordKind::ConnectionOpened, connection(0, 1), "chat", &body);
        let attached = v1::EdgeAttached { edge: "e1".into(), incarnation: 0, nonce: vec![7].into() };
        let attached = Record::new(RecordKind::EdgeAttached, ConnectionId::NONE, "", &attached);
        let mut builder = EntryBuilder::new(Timestamp(1), 0);
        builder.push(&Batch::new(Source::Leader, &[attached]));
        builder.push(&edge(1, &[opened]));
        builder.push(&Batch::new(Source::Submit(v1::SubmitSource::default()), &[push(1)]));
        state.apply(LogIndex(1000), &Entry::parse(&builder.finish()).unwrap());
        assert_eq!(state.outbox_targets().collect::<Vec<_>>(), [PartitionId(1), PartitionId(2)]);
        node.partition(PartitionId(2)).unwrap().append.append(attach(2)).await.unwrap();
        let source = PartitionHandle { state: Arc::new(RwLock::new(state)), ..node.partition(SOURCE).unwrap().clone() };

        let mut forwarder = Forwarder::new(node.clone(), source);
        assert!(forwarder.fill().await, "something was sent");
        assert!(forwarder.targets[&PartitionId(1)].retry_at.is_some_and(|at| at > Instant::now() + RETRY));
        assert_eq!(forwarder.targets[&PartitionId(2)].retry_at, None);
        let (target, offset, result) = next_result(&mut forwarder.targets).await;
        assert_eq!((target, offset), (PartitionId(2), Offset::new(LogIndex(1000), 1)));
        forwarder.handle_result(target, offset, result);
        assert_eq!(forwarder.targets[&PartitionId(2)].held, offset);
        // each has its own time
        assert!(!forwarder.fill().await);
        forwarder.handle_time(Instant::now() + UNREADABLE_RETRY);
        assert_eq!(forwarder.targets[&PartitionId(1)].retry_at, None);
        drop(forwarder);
        node.shutdown().await;
    }
}
