//! Commands that acknowledge nothing: one batch for each partition that decides about some of them, in parallel, each command with a
//! result of its own.

mod remote;

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{task::JoinSet, time::timeout};
use trunkline_proto::{Batch, Offset, PartitionId, Record, Source, limits, v1};

use crate::{
    access,
    append::{self, AppendError, Appended, Pending},
    commands::{self, Caller, Encoded},
    core::{Refusal, Verdict},
    metrics,
    node::{Node, Role},
};

/// How long a request waits for an election to end: longer than one takes.
const LEADER_TIMEOUT: Duration = Duration::from_secs(3);

/// Takes publishes that skip the log: at most once, to every edge that is attached now.
pub trait UnloggedSink: Send + Sync + 'static {
    /// Hands a `Published` record to every edge. Never waits: an edge whose queue is full misses it.
    fn publish(&self, record: Record);
}

/// Why a whole request is refused. Nothing happened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// More than [`limits::COMMANDS_MAX`].
    #[error("{0} commands; a request has at most {max}", max = limits::COMMANDS_MAX)]
    TooManyCommands(usize),
    /// Longer than [`limits::KEY_BYTES_MAX`].
    #[error("the idempotency key has {0} bytes; at most {max} are allowed", max = limits::KEY_BYTES_MAX)]
    KeyTooLong(usize),
}

/// Puts commands into the log. Cheap to clone.
#[derive(Clone)]
pub struct Submitter {
    node: Node,
    unlogged: Arc<dyn UnloggedSink>,
    relay: remote::Relay,
}

impl fmt::Debug for Submitter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Submitter").finish_non_exhaustive()
    }
}

/// Commands of one batch. Under an idempotency key their numbers are consecutive: a batch says only the first one's.
struct Run {
    numbers: Vec<usize>,
    records: Vec<Record>,
    bytes: usize,
}

impl Submitter {
    /// Commands go to the leaders `node` knows, unlogged publishes to `unlogged`.
    pub fn new(node: Node, unlogged: Arc<dyn UnloggedSink>) -> Self {
        Self { node, unlogged, relay: remote::Relay::default() }
    }

    /// Applies each command or says why not: one result each, in order. What `who` may not command is refused, connections of APIs that
    /// are not its as if they were not there; with a `key` that is not empty a repeated request takes effect once and gets the first one's results.
    ///
    /// # Errors
    /// Only what is wrong with the request as a whole; then nothing happened.
    pub async fn submit(
        &self,
        who: &access::Caller,
        key: &str,
        commands: &[v1::Command],
    ) -> Result<Vec<v1::CommandResult>, SubmitError> {
        if commands.len() > limits::COMMANDS_MAX {
            return Err(SubmitError::TooManyCommands(commands.len()));
        }
        if key.len() > limits::KEY_BYTES_MAX {
            return Err(SubmitError::KeyTooLong(key.len()));
        }
        let mut results = vec![v1::CommandResult::default(); commands.len()];
        let runs = self.sort(who, commands, !key.is_empty(), &mut results);
        let mut tasks = JoinSet::new();
        for (partition, runs) in runs {
            let leader = leader(&self.node, partition);
            let (principal, key) = (who.name().to_owned(), key.to_owned());
            tasks.spawn(apply_runs(self.node.clone(), leader, partition, principal, key, runs));
        }
        while let Some(done) = tasks.join_next().await {
            for (n, result) in done.unwrap_or_default() {
                if let Some(place) = results.get_mut(n) {
                    *place = result;
                }
            }
        }
        for (command, result) in commands.iter().zip(&mut results) {
            // a task that was cut off says nothing about its commands
            let status = result.status.get_or_insert_with(|| status(v1::Code::Unknown, "the broker is shutting down"));
            metrics::handlers::count_command(commands::kind_name(command), status.code());
        }
        Ok(results)
    }

