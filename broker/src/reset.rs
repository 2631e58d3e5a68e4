//! Moves handler groups. Any broker takes the wish; each partition's leader resolves the place and appends. Repeating it is harmless.

use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use tokio::time::{Instant, sleep};
use trunkline_proto::{Batch, Offset, PartitionId, Record, RecordKind, Source, limits, v1, v1::peer as pb};

use crate::{
    core::Verdict,
    node::{CallError, CallKind, Node, NotCurrent, ReadError, Role},
    submit::{append_failed, refusal_status},
};

/// How long a partition may be without a leader once others are moved: an election and some.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long another broker may take to append.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Between attempts.
const RETRY: Duration = Duration::from_millis(50);

/// Why a group was not moved, or not in every partition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResetError {
    /// Caller error.
    #[error("{0}")]
    Invalid(&'static str),
    /// No partition knows it.
    #[error("there is no such group")]
    NoGroup,
    /// A partition has no leader that can be reached. Nothing is moved.
    #[error("nothing is moved: {0}")]
    NotCurrent(#[from] NotCurrent),
    /// Some partitions may be moved already.
    #[error("partition {partition}: {reason}. {}", said(moved, left))]
    Stopped {
        /// The one that did not take it.
        partition: PartitionId,
        /// What kind of failure.
        code: v1::Code,
        /// What it said.
        reason: String,
        /// Where the group is moved.
        moved: Vec<PartitionId>,
        /// Where nothing was tried.
        left: Vec<PartitionId>,
    },
    /// Moved everywhere, but this broker cannot tell how the group is now.
    #[error("the group is moved in every partition that knows it, but how it is now is not known: {0}")]
    Unseen(NotCurrent),
}

impl ResetError {
    /// What callers are told.
    pub fn code(&self) -> v1::Code {
        match self {
            Self::Invalid(_) => v1::Code::Invalid,
            Self::NoGroup => v1::Code::Gone,
            Self::NotCurrent(_) | Self::Unseen(_) => v1::Code::NoLeader,
            Self::Stopped { code, .. } => *code,
        }
    }
}

fn said(moved: &[PartitionId], left: &[PartitionId]) -> String {
    let list = |partitions: &[PartitionId]| match partitions {
        [] => "none".to_owned(),
        _ => partitions.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    };
    format!("Moved partitions: {}; not tried: {}. Repeating it is harmless", list(moved), list(left))
}

/// Moves a group in every partition that knows it: everything before `to` counts as settled, everything after as open. Afterwards this
/// broker's replicas hold it.
///
/// # Errors
/// The wish makes no sense, or a partition has no leader: then nothing is moved. Or a partition failed on the way.
pub async fn reset_group(node: &Node, name: &str, to: Option<v1::Start>) -> Result<(), ResetError> {
    if !limits::is_name(name) {
        return Err(ResetError::Invalid("a group's name is 1 to 64 of [A-Za-z0-9._-]"));
    }
    let to = to.filter(|to| to.at.is_some()).ok_or(ResetError::Invalid("`to` is missing"))?;
    // every leader has answered, with its majority: rather nothing is moved than a part
    node.all_current().await?;
    let knows = |id: &PartitionId| node.partition(*id).is_some_and(|it| it.state.read().group(name).is_some());
    let known: Vec<PartitionId> = node.partition_count().iter().filter(knows).collect();
    let mut moved = Vec::with_capacity(known.len());
    for (n, partition) in known.iter().copied().enumerate() {
        let status = at_leader(node, partition, name, to).await;
        match status.code() {
            v1::Code::Applied => moved.push(partition),
            // dropped meanwhile
            v1::Code::Gone => {}
            code => {
                let left = known.get(n + 1..).unwrap_or_default().to_vec();
                return Err(ResetError::Stopped { partition, code, reason: status.message, moved, left });
            }
        }
    }
    if moved.is_empty() {
        return Err(ResetError::NoGroup);
    }
    node.current(moved).await.map_err(ResetError::Unseen)
}

/// Here or at another broker, whoever leads; again as long as nothing has happened.
async fn at_leader(node: &Node, partition: PartitionId, name: &str, to: v1::Start) -> v1::Status {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let role = node.partition(partition).map(|handle| *handle.role.borrow());
        let status = match role {
            Some(Role::Follower { leader: Some(id) }) => ask(node, id, partition, name, to).await,
            _ => here(node, partition, name, to).await,
        };
        if status.code() != v1::Code::NoLeader || Instant::now() >= deadline {
            return status;
        }
        sleep(RETRY).await;
    }
}

