//! Who of a handler group gets which partition. Each broker decides for the partitions it leads among the members that have a stream to
//! it, by rendezvous hashing: no coordinator, and a member that comes or goes moves only its own share. Every change is a
//! `HandlerAssigned` record with the next epoch.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;
use trunkline_proto::{Batch, Offset, PartitionId, Record, RecordKind, Source, Timestamp, v1};
use xxhash_rust::xxh3::Xxh3Default;

use super::{
    commit::{self, Lease},
    cursor::{self, Cursor, Filter},
    flow::{Flow, Leftover, Settings, StartHole},
    member::{Member, SessionEnd},
    stream::{End, Stream, Trimming},
};
use crate::{
    append::AppendError,
    clock,
    core::{Reply, Verdict},
    metrics,
    node::{Node, PartitionHandle, ReadError, Role},
};

/// After an assignment failed.
const RETRY: Duration = Duration::from_millis(500);
/// How long the last member's going may take to get into the log; the next assignment makes up for it.
const NOBODY_TIMEOUT: Duration = Duration::from_secs(2);
/// How often lags are measured.
const LAG_INTERVAL: Duration = Duration::from_secs(2);

type Members = Arc<Vec<Arc<Member>>>;

#[derive(Debug)]
struct Group {
    members: watch::Sender<Members>,
    /// Partitions whose worker runs.
    workers: BTreeSet<PartitionId>,
}

/// See the module's head. Groups are here only while they have members.
#[derive(Debug)]
pub struct Registry {
    node: Node,
    deadline: Duration,
    groups: Mutex<BTreeMap<String, Group>>,
    workers: Mutex<JoinSet<()>>,
    /// For each partition how far retention would take its log: groups that have nothing open of it move their prefix past it.
    wanted: BTreeMap<PartitionId, watch::Sender<Offset>>,
    shutdown: CancellationToken,
}

impl Registry {
    /// A registry over the partitions of `node`. `deadline`: how long a member may work on an event. Ends with `shutdown`.
    pub fn new(node: Node, deadline: Duration, shutdown: CancellationToken) -> Arc<Self> {
        let (groups, workers) = (Mutex::new(BTreeMap::new()), Mutex::new(JoinSet::new()));
        let wanted = node.partition_count().iter().map(|id| (id, watch::Sender::new(Offset::ZERO))).collect();
        let registry = Arc::new(Self { node, deadline, groups, workers, wanted, shutdown });
        let lags = report_lags(registry.node.clone(), registry.shutdown.clone());
        registry.workers.lock().spawn(lags);
        registry
    }

    /// The broker's partitions.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Cancelled when the broker stops.
    pub fn shutdown(&self) -> &CancellationToken {
        &self.shutdown
    }

    /// The members of a group that have a stream to this broker.
    pub fn members(&self, group: &str) -> Vec<String> {
        let groups = self.groups.lock();
        let members = groups.get(group).map(|group| group.members.borrow().clone()).unwrap_or_default();
        members.iter().map(|member| member.terms.member.clone()).collect()
    }

    /// Retention would take a partition's log up to `through`, if groups did not hold it.
    pub fn want(&self, partition: PartitionId, through: Offset) {
        let Some(wanted) = self.wanted.get(&partition) else { return };
        wanted.send_if_modified(|wanted| {
            let moves = through > *wanted;
            *wanted = through.max(*wanted);
            moves
        });
    }

    /// A member has come. One of the same name is replaced.
    pub fn join(self: &Arc<Self>, member: &Arc<Member>) {
        let mut groups = self.groups.lock();
        let group = groups
            .entry(member.terms.group.clone())
            .or_insert_with(|| Group { members: watch::Sender::new(Members::default()), workers: BTreeSet::new() });
        group.members.send_modify(|members| {
            let mut list: Vec<_> = members.iter().cloned().collect();
            list.retain(|other| {
                let replaced = other.terms.member == member.terms.member;
                if replaced {
                    other.end(SessionEnd::Replaced);
                }
                !replaced
            });
            list.push(member.clone());
            *members = Arc::new(list);
        });
        for id in self.node.partition_count().iter() {
            let Some(partition) = self.node.partition(id) else { continue };
            if group.workers.insert(id) {
                let members = group.members.subscribe();
                let worker = Worker {
                    registry: self.clone(),
                    partition: partition.clone(),
                    group: member.terms.group.clone(),
                    members,
                    left: Left::default(),
                };
                let mut workers = self.workers.lock();
                while workers.try_join_next().is_some() {}
                workers.spawn(worker.run());
            }
        }
    }