    /// Which commands go where; those that go nowhere get their results.
    fn sort(
        &self,
        who: &access::Caller,
        commands: &[v1::Command],
        keyed: bool,
        results: &mut [v1::CommandResult],
    ) -> BTreeMap<PartitionId, Vec<Run>> {
        let mut runs: BTreeMap<PartitionId, Vec<Run>> = BTreeMap::new();
        for (n, (command, result)) in commands.iter().zip(results).enumerate() {
            match commands::encode(command, Caller::Submit, who, self.node.partition_count()) {
                Err(error) => result.status = Some(status(error.code(), error.to_string())),
                Ok(Encoded { record, target, unlogged: true }) => {
                    self.publish_unlogged(target, record);
                    result.status = Some(status(v1::Code::Applied, "unlogged: at most once"));
                    result.partition = u32::from(target.0);
                }
                Ok(Encoded { record, target, .. }) => push(runs.entry(target).or_default(), n, record, keyed),
            }
        }
        runs
    }
}

impl Submitter {
    /// To whoever leads the partition: only there edges are attached. At most once.
    fn publish_unlogged(&self, target: PartitionId, record: Record) {
        match self.node.other_leader(target) {
            Some(id) => self.relay.publish(&self.node, id, target, &record),
            None => self.unlogged.publish(record),
        }
    }

    /// Answers the call of another broker: commands for a partition that this one leads.
    pub async fn answer(&self, call: Bytes) -> Bytes {
        remote::answer(self, call).await
    }
}

/// Adds command `n` to the last run of its partition, or begins another where numbers or bytes do not allow it.
fn push(runs: &mut Vec<Run>, n: usize, record: Record, keyed: bool) {
    let bytes = record.bytes().len();
    let follows = |run: &Run| !keyed || run.numbers.last().is_some_and(|last| last + 1 == n);
    match runs.last_mut() {
        Some(run) if follows(run) && run.bytes + bytes <= limits::ENTRY_BYTES_MAX / 2 => {
            run.numbers.push(n);
            run.records.push(record);
            run.bytes += bytes;
        }
        _ => runs.push(Run { numbers: vec![n], records: vec![record], bytes }),
    }
}

/// Where a request's commands for a partition go, and in which term: the one this broker leads in when it comes.
fn leader(node: &Node, partition: PartitionId) -> Result<(append::Handle, u64), AppendError> {
    let handle = node.partition(partition).ok_or(AppendError::NotLeader { leader: None })?;
    match *handle.role.borrow() {
        Role::Leader { term } => Ok((handle.append.clone(), term)),
        Role::Follower { leader } => Err(AppendError::NotLeader { leader }),
        Role::Closed => {
            let reason = node.why_closed(partition);
            Err(AppendError::Closed { reason })
        }
    }
}

/// Applies the runs of one partition: here if this broker leads it, at its leader otherwise.
async fn apply_runs(
    node: Node,
    leader: Result<(append::Handle, u64), AppendError>,
    partition: PartitionId,
    principal: String,
    key: String,
    runs: Vec<Run>,
) -> Vec<(usize, v1::CommandResult)> {
    let leader = match leader {
        Err(AppendError::NotLeader { leader: None }) => wait_for_leader(&node, partition).await,
        leader => leader,
    };
    let leader = match leader {
        // this broker's replica is; others may serve the partition
        Err(closed @ AppendError::Closed { .. }) => match node.find_leader(partition, LEADER_TIMEOUT).await {
            Some(id) => Err(AppendError::NotLeader { leader: Some(id) }),
            None => Err(closed),
        },
        leader => leader,
    };
    match leader {
        Err(AppendError::NotLeader { leader: Some(id) }) => {
            remote::apply(&node, id, partition, principal, key, runs).await
        }
        leader => append_runs(leader, partition, principal, key, runs).await,
    }
}

/// An election takes its time; nothing has happened yet.
async fn wait_for_leader(node: &Node, id: PartitionId) -> Result<(append::Handle, u64), AppendError> {
    if let Some(partition) = node.partition(id) {
        let mut role = partition.role.clone();
        let known = role.wait_for(|role| !matches!(role, Role::Follower { leader: None }));
        // whatever comes of it is looked at again
        let _ = timeout(LEADER_TIMEOUT, known).await;
    }
    leader(node, id)
}