async fn ask(node: &Node, id: u64, partition: PartitionId, name: &str, to: v1::Start) -> v1::Status {
    let call = pb::ResetCall { partition: u32::from(partition.0), group: name.to_owned(), to: Some(to) };
    let answer = node.peers().call(id, CallKind::Reset, call.encode_to_vec().into(), CALL_TIMEOUT).await;
    let unknown = |reason: String| status(v1::Code::Unknown, format!("broker {id}: {reason}"));
    match answer {
        Ok(answer) => v1::Status::decode(answer).unwrap_or_else(|error| unknown(error.to_string())),
        Err(CallError::NotSent(reason)) => status(v1::Code::NoLeader, reason),
        Err(CallError::Unknown(reason)) => unknown(reason),
    }
}

/// Answers the call of another broker, which takes this one for the partition's leader: an encoded `trunkline.v1.Status`. Not passed on.
pub async fn answer(node: &Node, call: Bytes) -> Bytes {
    let status = match read(call) {
        Ok((partition, name, to)) => here(node, partition, &name, to).await,
        Err(error) => status(v1::Code::Invalid, error),
    };
    status.encode_to_vec().into()
}

fn read(call: Bytes) -> Result<(PartitionId, String, v1::Start), String> {
    let call = pb::ResetCall::decode(call).map_err(|error| error.to_string())?;
    let partition = u16::try_from(call.partition).map_err(|error| error.to_string())?;
    let to = call.to.filter(|to| to.at.is_some()).ok_or("`to` is missing")?;
    Ok((PartitionId(partition), call.group, to))
}

/// Moves the group in a partition that this broker leads.
async fn here(node: &Node, id: PartitionId, name: &str, to: v1::Start) -> v1::Status {
    let Some(partition) = node.partition(id) else {
        return status(v1::Code::NoLeader, "this broker holds no replica of it");
    };
    // asked first: an old state would make an old place of it
    if !matches!(*partition.role.borrow(), Role::Leader { .. }) {
        return status(v1::Code::NoLeader, "it has no leader that is known here");
    }
    let end = Offset::end_of(partition.tail.applied());
    let through = match node.resolve_start(id, &to).await.map(|start| start.at) {
        Ok(Some(v1::start::At::Latest(_))) => end,
        Ok(Some(v1::start::At::Offset(offset))) => Offset(offset.saturating_sub(1)).min(end),
        Ok(_) => Offset::ZERO,
        Err(error @ ReadError::Store(_)) => return status(v1::Code::NoLeader, error.to_string()),
        Err(error) => return status(v1::Code::Refused, error.to_string()),
    };
    let reset = v1::GroupReset { group: name.to_owned(), start: Some(to), through: through.0 };
    let record = Record::new(RecordKind::GroupReset, Default::default(), "", &reset);
    match partition.append.append(Batch::new(Source::Leader, &[record])).await {
        Ok(appended) => match appended.verdict(0) {
            Verdict::Refused(refusal) => refusal_status(&refusal),
            Verdict::Applied | Verdict::Forwarded(_) => status(v1::Code::Applied, ""),
        },
        Err(error) => append_failed(&error),
    }
}

fn status(code: v1::Code, message: impl Into<String>) -> v1::Status {
    v1::Status { code: code.into(), message: message.into() }
}