    /// A member has gone.
    pub fn leave(&self, member: &Arc<Member>) {
        let groups = self.groups.lock();
        let Some(group) = groups.get(&member.terms.group) else { return };
        group.members.send_if_modified(|members| {
            let list: Vec<_> = members.iter().filter(|other| other.serial != member.serial).cloned().collect();
            let changed = list.len() != members.len();
            *members = Arc::new(list);
            changed
        });
    }

    /// A worker without members ends, unless one has come meanwhile.
    fn retire(&self, name: &str, partition: PartitionId) -> bool {
        let mut groups = self.groups.lock();
        let Some(group) = groups.get_mut(name) else { return true };
        if !group.members.borrow().is_empty() && !self.shutdown.is_cancelled() {
            return false;
        }
        group.workers.remove(&partition);
        if group.workers.is_empty() {
            groups.remove(name);
        }
        true
    }

    /// Ends every stream and waits for what they have under way. Call after `shutdown` was cancelled.
    pub async fn drain(&self) {
        let members: Vec<Members> = self.groups.lock().values().map(|group| group.members.borrow().clone()).collect();
        for member in members.iter().flat_map(|members| members.iter()) {
            member.end(SessionEnd::Shutdown);
        }
        let mut workers = std::mem::take(&mut *self.workers.lock());
        while workers.join_next().await.is_some() {}
    }
}

/// The member with the highest hash of (group, partition, member): the same choice wherever it is made.
fn pick(members: &[Arc<Member>], group: &str, partition: PartitionId) -> Option<Arc<Member>> {
    members.iter().max_by_key(|member| rank(group, partition, &member.terms.member)).cloned()
}

fn rank(group: &str, partition: PartitionId, member: &str) -> (u64, String) {
    let mut hash = Xxh3Default::new();
    hash.update(group.as_bytes());
    hash.update(&[0]);
    hash.update(&partition.0.to_le_bytes());
    hash.update(member.as_bytes());
    (hash.digest(), member.to_owned())
}

/// What the last assignment left behind.
#[derive(Default)]
struct Left {
    /// And the epoch it is about: kept until the log has taken it, or somebody else's assignment.
    leftover: Option<(u64, Leftover)>,
    /// Somebody is assigned as far as the log says.
    assigned: bool,
}

impl Left {
    /// What the next assignment of a group that stands at `epoch` and `through` must say.
    fn at(&self, epoch: u64, through: Offset) -> Option<&Leftover> {
        let (_, leftover) = self.leftover.as_ref().filter(|(about, _)| *about == epoch)?;
        Some(leftover).filter(|leftover| leftover.base == through)
    }
}

/// What is left of an event's delay. Neither a wall clock that was set back nor one that stands makes it longer than it
/// was: log time has come to the moment of the refusal.
fn delay_left(not_before: Timestamp, clock: Timestamp, log: Timestamp) -> Duration {
    Duration::from_micros(not_before.0.saturating_sub(clock.max(log).0)).min(commit::DELAY_MAX)
}

/// One partition's assignments within one group.
struct Worker {
    registry: Arc<Registry>,
    partition: PartitionHandle,
    group: String,
    members: watch::Receiver<Members>,
    left: Left,
}

#[derive(Debug, thiserror::Error)]
enum AssignError {
    #[error(transparent)]
    Append(AppendError),
    #[error("the group has moved on")]
    Refused,
    #[error(transparent)]
    Read(ReadError),
}

impl Worker {
    async fn run(mut self) {
        loop {
            let members = self.members.borrow_and_update().clone();
            let leads = matches!(*self.partition.role.borrow_and_update(), Role::Leader { .. });
            let member = pick(&members, &self.group, self.partition.id);
            match member.filter(|_| !self.registry.shutdown.is_cancelled()) {
                None => {
                    if leads && self.left.assigned {
                        self.assign_nobody().await;
                    }
                    if self.registry.retire(&self.group, self.partition.id) {
                        return;
                    }
                }
                Some(member) if leads => self.serve(member).await,
                Some(_) => {
                    self.left = Left::default();
                    self.wait_for_change().await;
                }
            }
        }
    }

