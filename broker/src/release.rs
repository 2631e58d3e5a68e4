//! Takes dead letters out of a handler group. Any broker takes the wish; the partition's leader appends. Repeating it finds them gone.

use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use tokio::time::{Instant, sleep};
use trunkline_proto::{Batch, Offset, PartitionId, Record, RecordKind, Source, limits, v1, v1::peer as pb};

use crate::{
    core::{Refusal, Verdict},
    node::{CallError, CallKind, Node, Role},
    submit::{append_failed, refusal_status},
};

/// Most dead letters taken out at once.
pub const RELEASE_MAX: usize = 1000;
/// How long the partition may be without a leader: an election and some.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long another broker may take to append.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Between attempts.
const RETRY: Duration = Duration::from_millis(50);

/// Opens dead letters again, or with `discard` forgets them: all of the wish, or nothing. What became of it.
pub async fn release(node: &Node, partition: PartitionId, mut wish: v1::ParkedReleased) -> v1::Status {
    wish.offsets.sort_unstable();
    wish.offsets.dedup();
    if !limits::is_name(&wish.group) || wish.offsets.is_empty() || wish.offsets.len() > RELEASE_MAX {
        return status(v1::Code::Invalid, format!("a group's name and 1 to {RELEASE_MAX} offsets are expected"));
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let role = node.partition(partition).map(|handle| *handle.role.borrow());
        let status = match role {
            Some(Role::Follower { leader: Some(id) }) => ask(node, id, partition, &wish).await,
            _ => here(node, partition, &wish).await,
        };
        if status.code() != v1::Code::NoLeader || Instant::now() >= deadline {
            return status;
        }
        sleep(RETRY).await;
    }
}

async fn ask(node: &Node, id: u64, partition: PartitionId, wish: &v1::ParkedReleased) -> v1::Status {
    let call = pb::ReleaseCall { partition: u32::from(partition.0), release: Some(wish.clone()) };
    let answer = node.peers().call(id, CallKind::Release, call.encode_to_vec().into(), CALL_TIMEOUT).await;
    let unknown = |reason: String| status(v1::Code::Unknown, format!("broker {id}: {reason}"));
    match answer {
        Ok(answer) => v1::Status::decode(answer).unwrap_or_else(|error| unknown(error.to_string())),
        Err(CallError::NotSent(reason)) => status(v1::Code::NoLeader, reason),
        Err(CallError::Unknown(reason)) => unknown(reason),
    }
}

/// Answers the call of another broker, which takes this one for the partition's leader: an encoded `trunkline.v1.Status`. Not passed on.
pub async fn answer(node: &Node, call: Bytes) -> Bytes {
    let decoded = pb::ReleaseCall::decode(call).ok().and_then(|call| {
        let partition = u16::try_from(call.partition).ok()?;
        Some((PartitionId(partition), call.release?))
    });
    let status = match decoded {
        Some((partition, wish)) => here(node, partition, &wish).await,
        None => status(v1::Code::Invalid, "the call does not decode"),
    };
    status.encode_to_vec().into()
}

/// In a partition that this broker leads.
async fn here(node: &Node, id: PartitionId, wish: &v1::ParkedReleased) -> v1::Status {
    let Some(partition) = node.partition(id) else {
        return status(v1::Code::NoLeader, "this broker holds no replica of it");
    };
    if !matches!(*partition.role.borrow(), Role::Leader { .. }) {
        return status(v1::Code::NoLeader, "it has no leader that is known here");
    }
    let record = Record::new(RecordKind::ParkedReleased, Default::default(), "", wish);
    match partition.append.append(Batch::new(Source::Leader, &[record])).await {
        Ok(appended) => match appended.verdict(0) {
            Verdict::Refused(Refusal::Gone) => status(v1::Code::Gone, "no such dead letter, or no such group"),
            Verdict::Refused(Refusal::NotOpen) => {
                let earliest = node.earliest(id);
                let reason = format!(
                    "the log begins at {earliest}: what retention has taken cannot be tried again, only discarded"
                );
                status(v1::Code::Refused, reason)
            }
            Verdict::Refused(refusal) => refusal_status(&refusal),
            Verdict::Applied | Verdict::Forwarded(_) => status(v1::Code::Applied, ""),
        },
        Err(error) => append_failed(&error),
    }
}

/// A page of a group's dead letters, as this broker's replica has them: those after `after`, at most `limit`, and whether there are more.
pub fn page(node: &Node, id: PartitionId, group: &str, after: Offset, limit: usize) -> (Vec<v1::ParkedEvent>, bool) {
    /// More bytes of records do not fit one answer well.
    const BYTES_MAX: usize = 1 << 20;
    let Some(partition) = node.partition(id) else { return (Vec::new(), false) };
    let state = partition.state.read();
    let Some(group) = state.group(group) else { return (Vec::new(), false) };
    let (mut events, mut bytes) = (Vec::new(), 0);
    for (offset, event) in group.parked().filter(|(offset, _)| *offset > after) {
        if events.len() == limit || bytes > BYTES_MAX {
            return (events, true);
        }
        bytes += event.record.len();
        events.push(shown(offset, event));
    }
    (events, false)
}

fn shown(offset: Offset, event: &crate::core::ParkedEvent) -> v1::ParkedEvent {
    let mut logged = v1::LoggedRecord { offset: offset.0, time: event.at.0, ..Default::default() };
    // what does not decode is shown by its place alone
    if let Ok(record) = Record::split_from(&mut event.record.clone()) {
        logged.kind = u32::from(record.kind as u8);
        logged.connection = record.connection.0.to_vec().into();
        logged.api = record.api().to_owned();
        logged.body = record.body();
    }
    v1::ParkedEvent { record: Some(logged), attempts: event.attempt, reason: event.reason.to_string() }
}

fn status(code: v1::Code, message: impl Into<String>) -> v1::Status {
    v1::Status { code: code.into(), message: message.into() }
}