/// Appends the runs of one partition in order, pipelined, and all of them in one term: if the leadership is lost on the way, and
/// gained again, none is appended behind one whose outcome is unknown or that was not appended.
async fn append_runs(
    leader: Result<(append::Handle, u64), AppendError>,
    partition: PartitionId,
    principal: String,
    key: String,
    runs: Vec<Run>,
) -> Vec<(usize, v1::CommandResult)> {
    let mut leader = leader;
    let mut pending: Vec<(Vec<usize>, Result<Pending, AppendError>)> = Vec::with_capacity(runs.len());
    for run in runs {
        let first = run.numbers.first().copied().unwrap_or_default();
        let source = v1::SubmitSource {
            principal: principal.clone(),
            key: key.clone(),
            first_command: u32::try_from(first).unwrap_or(u32::MAX),
        };
        let batch = Batch::new(Source::Submit(source), &run.records);
        let queued = match &leader {
            Ok((handle, term)) => handle.try_enqueue_in(Some(*term), batch),
            Err(error) => Err(error.clone()),
        };
        // once one is refused the later ones are too: order holds within a partition
        if let Err(error) = &queued {
            leader = Err(error.clone());
        }
        pending.push((run.numbers, queued));
    }
    let mut done = Vec::new();
    for (numbers, queued) in pending {
        let appended = match queued {
            Ok(mut pending) => resolve(&mut pending).await,
            Err(error) => Err(error),
        };
        for (position, n) in (0u16..).zip(numbers) {
            let result = match &appended {
                Ok(appended) => result(partition, appended, position),
                Err(error) => v1::CommandResult {
                    status: Some(append_failed(error)),
                    partition: u32::from(partition.0),
                    offset: 0,
                },
            };
            done.push((n, result));
        }
    }
    done
}

/// Waits for a queued batch.
pub async fn resolve(pending: &mut Pending) -> Result<Appended, AppendError> {
    // the appender answers everything it takes, unless it is torn down
    pending.await.unwrap_or(Err(AppendError::Unknown { waited: std::time::Duration::ZERO }))
}

/// What the n-th record of a batch came to.
pub fn result(partition: PartitionId, appended: &Appended, n: u16) -> v1::CommandResult {
    let here = |status, offset: Offset| v1::CommandResult {
        status: Some(status),
        partition: u32::from(partition.0),
        offset: offset.0,
    };
    match appended.verdict(n) {
        Verdict::Applied => here(status(v1::Code::Applied, ""), appended.offset(n)),
        Verdict::Forwarded(_) => here(status(v1::Code::Forwarded, ""), appended.offset(n)),
        Verdict::Refused(Refusal::Repeated { original, code }) => {
            let took_effect = matches!(code, v1::Code::Applied | v1::Code::Forwarded);
            // what was refused the first time had no offset to show then either
            let offset = if took_effect { original } else { Offset::ZERO };
            here(status(code, "submitted before under this key"), offset)
        }
        Verdict::Refused(refusal) => here(refusal_status(&refusal), Offset::ZERO),
    }
}

/// What a refusal by the state means to who sent the command.
pub fn refusal_status(refusal: &Refusal) -> v1::Status {
    use v1::Code;
    let (code, message) = match refusal {
        Refusal::Gone => (Code::Gone, "no such connection, or it is closed"),
        Refusal::StaleEpoch => (Code::StaleEpoch, "the partition belongs to another assignment now"),
        Refusal::NotOpen => (Code::NotOpen, "an event is not open any more"),
        Refusal::NotPending => (Code::Refused, "the connection does not wait for this group's decision"),
        Refusal::KeyReused => (Code::KeyReused, "the idempotency key was used with another command"),
        Refusal::Repeated { code, .. } => (*code, "submitted before under this key"),
        Refusal::Limit => {
            (Code::Throttled, "a limit is reached: attributes, channels of a connection, or forwards that wait")
        }
        Refusal::Malformed => (Code::Invalid, "the command is malformed"),
        Refusal::OutOfSequence
        | Refusal::Fenced
        | Refusal::ConnectionExists
        | Refusal::ForwardGap
        | Refusal::WithBatch => (Code::Refused, "refused with its batch"),
    };
    status(code, message)
}