    async fn wait_for_change(&mut self) {
        tokio::select! {
            // without a sender there are no members, which the caller sees
            _ = self.members.changed() => {}
            changed = self.partition.role.changed() => if changed.is_err() {
                tokio::time::sleep(RETRY).await;
            },
            () = self.registry.shutdown.cancelled() => {}
        }
    }

    async fn serve(&mut self, member: Arc<Member>) {
        let (mut role, shutdown) = (self.partition.role.clone(), self.registry.shutdown.clone());
        let moved = self.moved(&member);
        // what is left undone does no harm: the next assignment begins at what the state says
        let assigned = tokio::select! {
            assigned = self.assign(&member) => assigned,
            () = member.gone.cancelled() => return self.registry.leave(&member),
            () = moved => return,
            () = shutdown.cancelled() => return,
            Ok(_) = role.wait_for(|role| !matches!(role, Role::Leader { .. })) => return,
        };
        let mut stream = match assigned {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(group = self.group, partition = %self.partition.id, %error, "assignment failed");
                if matches!(error, AssignError::Refused) {
                    self.left.leftover = None; // the same again would be refused again
                }
                tokio::time::sleep(RETRY).await;
                return;
            }
        };
        let end = stream.run(self.moved(&member)).await;
        let epoch = stream.epoch();
        let leftover = stream.finish(end).await.map(|leftover| (epoch, leftover));
        tracing::debug!(group = self.group, partition = %self.partition.id, ?end, "assignment ended");
        self.left = Left { leftover, assigned: end != End::NotLeader };
        match end {
            // the member's session takes it off the list
            End::Gone => self.registry.leave(&member),
            End::Unreadable => tokio::time::sleep(RETRY * 4).await,
            End::NotLeader => tokio::time::sleep(RETRY).await,
            End::Moved | End::Restart => {}
        }
    }

    /// Resolves when the partition should be another member's.
    fn moved(&self, member: &Arc<Member>) -> impl Future<Output = ()> + use<> {
        let (mut members, group, partition) = (self.members.clone(), self.group.clone(), self.partition.id);
        let serial = member.serial;
        async move {
            let elsewhere =
                |members: &Members| pick(members, &group, partition).is_some_and(|picked| picked.serial != serial);
            if members.wait_for(elsewhere).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Appends the assignment and makes the stream that serves it.
    async fn assign(&mut self, member: &Arc<Member>) -> Result<Stream, AssignError> {
        let terms = &member.terms;
        let start = self.resolve(&terms.start).await.map_err(AssignError::Read)?;
        let record = self.assignment(&terms.member, &terms.apis, &terms.kinds, Some(start));
        self.left.assigned = true; // before it is known: the wait may be given up
        let epoch = self.append(record).await?;
        let (through, holes, skipped, known, log) = {
            let state = self.partition.state.read();
            let group = state.group(&self.group).filter(|group| group.epoch == epoch).ok_or(AssignError::Refused)?;
            let holes: Vec<_> = group.holes().collect();
            (group.through, holes, group.skipped(), state.applied(), state.time())
        };
        let offsets: Vec<_> = holes.iter().map(|(offset, _)| *offset).collect();
        let arrivals = cursor::read_arrivals(&self.registry.node, &self.partition, &offsets).await;
        let arrivals = arrivals.map_err(AssignError::Read)?;
        let clock = clock::now();
        let start_holes = holes.into_iter().zip(arrivals).map(|((_, hole), event)| StartHole {
            event,
            attempt: hole.attempt,
            delay: delay_left(hole.not_before, clock, log),
        });
        let settings =
            Settings { deadline: self.registry.deadline, max_attempts: terms.max_attempts, ..Settings::default() };
        let node = self.registry.node.clone();
        let filter = Filter { apis: terms.apis.clone(), kinds: terms.kinds.clone() };
        let cursor = Cursor::new(node.clone(), self.partition.clone(), &self.group, filter, through, known);
        let now = tokio::time::Instant::now().into_std();
        let flow = Flow::new(settings, now, through, start_holes.collect());
        let lease = Lease { group: self.group.clone(), member: terms.member.clone(), epoch };
        tracing::info!(group = self.group, member = terms.member, partition = %self.partition.id, epoch, %through, "assigned");
        let wanted = self.registry.wanted.get(&self.partition.id).map(watch::Sender::subscribe);
        let wanted = wanted.unwrap_or_else(|| watch::Sender::new(Offset::ZERO).subscribe());
        let trimming = Trimming { wanted, skipped };
        Ok(Stream::new(node, self.partition.clone(), member.clone(), lease, flow, cursor, trimming))
    }

    /// Nobody is left: the log says so, and keeps what was given and not settled.
    async fn assign_nobody(&mut self) {
        // the state keeps the last member's filter
        let record = self.assignment("", &[], &[], None);
        match tokio::time::timeout(NOBODY_TIMEOUT, self.append(record)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                if matches!(error, AssignError::Refused) {
                    self.left.leftover = None;
                }
                tracing::debug!(group = self.group, partition = %self.partition.id, %error, "assignment to nobody failed");
            }
            Err(_) => {
                tracing::warn!(group = self.group, partition = %self.partition.id, "the log takes no assignment to nobody");
            }
        }
        self.left.assigned = false;
    }

    fn assignment(&self, member: &str, apis: &[String], kinds: &[u32], start: Option<v1::Start>) -> Record {
        let known = self.partition.state.read().group(&self.group).map(|group| (group.epoch, group.through));
        let (epoch, base) = known.unwrap_or_default();
        let leftover = self.left.at(epoch, base);
        let assigned = v1::HandlerAssigned {
            group: self.group.clone(),
            member: member.to_owned(),
            epoch: epoch + 1,
            apis: apis.to_vec(),
            kinds: kinds.to_vec(),
            start: start.filter(|_| known.is_none()),
            base: base.0,
            through: leftover.map_or(base, |leftover| leftover.through).0,
            holes: leftover.into_iter().flat_map(|leftover| &leftover.holes).map(commit::hole).collect(),
        };
        Record::new(RecordKind::HandlerAssigned, Default::default(), "", &assigned)
    }

    async fn append(&self, record: Record) -> Result<u64, AssignError> {
        let batch = Batch::new(Source::Leader, &[record]);
        let appended = self.partition.append.append(batch).await.map_err(AssignError::Append)?;
        match (appended.verdict(0), &appended.outcome().reply) {
            (Verdict::Applied, Reply::Group { epoch, .. }) => Ok(*epoch),
            (verdict, reply) => {
                tracing::debug!(group = self.group, ?verdict, ?reply, "assignment refused");
                Err(AssignError::Refused)
            }
        }
    }

    /// A start by time becomes one by offset: apply knows no past.
    async fn resolve(&self, start: &v1::Start) -> Result<v1::Start, ReadError> {
        self.registry.node.resolve_start(self.partition.id, start).await
    }
}

