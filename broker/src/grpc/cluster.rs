//! What a broker says of itself, and handler groups as operators see them.

use std::{fmt, sync::Arc};

use trunkline_proto::{PartitionId, v1};

use crate::{core::GroupView, handlers::Registry, node::Node};

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