/// What a failed append means to who sent the command.
pub fn append_failed(error: &AppendError) -> v1::Status {
    let code = match error {
        AppendError::NotLeader { .. } | AppendError::Closed { .. } => v1::Code::NoLeader,
        AppendError::TooLarge { .. } => v1::Code::TooLarge,
        AppendError::Busy { .. } | AppendError::Full(_) => v1::Code::Throttled,
        AppendError::Unknown { .. } => v1::Code::Unknown,
    };
    status(code, error.to_string())
}

fn status(code: v1::Code, message: impl Into<String>) -> v1::Status {
    v1::Status { code: code.into(), message: message.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        node::NodeConfig,
        testing::{attach, connection, count, edge, message, opened},
    };

    async fn node(dir: &tempfile::TempDir) -> (Node, append::Handle, u64) {
        let node = Node::open(NodeConfig::new(dir.path(), "test", count(1))).await.unwrap();
        node.wait_ready().await.unwrap();
        let (handle, term) = leader(&node, PartitionId(0)).unwrap();
        handle.append(attach(0)).await.unwrap();
        handle.append(edge(1, &[opened(connection(0, 1))])).await.unwrap();
        (node, handle, term)
    }

    fn runs(texts: &[&'static str]) -> Vec<Run> {
        let body = |text: &&'static str| v1::Pushed { kind: 1, payload: text.as_bytes().into() };
        let record = |text| Record::new(trunkline_proto::RecordKind::Pushed, connection(0, 1), "", &body(text));
        texts
            .iter()
            .enumerate()
            .map(|(n, text)| Run { numbers: vec![n], records: vec![record(text)], bytes: 0 })
            .collect()
    }

    #[tokio::test]
    async fn no_command_is_appended_in_another_term_than_those_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let (node, handle, term) = node(&dir).await;
        let codes = |results: Vec<(usize, v1::CommandResult)>| -> Vec<v1::Code> {
            results.into_iter().map(|(_, result)| result.status.unwrap().code()).collect()
        };
        let append = |term| {
            append_runs(Ok((handle.clone(), term)), PartitionId(0), String::new(), String::new(), runs(&["a", "b"]))
        };
        let before = node.partition(PartitionId(0)).unwrap().tail.applied();
        // as if the request had come when this broker led before
        assert_eq!(codes(append(term - 1).await), [v1::Code::NoLeader; 2]);
        assert_eq!(node.partition(PartitionId(0)).unwrap().tail.applied(), before, "nothing happened");
        assert_eq!(codes(append(term).await), [v1::Code::Applied; 2]);
        drop(handle);
        node.shutdown().await;
    }

    #[tokio::test]
    async fn a_batch_of_another_term_leaves_those_it_waits_with_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (node, handle, term) = node(&dir).await;
        // queued without a pause, so that they wait together
        let terms = [None, Some(term - 1), Some(term), Some(term + 1), None];
        let mut sequence = 1;
        let pending: Vec<Pending> = terms
            .iter()
            .map(|bound| {
                sequence += u64::from(bound.is_none_or(|bound| bound == term));
                handle.try_enqueue_in(*bound, edge(sequence, &[message(connection(0, 1), b"x")])).unwrap()
            })
            .collect();
        let mut verdicts = Vec::new();
        for pending in pending {
            verdicts.push(pending.await.unwrap().map(|appended| appended.verdict(0)));
        }
        let refused = Err(AppendError::NotLeader { leader: None });
        let applied = Ok(Verdict::Applied);
        assert_eq!(verdicts, [applied.clone(), refused.clone(), applied.clone(), refused, applied]);
        drop(handle);
        node.shutdown().await;
    }
}