/// Measures the lag of every group of the partitions this broker leads, whether or not it has members.
async fn report_lags(node: Node, shutdown: CancellationToken) {
    while shutdown.run_until_cancelled(tokio::time::sleep(LAG_INTERVAL)).await.is_some() {
        for id in node.partition_count().iter() {
            let Some(partition) = node.partition(id) else { continue };
            if !matches!(*partition.role.borrow(), Role::Leader { .. }) {
                continue;
            }
            let lags: Vec<_> = {
                let state = partition.state.read();
                state.groups().map(|group| (group.name.to_owned(), group.lag)).collect()
            };
            for (group, lag) in lags {
                metrics::handlers::set_lag(&group, id, lag);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn clock_that_is_set_back_makes_no_delay_longer() {
        let refused = Timestamp(7200 * 1_000_000);
        let delay = Duration::from_secs(5);
        let not_before = refused.after(delay);
        assert_eq!(delay_left(not_before, refused, refused), delay);
        assert_eq!(delay_left(not_before, Timestamp(0), refused), delay, "the clock was set back");
        assert_eq!(delay_left(not_before, refused.after(HOUR), refused), Duration::ZERO);
        assert_eq!(delay_left(Timestamp(0), Timestamp(0), refused), Duration::ZERO, "at once is at once");
    }

    #[test]
    fn leftover_holds_until_the_log_has_taken_it() {
        let through = Offset(9);
        let leftover = Leftover { base: through, through: Offset(20), holes: Vec::new() };
        let left = Left { leftover: Some((3, leftover.clone())), assigned: true };
        for _ in 0..2 {
            assert_eq!(left.at(3, through), Some(&leftover), "an assignment that failed may be tried again");
        }
        assert_eq!(left.at(4, through), None, "another assignment has been applied");
        assert_eq!(left.at(3, Offset(8)), None, "computed on another prefix");
    }
}
