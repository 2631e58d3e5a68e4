//! What the cluster looks like: what each broker says of itself, put together by whoever is asked.

use std::{collections::BTreeMap, time::Duration};

use prost::Message as _;
use trunkline_proto::{Offset, v1};

use super::About;
use crate::node::{MemberView, Newest, Node, Role};

/// How long a disk may take to tell of snapshots: a sick one may never, and its broker is to be described then most of all.
const SNAPSHOTS_TIMEOUT: Duration = Duration::from_secs(1);

/// Brokers, partitions and edges, as the leaders and each broker say. Of one that does not answer in time only what others know is told.
pub async fn cluster(node: &Node, about: &About) -> v1::DescribeResponse {
    let (mut description, others) = tokio::join!(own(node, about), node.describe_others());
    let others: Vec<_> = others.into_iter().filter_map(|(_, bytes)| v1::DescribeResponse::decode(bytes).ok()).collect();
    merge(&mut description, &others, &node.peers().members());
    description
}

/// The same as this broker alone knows it.
pub async fn local(node: &Node, about: &About) -> v1::DescribeResponse {
    let mut description = own(node, about).await;
    merge(&mut description, &[], &node.peers().members());
    description
}

/// This broker, its partitions and what they know of edges.
pub async fn own(node: &Node, about: &About) -> v1::DescribeResponse {
    describe(node, about, &node.newest_snapshots(SNAPSHOTS_TIMEOUT).await)
}

fn describe(node: &Node, about: &About, newest: &Newest) -> v1::DescribeResponse {
    let silent = |since: Duration| format!("its disk has not answered for {} s", since.as_secs());
    let broker = v1::Broker {
        id: about.broker,
        grpc: about.grpc.clone(),
        link: about.link.clone(),
        healthy: node.health().is_ok(),
        reachable: true,
        http: node.peers().own().advertised.http.clone(),
        answered: true,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        problem: node.readiness().err().or(newest.unanswered.map(silent)).unwrap_or_default(),
        disk_free_bytes: node.disk_free().unwrap_or_default(),
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
            newest.snapshots.get(&id).filter(|index| index.0 > 0).map_or(Offset::ZERO, |index| Offset::end_of(*index));
        let members = node.membership(id);
        let is_closed = *partition.role.borrow() == Role::Closed;
        let problem = if is_closed { node.why_closed(id) } else { String::new() };
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
            replicas: vec![v1::Replica {
                broker: about.broker,
                voter: members.voters.contains(&about.broker),
                reachable: true,
                applied: Offset::end_of(state.applied()).0,
                lag: 0,
                snapshot: snapshot.0,
                digest: state.digest(),
                problem,
            }],
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

/// Adds what the others say. Of a partition its leader knows best.
fn merge(description: &mut v1::DescribeResponse, others: &[v1::DescribeResponse], members: &[MemberView]) {
    for other in others {
        for broker in &other.brokers {
            description.brokers.retain(|known| known.id != broker.id);
            description.brokers.push(broker.clone());
        }
        for edge in &other.edges {
            match description.edges.iter_mut().find(|known| known.edge == edge.edge) {
                Some(known) => {
                    let lag = known.lag.max(edge.lag);
                    // a replica that is behind knows an older one
                    if edge.incarnation > known.incarnation {
                        *known = edge.clone();
                    }
                    known.lag = lag;
                }
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
                http: member.http.clone(),
                reachable: member.reachable,
                ..Default::default()
            }),
        }
    }
    description.brokers.sort_by_key(|broker| broker.id);
    for own in &mut description.partitions {
        let rows = others.iter().flat_map(|other| &other.partitions).filter(|row| row.partition == own.partition);
        let mut replicas = std::mem::take(&mut own.replicas);
        replicas.extend(rows.clone().flat_map(|row| row.replicas.iter().cloned()));
        let leads = |row: &&v1::Partition| row.replicas.iter().any(|replica| replica.broker == row.leader);
        // of two that say so the one of the later term; of none the one that has heard most
        let leader = rows.clone().filter(leads).max_by_key(|row| row.term).filter(|row| row.term > own.term);
        let furthest = || rows.max_by_key(|row| row.applied).filter(|row| own.term == 0 && row.applied > own.applied);
        if let Some(known) = leader.or_else(furthest) {
            *own = known.clone();
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
        let broker = v1::Broker { id: broker, healthy: true, reachable: true, answered: true, ..Default::default() };
        v1::DescribeResponse { brokers: vec![broker], partitions: vec![partition], ..Default::default() }
    }

    #[test]
    fn where_nobody_leads_the_one_that_has_heard_most_knows_who_the_members_are() {
        let mut stale = said(1, 0, 0, 90);
        let mut later = said(2, 0, 0, 100);
        later.partitions[0].voters = vec![2, 3];
        merge(&mut stale, &[later.clone()], &[]);
        assert_eq!(stale.partitions[0].voters, [2, 3]);
        merge(&mut later, &[said(1, 0, 0, 90)], &[]);
        assert_eq!(later.partitions[0].voters, [2, 3]);
        // a leader's word stands, whatever others have
        let mut leader = said(1, 1, 3, 90);
        merge(&mut leader, &[said(2, 0, 0, 100)], &[]);
        assert_eq!(leader.partitions[0].leader, 1);
    }

    #[test]
    fn an_edge_is_as_the_replica_that_knows_its_last_incarnation_says() {
        let edge = |incarnation, lag| v1::Edge { edge: "e".into(), incarnation, lag, ..Default::default() };
        let with = |edge| v1::DescribeResponse { edges: vec![edge], ..Default::default() };
        let mut description = with(edge(1, 7));
        merge(&mut description, &[with(edge(3, 2)), with(edge(2, 9))], &[]);
        assert_eq!((description.edges[0].incarnation, description.edges[0].lag), (3, 9));
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
