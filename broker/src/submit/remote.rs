//! Commands for partitions that other brokers lead: asked there, with the same principal, key and numbers, so that a repeat by any way
//! takes effect once.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use prost::Message as _;
use tokio::{
    sync::Semaphore,
    time::{sleep, timeout},
};
use trunkline_proto::{Batch, PartitionId, Record, Source, limits, v1, v1::peer as pb};

use super::{LEADER_TIMEOUT, Run, Submitter, append_runs, leader, status};
use crate::{
    metrics::link::UNLOGGED_DROPPED_TOTAL,
    node::{CallError, CallKind, Node, Role},
};

/// How long another broker may take to apply commands.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between attempts at a leader that is just elected.
const RETRY: Duration = Duration::from_millis(50);
/// Unlogged publishes on their way to other brokers. More are dropped: they are promised at most once.
const RELAYED_MAX: usize = 256;

fn results(runs: &[Run], partition: PartitionId, status: &v1::Status) -> Vec<(usize, v1::CommandResult)> {
    let result = || v1::CommandResult { status: Some(status.clone()), partition: u32::from(partition.0), offset: 0 };
    runs.iter().flat_map(|run| &run.numbers).map(|n| (*n, result())).collect()
}

fn to_wire(run: &Run) -> pb::SubmitRun {
    let mut records = BytesMut::with_capacity(run.bytes);
    run.records.iter().for_each(|record| records.extend_from_slice(record.bytes()));
    let numbers = run.numbers.iter().map(|n| u32::try_from(*n).unwrap_or(u32::MAX));
    pb::SubmitRun { numbers: numbers.collect(), records: records.freeze() }
}

/// Has broker `id` apply the runs of a partition that it leads. Under a key they go to the next leader too, as soon as there is one
/// and `id` has not answered: whatever `id` makes of them, they take effect once.
pub(super) async fn apply(
    node: &Node,
    id: u64,
    partition: PartitionId,
    principal: String,
    key: String,
    runs: Vec<Run>,
) -> Vec<(usize, v1::CommandResult)> {
    let call = pb::SubmitCall {
        partition: u32::from(partition.0),
        principal: principal.clone(),
        key: key.clone(),
        runs: runs.iter().map(to_wire).collect(),
        unlogged: false,
    };
    let call: Bytes = call.encode_to_vec().into();
    let (mut id, mut is_first, deadline) = (id, true, Instant::now() + PATIENCE);
    loop {
        let calling = ask(node, id, &call, deadline);
        let answer = match key.is_empty() {
            true => Err(calling.await),
            false => first_of(calling, replaced(node, partition, id)).await,
        };
        match answer {
            Ok(Role::Follower { leader: Some(next) }) if Instant::now() < deadline => (id, is_first) = (next, false),
            Ok(Role::Follower { .. }) => {
                let unknown = CallError::Unknown("its leaders changed until the time was over".to_owned());
                return again(outcome(Err(unknown), id, partition, &runs));
            }
            Ok(_) => return again(append_runs(leader(node, partition), partition, principal, key, runs).await),
            Err(answer) => {
                let done = outcome(answer, id, partition, &runs);
                if is_first {
                    return done;
                }
                if Instant::now() + RETRY >= deadline || !done.iter().all(|(_, result)| is_no_leader(result)) {
                    return again(done);
                }
                // who is elected leads once it has applied what was committed before
                sleep(RETRY).await;
            }
        }
    }
}

/// Broker `id`'s answer, or who leads in its place: of a call whose outcome is not known it is waited for a while, for it is a
/// leader's end that cuts calls off.
async fn first_of(
    calling: impl Future<Output = Result<Bytes, CallError>>,
    replaced: impl Future<Output = Role>,
) -> Result<Role, Result<Bytes, CallError>> {
    let (calling, mut replaced) = (std::pin::pin!(calling), std::pin::pin!(replaced));
    tokio::select! {
        biased;
        answer = calling => match answer {
            Err(CallError::Unknown(_)) => timeout(LEADER_TIMEOUT, replaced).await.map_err(|_| answer),
            answer => Err(answer),
        },
        role = &mut replaced => Ok(role),
    }
}

/// Until this broker leads, or another than `id`.
async fn replaced(node: &Node, partition: PartitionId, id: u64) -> Role {
    let Some(partition) = node.partition(partition) else { return std::future::pending().await };
    let mut role = partition.role.clone();
    let is_other = |role: &Role| match role {
        Role::Leader { .. } => true,
        Role::Follower { leader } => leader.is_some_and(|leader| leader != id),
        Role::Closed => false,
    };
    let found = role.wait_for(is_other).await.map(|role| *role);
    match found {
        Ok(role) => role,
        // the node is gone
        Err(_) => std::future::pending().await,
    }
}

async fn ask(node: &Node, id: u64, call: &Bytes, deadline: Instant) -> Result<Bytes, CallError> {
    let patience = deadline.saturating_duration_since(Instant::now());
    node.peers().call(id, CallKind::Submit, call.clone(), patience).await
}

fn is_no_leader(result: &v1::CommandResult) -> bool {
    result.status.as_ref().is_some_and(|status| status.code() == v1::Code::NoLeader)
}

/// What was sent twice and was refused the second time may have happened the first time.
fn again(mut done: Vec<(usize, v1::CommandResult)>) -> Vec<(usize, v1::CommandResult)> {
    for status in done.iter_mut().filter_map(|(_, result)| result.status.as_mut()) {
        if matches!(status.code(), v1::Code::NoLeader | v1::Code::Throttled) {
            status.set_code(v1::Code::Unknown);
        }
    }
    done
}

