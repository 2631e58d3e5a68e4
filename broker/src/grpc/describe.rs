//! What the cluster looks like: what each broker says of itself, put together by whoever is asked.

use std::collections::BTreeMap;

use prost::Message as _;
use trunkline_proto::{LogIndex, Offset, PartitionId, v1};

use super::About;
use crate::node::{MemberView, Membership, Node, Role};

/// Brokers, partitions and edges. Of a broker that does not answer in time only what others know is told.
pub async fn cluster(node: &Node, about: &About) -> v1::DescribeResponse {
    let mut description = own(node, about).await;
    let others = node.describe_others().await;
    let others: Vec<_> = others.into_iter().filter_map(|(_, bytes)| v1::DescribeResponse::decode(bytes).ok()).collect();
    merge(&mut description, &others, &node.peers().members());
    description
}

/// This broker, its partitions and what they know of edges.
pub async fn own(node: &Node, about: &About) -> v1::DescribeResponse {
    let mut snapshots = BTreeMap::new();
    for id in node.partition_count().iter() {
        // one that cannot be read is as good as none
        snapshots.insert(id, node.newest_snapshot(id).await.unwrap_or_default());
    }
    describe(node, about, &snapshots)
}

fn describe(node: &Node, about: &About, snapshots: &BTreeMap<PartitionId, LogIndex>) -> v1::DescribeResponse {
    let broker = v1::Broker {
        id: about.broker,
        grpc: about.grpc.clone(),
        link: about.link.clone(),
        healthy: node.health().is_ok(),
        reachable: true,
        http: node.peers().own().advertised.http.clone(),
    };
    let mut edges: BTreeMap<String, v1::Edge> = BTreeMap::new();
    let mut partitions = Vec::new();
    for id in node.partition_count().iter() {
        let Some(partition) = node.partition(id) else { continue };
        let (leader, term) = match *partition.role.borrow() {
            Role::Leader { term } => (about.broker, term),
            Role::Follower { leader } => (leader.unwrap_or_default(), 0),
            Role::Closed => (0, 0),
        };
        let snapshot =
            snapshots.get(&id).filter(|index| index.0 > 0).map_or(Offset::ZERO, |index| Offset::end_of(*index));
        let members = node.membership(id);
        let state = partition.state.read();
        for (_, view) in state.edges() {
            let edge = edges.entry(view.name.to_owned()).or_insert_with(|| v1::Edge {
                edge: view.name.to_owned(),
                lag: (about.edge_lag)(view.name),
                ..Default::default()
            });
            // the highest incarnation any partition knows is the one there is
            if view.incarnation >= edge.incarnation {
                edge.attached =
                    !view.lost && (view.incarnation > edge.incarnation || edge.attached || edge.incarnation == 0);
                edge.incarnation = view.incarnation;
            }
            edge.connections += view.connections as u64;
        }
        partitions.push(v1::Partition {
            partition: u32::from(id.0),
            leader,
            voters: members.voters.iter().copied().collect(),
            learners: members.learners().collect(),
            replicas: vec![replica(about.broker, &members, state.applied(), snapshot, state.digest())],
            term,
            applied: Offset::end_of(state.applied()).0,
            earliest: node.earliest(id).0,
            snapshot: snapshot.0,
            connections: state.connection_count() as u64,
            channels: state.channel_count() as u64,
            digest: state.digest(),
        });
    }
    v1::DescribeResponse {
        cluster: about.cluster.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        partition_count: u32::from(node.partition_count().get()),
        brokers: vec![broker],
        partitions,
        edges: edges.into_values().collect(),
    }
}

fn replica(broker: u64, members: &Membership, applied: LogIndex, snapshot: Offset, digest: u64) -> v1::Replica {
    v1::Replica {
        broker,
        voter: members.voters.contains(&broker),
        reachable: true,
        applied: Offset::end_of(applied).0,
        lag: 0,
        snapshot: snapshot.0,
        digest,
    }
}

