//! What a broker says of itself, and handler groups as operators see and move them.

use std::{fmt, sync::Arc};

use trunkline_proto::{Batch, Offset, PartitionId, Record, RecordKind, Source, limits, v1};

use crate::{
    append::AppendError,
    core::{GroupView, Verdict},
    handlers::{Registry, registry::resolve_start},
    node::{Node, ReadError},
};

/// What this broker says of itself.
#[derive(Clone)]
pub struct About {
    /// Name of the cluster.
    pub cluster: String,
    /// This broker's number.
    pub broker: u64,
    /// Where its gRPC listens.
    pub grpc: String,
    /// Where its edge link listens.
    pub link: String,
    /// Records that an edge's slowest delivery cursor is behind, by its name; 0 where it has none.
    pub edge_lag: Arc<dyn Fn(&str) -> u64 + Send + Sync>,
}

impl fmt::Debug for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cluster, broker, grpc, link, .. } = self;
        f.debug_struct("About")
            .field("cluster", cluster)
            .field("broker", broker)
            .field("grpc", grpc)
            .field("link", link)
            .finish_non_exhaustive()
    }
}

fn to_proto(partition: PartitionId, group: &GroupView<'_>, members: Vec<String>) -> v1::Group {
    v1::Group {
        group: group.name.to_owned(),
        partition: u32::from(partition.0),
        member: group.member.to_owned(),
        epoch: group.epoch,
        through: group.through.0,
        // both bounded by 10,000
        holes: u32::try_from(group.hole_count()).unwrap_or(u32::MAX),
        lag: group.lag,
        parked: u32::try_from(group.parked_count()).unwrap_or(u32::MAX),
        members,
    }
}

/// Handler groups by name and partition; `name` empty: all.
pub fn groups(node: &Node, registry: &Registry, name: &str) -> Vec<v1::Group> {
    let mut groups = Vec::new();
    for id in node.partition_count().iter() {
        let Some(partition) = node.partition(id) else { continue };
        let state = partition.state.read();
        let wanted = state.groups().filter(|group| name.is_empty() || group.name == name);
        groups.extend(wanted.map(|group| to_proto(id, &group, registry.members(group.name))));
    }
    groups.sort_by(|one, other| (&one.group, one.partition).cmp(&(&other.group, other.partition)));
    groups
}

/// Why a group was not moved, or not in every partition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResetError {
    /// Caller error.
    #[error("{0}")]
    Invalid(&'static str),
    /// No partition knows it.
    #[error("there is no such group")]
    NoGroup,
    /// The place cannot be found.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The log did not take it: partitions before this one are moved already.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// The state did not take it.
    #[error("partition {0} refused to move the group")]
    Refused(PartitionId),
}

/// Moves a group in every partition that knows it: everything before `to` counts as settled, everything after as open.
pub async fn reset_group(node: &Node, name: &str, to: Option<v1::Start>) -> Result<(), ResetError> {
    if !limits::is_name(name) {
        return Err(ResetError::Invalid("a group's name is 1 to 64 of [A-Za-z0-9._-]"));
    }
    let to = to.filter(|to| to.at.is_some()).ok_or(ResetError::Invalid("`to` is missing"))?;
    let mut moved = false;
    for id in node.partition_count().iter() {
        let Some(partition) = node.partition(id) else { continue };
        if partition.state.read().group(name).is_none() {
            continue;
        }
        let end = Offset::end_of(partition.tail.applied());
        let through = match resolve_start(node, id, &to).await?.at {
            Some(v1::start::At::Latest(true)) => end,
            Some(v1::start::At::Offset(offset)) => Offset(offset.saturating_sub(1)).min(end),
            _ => Offset::ZERO,
        };
        let reset = v1::GroupReset { group: name.to_owned(), start: Some(to), through: through.0 };
        let record = Record::new(RecordKind::GroupReset, Default::default(), "", &reset);
        let appended = partition.append.append(Batch::new(Source::Leader, &[record])).await?;
        if appended.verdict(0) != Verdict::Applied {
            return Err(ResetError::Refused(id));
        }
        moved = true;
    }
    if moved { Ok(()) } else { Err(ResetError::NoGroup) }
}
