//! The cluster as JSON, as `cluster status --json` and `GET /v1/cluster` show it.

use serde_json::json;

use super::{Object, offset};
use crate::v1;

/// What a broker is in the groups of a cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// It votes in every partition.
    Voter,
    /// It is a member, and does not vote in every partition: it is being added or removed.
    Learner,
    /// No partition counts it: it was removed, or waits to be added.
    None,
}

impl Standing {
    /// As the description's partitions have it.
    pub fn of(broker: u64, description: &v1::DescribeResponse) -> Self {
        let rows = || description.partitions.iter();
        let votes = |row: &v1::Partition| row.voters.contains(&broker);
        match () {
            () if !rows().any(|row| votes(row) || row.learners.contains(&broker)) => Self::None,
            () if rows().all(votes) => Self::Voter,
            () => Self::Learner,
        }
    }

    /// As text: `voter`, `learner`, `none`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Voter => "voter",
            Self::Learner => "learner",
            Self::None => "none",
        }
    }
}

/// The whole cluster. Who leads is `null` where nobody does, and the term where the leader did not answer.
pub fn cluster(description: &v1::DescribeResponse) -> Object {
    let known = |number: u64| Some(number).filter(|number| *number > 0);
    let broker = |broker: &v1::Broker| {
        json!({"id": broker.id, "standing": Standing::of(broker.id, description).name(), "grpc": broker.grpc,
            "link": broker.link, "http": broker.http, "reachable": broker.reachable, "answered": broker.answered,
            // of one that does not answer nobody knows
            "healthy": broker.answered.then_some(broker.healthy), "version": broker.version,
            "problem": broker.problem, "disk_free_bytes": known(broker.disk_free_bytes)})
    };
    let replica = |replica: &v1::Replica| {
        json!({"broker": replica.broker, "voter": replica.voter, "reachable": replica.reachable,
            "applied": offset(replica.applied), "lag": replica.reachable.then_some(replica.lag),
            "snapshot": offset(replica.snapshot), "digest": digest(replica.digest), "problem": replica.problem})
    };
    let partition = |partition: &v1::Partition| {
        json!({
            "partition": partition.partition, "leader": known(partition.leader), "voters": partition.voters,
            "learners": partition.learners, "replicas": partition.replicas.iter().map(replica).collect::<Vec<_>>(),
            "term": known(partition.term),
            "applied": offset(partition.applied), "earliest": offset(partition.earliest),
            "snapshot": offset(partition.snapshot), "connections": partition.connections,
            "channels": partition.channels, "digest": digest(partition.digest),
        })
    };
    let edge = |edge: &v1::Edge| {
        json!({"edge": edge.edge, "incarnation": edge.incarnation, "attached": edge.attached,
            "connections": edge.connections, "lag": edge.lag})
    };
    let mut object = Object::default();
    object.put("cluster", description.cluster.as_str()).put("version", description.version.as_str());
    object.put("partition_count", description.partition_count);
    object.put("brokers", description.brokers.iter().map(broker).collect::<Vec<_>>());
    object.put("partitions", description.partitions.iter().map(partition).collect::<Vec<_>>());
    object.put("edges", description.edges.iter().map(edge).collect::<Vec<_>>());
    object
}

/// A digest, of 64 bits, as text: JSON numbers lose bits in many readers.
pub fn digest(digest: u64) -> String {
    format!("{digest:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_votes_nowhere_or_not_everywhere_is_told_apart() {
        let row = |voters: &[u64], learners: &[u64]| v1::Partition {
            voters: voters.to_vec(),
            learners: learners.to_vec(),
            ..Default::default()
        };
        let partitions = vec![row(&[1, 2], &[3]), row(&[1, 2, 4], &[])];
        let description = v1::DescribeResponse { partitions, ..Default::default() };
        let standing = |id| Standing::of(id, &description);
        assert_eq!(
            [standing(1), standing(3), standing(4), standing(5)],
            [Standing::Voter, Standing::Learner, Standing::Learner, Standing::None]
        );
        assert_eq!(Standing::of(1, &v1::DescribeResponse::default()), Standing::None);
    }

    #[test]
    fn what_is_not_known_is_null() {
        let replica = v1::Replica { broker: 2, voter: true, ..Default::default() };
        let partition = v1::Partition { voters: vec![2], replicas: vec![replica], ..Default::default() };
        let brokers = vec![v1::Broker { id: 2, ..Default::default() }];
        let description = v1::DescribeResponse { brokers, partitions: vec![partition], ..Default::default() };
        let text = serde_json::to_value(cluster(&description)).unwrap();
        for path in ["/partitions/0/leader", "/partitions/0/term", "/partitions/0/replicas/0/lag", "/brokers/0/healthy"]
        {
            assert!(text.pointer(path).unwrap().is_null(), "{path}");
        }
        assert_eq!(text.pointer("/brokers/0/standing").unwrap(), "voter");
    }
}