fn outcome(
    answer: Result<Bytes, CallError>,
    id: u64,
    partition: PartitionId,
    runs: &[Run],
) -> Vec<(usize, v1::CommandResult)> {
    let unknown = |reason: String| status(v1::Code::Unknown, format!("broker {id}: {reason}"));
    let answer = match answer {
        Ok(answer) => pb::SubmitAnswer::decode(answer).map_err(|error| unknown(error.to_string())),
        Err(CallError::NotSent(reason)) => Err(status(v1::Code::NoLeader, reason)),
        Err(CallError::Unknown(reason)) => Err(unknown(reason)),
    };
    match answer {
        Ok(answer) if answer.error.is_empty() => {
            let known = answer.results.into_iter().filter_map(|result| Some((result.number as usize, result.result?)));
            let mut known: std::collections::BTreeMap<_, _> = known.collect();
            let missing = unknown("it says nothing of this command".to_owned());
            let all = results(runs, partition, &missing).into_iter();
            all.map(|(n, missing)| (n, known.remove(&n).unwrap_or(missing))).collect()
        }
        Ok(answer) => results(runs, partition, &status(v1::Code::Invalid, answer.error)),
        Err(status) => results(runs, partition, &status),
    }
}

/// Carries unlogged publishes to other brokers.
#[derive(Clone, Debug)]
pub(super) struct Relay(Arc<Semaphore>);

impl Default for Relay {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(RELAYED_MAX)))
    }
}

impl Relay {
    pub(super) fn publish(&self, node: &Node, id: u64, partition: PartitionId, record: &Record) {
        let Ok(permit) = Arc::clone(&self.0).try_acquire_owned() else {
            ::metrics::counter!(UNLOGGED_DROPPED_TOTAL).increment(1);
            return;
        };
        let call = pb::SubmitCall {
            partition: u32::from(partition.0),
            runs: vec![pb::SubmitRun { numbers: vec![0], records: record.bytes().clone() }],
            unlogged: true,
            ..Default::default()
        };
        let node = node.clone();
        tokio::spawn(async move {
            let call = call.encode_to_vec().into();
            if let Err(error) = node.peers().call(id, CallKind::Submit, call, PATIENCE).await {
                tracing::debug!(%partition, %error, "an unlogged publish is lost");
            }
            drop(permit);
        });
    }
}

/// See [`Submitter::answer`].
pub(super) async fn answer(submitter: &Submitter, call: Bytes) -> Bytes {
    let answer = match read(call) {
        Ok((_, call, batches)) if call.unlogged => {
            let records = batches.iter().flat_map(Batch::iter).filter_map(Result::ok);
            records.for_each(|record| submitter.unlogged.publish(record));
            pb::SubmitAnswer::default()
        }
        Ok((partition, call, batches)) => {
            let runs = call.runs.iter().zip(batches).map(|(run, batch)| Run {
                numbers: run.numbers.iter().map(|n| *n as usize).collect(),
                bytes: batch.records.len(),
                records: batch.iter().filter_map(Result::ok).collect(),
            });
            // not passed on: this broker is the leader, or the caller looks again
            let leader = leader(&submitter.node, partition);
            let done = append_runs(leader, partition, call.principal, call.key, runs.collect()).await;
            let results = done.into_iter().map(|(n, result)| pb::SubmitResult {
                number: u32::try_from(n).unwrap_or(u32::MAX),
                result: Some(result),
            });
            pb::SubmitAnswer { results: results.collect(), error: String::new() }
        }
        Err(error) => pb::SubmitAnswer { error, ..Default::default() },
    };
    answer.encode_to_vec().into()
}

/// Checks everything before anything happens.
fn read(call: Bytes) -> Result<(PartitionId, pb::SubmitCall, Vec<Batch>), String> {
    let call = pb::SubmitCall::decode(call).map_err(|error| error.to_string())?;
    let partition = u16::try_from(call.partition).map_err(|error| error.to_string())?;
    let batch = |run: &pb::SubmitRun| {
        let commands = run.numbers.len();
        let count = u16::try_from(commands).ok().filter(|count| usize::from(*count) <= limits::COMMANDS_MAX);
        let count = count.ok_or_else(|| format!("{commands} commands; at most {} are taken", limits::COMMANDS_MAX))?;
        Batch::checked(Source::Leader, count, run.records.clone()).map_err(|error| error.to_string())
    };
    let batches = call.runs.iter().map(batch).collect::<Result<_, _>>()?;
    Ok((PartitionId(partition), call, batches))
}

#[cfg(test)]
mod tests {
    use trunkline_proto::{ConnectionId, RecordKind};

    use super::*;

    fn call(commands: usize, numbers: usize) -> Bytes {
        let record = Record::new(RecordKind::Pushed, ConnectionId::NONE, "", &v1::Pushed::default());
        let records = record.bytes().repeat(commands).into();
        let run = pb::SubmitRun { numbers: (0..numbers as u32).collect(), records };
        pb::SubmitCall { partition: 1, runs: vec![run], ..Default::default() }.encode_to_vec().into()
    }

    #[test]
    fn a_call_of_more_commands_than_a_request_has_is_refused() {
        let max = limits::COMMANDS_MAX;
        assert!(read(call(max, max)).is_ok());
        for (commands, numbers) in [(max + 1, max + 1), (65_535, 65_535), (65_536, 65_536), (1, 2), (2, 1)] {
            assert!(read(call(commands, numbers)).is_err(), "{commands} {numbers}");
        }
    }
}