/// Adds what the others say. Of a partition its leader knows best.
fn merge(description: &mut v1::DescribeResponse, others: &[v1::DescribeResponse], members: &[MemberView]) {
    for other in others {
        for broker in &other.brokers {
            description.brokers.retain(|known| known.id != broker.id);
            description.brokers.push(broker.clone());
        }
        for edge in &other.edges {
            match description.edges.iter_mut().find(|known| known.edge == edge.edge) {
                Some(known) => known.lag = known.lag.max(edge.lag),
                None => description.edges.push(edge.clone()),
            }
        }
    }
    for member in members {
        match description.brokers.iter_mut().find(|broker| broker.id == member.id) {
            Some(broker) => broker.reachable = member.reachable,
            None => description.brokers.push(v1::Broker {
                id: member.id,
                grpc: member.grpc.clone(),
                link: member.link.clone(),
                healthy: false,
                reachable: member.reachable,
                http: member.http.clone(),
            }),
        }
    }
    description.brokers.sort_by_key(|broker| broker.id);
    for own in &mut description.partitions {
        let rows = others.iter().flat_map(|other| &other.partitions).filter(|row| row.partition == own.partition);
        let mut replicas = std::mem::take(&mut own.replicas);
        replicas.extend(rows.clone().flat_map(|row| row.replicas.iter().cloned()));
        let leads = |row: &&v1::Partition| row.replicas.iter().any(|replica| replica.broker == row.leader);
        // of two that say so the one of the later term
        if let Some(leader) = rows.filter(leads).max_by_key(|row| row.term).filter(|row| row.term > own.term) {
            *own = leader.clone();
        }
        complete(own, replicas);
    }
}

/// A replica for each member, those too that did not answer, and how far each is behind.
fn complete(partition: &mut v1::Partition, mut replicas: Vec<v1::Replica>) {
    for (ids, voter) in [(&partition.voters, true), (&partition.learners, false)] {
        for id in ids {
            match replicas.iter_mut().find(|replica| replica.broker == *id) {
                Some(replica) => replica.voter = voter,
                None => replicas.push(v1::Replica { broker: *id, voter, ..Default::default() }),
            }
        }
    }
    replicas
        .retain(|replica| partition.voters.contains(&replica.broker) || partition.learners.contains(&replica.broker));
    let index = |offset: u64| Offset(offset).index().0;
    for replica in &mut replicas {
        replica.lag = index(partition.applied).saturating_sub(index(replica.applied));
    }
    replicas.sort_by_key(|replica| replica.broker);
    partition.replicas = replicas;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(broker: u64, leader: u64, term: u64, applied: u64) -> v1::DescribeResponse {
        let replica =
            v1::Replica { broker, voter: true, reachable: true, applied: applied << 16, ..Default::default() };
        let partition = v1::Partition {
            leader,
            term,
            voters: vec![1, 2, 3],
            learners: vec![4],
            applied: applied << 16,
            replicas: vec![replica],
            ..Default::default()
        };
        let broker = v1::Broker { id: broker, healthy: true, reachable: true, ..Default::default() };
        v1::DescribeResponse { brokers: vec![broker], partitions: vec![partition], ..Default::default() }
    }

    #[test]
    fn the_leader_knows_best_and_silent_members_are_named() {
        let mut description = said(1, 2, 0, 90);
        let member = |id, reachable| MemberView {
            id,
            link: format!("b{id}:1"),
            grpc: String::new(),
            http: String::new(),
            reachable,
            since: None,
        };
        let members = [member(1, true), member(2, true), member(3, false)];
        merge(&mut description, &[said(2, 2, 7, 100)], &members);
        let brokers: Vec<_> =
            description.brokers.iter().map(|broker| (broker.id, broker.healthy, broker.reachable)).collect();
        assert_eq!(brokers, [(1, true, true), (2, true, true), (3, false, false)]);
        let partition = &description.partitions[0];
        assert_eq!((partition.leader, partition.term, partition.applied >> 16), (2, 7, 100));
        let replicas: Vec<_> = partition
            .replicas
            .iter()
            .map(|replica| (replica.broker, replica.voter, replica.reachable, replica.lag))
            .collect();
        assert_eq!(replicas, [(1, true, true, 10), (2, true, true, 0), (3, true, false, 100), (4, false, false, 100)]);
    }
}
