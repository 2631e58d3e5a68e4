//! Three brokers in one process: real QUIC over loopback, real stores.

mod damage;
mod deaf;
mod recovery;
mod support;
mod trimming;

use std::time::Duration;

use tokio::time::{Instant, timeout};
use trunkline_proto::{
    Batch, LogIndex, Offset, Record,
    peer::{PEER_ALPN, PEER_VERSION, Stream as Kind},
    v1::peer as pb,
};

pub(crate) use self::support::{Cluster, PARTITIONS, eventually, handle, records};
use super::*;
use crate::{
    append::AppendError,
    core::Verdict,
    link::tests::support::{PATIENCE, Signed, client_config, client_endpoint},
    testing::{attach, connection, count, edge, message},
};

#[tokio::test]
async fn what_is_applied_is_on_every_broker() {
    let cluster = Cluster::formed().await;
    cluster.open_connections().await;
    for sequence in 2..=60 {
        for partition in 0..PARTITIONS {
            cluster.say(partition, sequence).await;
        }
    }
    cluster.same_everywhere(&[1, 2, 3]).await;
    for id in 1..=3 {
        for partition in 0..PARTITIONS {
            assert_eq!(records(cluster.node(id), partition).await, 61);
            assert_eq!(cluster.node(id).group(PartitionId(partition)).membership().voters, [1, 2, 3].into());
        }
        let members = cluster.node(id).peers().members();
        assert!(members.iter().all(|member| member.reachable), "{members:?}");
        assert_eq!(members.iter().map(|member| member.id).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(members[2].grpc, "grpc-3");
        assert_eq!(cluster.node(id).readiness(), Ok(()));
    }
    let follower = (1..=3).find(|id| cluster.leader(0) != Some(*id)).unwrap();
    let refused = handle(cluster.node(follower), 0).append.append(attach(0)).await.unwrap_err();
    assert_eq!(refused, AppendError::NotLeader { leader: cluster.leader(0) });
    let (_, leader, address) = cluster.node(follower).leaders().remove(0);
    assert_eq!((Some(leader), address), (cluster.leader(0), Some(cluster.address(leader).to_string())));
    cluster.stop_all().await;
}

#[tokio::test]
async fn another_leads_soon_after_a_leader_is_gone_and_the_old_one_catches_up() {
    let mut cluster = Cluster::formed().await;
    cluster.open_connections().await;
    for sequence in 2..=20 {
        cluster.say(0, sequence).await;
    }
    let gone = cluster.leader(0).unwrap();
    cluster.stop(gone).await;
    let begun = Instant::now();
    cluster.say(0, 21).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    for sequence in 22..=300 {
        cluster.say(0, sequence).await;
    }
    cluster.start(gone).await;
    cluster.ready(&[gone]).await;
    cluster.same_everywhere(&[1, 2, 3]).await;
    assert_eq!(records(cluster.node(gone), 0).await, 301);
    cluster.stop_all().await;
}

#[tokio::test]
async fn nothing_is_lost_when_all_restart() {
    let cluster = Cluster::formed().await;
    cluster.open_connections().await;
    for sequence in 2..=50 {
        cluster.say(1, sequence).await;
    }
    let before = cluster.same_everywhere(&[1, 2, 3]).await;
    let mut cluster = cluster.stop_all().await;
    for id in [3, 1, 2] {
        cluster.start(id).await;
    }
    cluster.ready(&[1, 2, 3]).await;
    assert_eq!(cluster.same_everywhere(&[1, 2, 3]).await, before);
    cluster.say(1, 51).await;
    cluster.same_everywhere(&[1, 2, 3]).await;
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_minority_refuses_and_leads_nothing() {
    let mut cluster = Cluster::formed().await;
    cluster.open_connections().await;
    let left = cluster.leader(0).unwrap();
    for id in (1..=3).filter(|id| *id != left) {
        cluster.stop(id).await;
    }
    let append = &handle(cluster.node(left), 0).append;
    let record = message(connection(0, 1), b"to nobody");
    // before it notices, what it takes stays unknown; it is never applied
    let early = timeout(Duration::from_millis(500), append.append(edge(2, std::slice::from_ref(&record)))).await;
    assert!(!matches!(early, Ok(Ok(_))), "{early:?}");
    let mut role = handle(cluster.node(left), 0).role.clone();
    timeout(PATIENCE, role.wait_for(|role| *role == Role::Follower { leader: None })).await.unwrap().unwrap();
    let refused = append.append(edge(2, &[record])).await.unwrap_err();
    assert_eq!(refused, AppendError::NotLeader { leader: None });
    assert!(cluster.node(left).readiness().unwrap_err().contains("no leader"));
    assert_eq!(records(cluster.node(left), 0).await, 2);
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_follower_that_hears_no_leader_names_none() {
    let mut cluster = Cluster::formed().await;
    cluster.open_connections().await;
    let leader = cluster.leader(0).unwrap();
    let left = leader % 3 + 1;
    assert_eq!(*handle(cluster.node(left), 0).role.borrow(), Role::Follower { leader: Some(leader) });
    for id in (1..=3).filter(|id| *id != left) {
        cluster.stop(id).await;
    }
    let mut role = handle(cluster.node(left), 0).role.clone();
    timeout(PATIENCE, role.wait_for(|role| *role == Role::Follower { leader: None })).await.unwrap().unwrap();
    assert!(cluster.node(left).readiness().is_err());
    // and so for every partition, each in its time
    eventually(|| cluster.node(left).leaders().is_empty().then_some(())).await;
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_wiped_broker_neither_votes_nor_acknowledges_and_says_so() {
    let mut cluster = Cluster::formed().await;
    cluster.open_connections().await;
    cluster.same_everywhere(&[1, 2, 3]).await;
    cluster.stop(3).await;
    std::fs::remove_dir_all(cluster.data(3)).unwrap();
    cluster.start(3).await;
    let reason =
        eventually(|| cluster.node(3).readiness().err().filter(|reason| reason.contains("another disk"))).await;
    assert!(reason.contains("cluster remove 3"), "{reason}");
    // a leader and its only sound follower: without the follower there is no majority, whatever the wiped one would say
    let other = (1..=2).find(|id| cluster.leader(0) != Some(*id)).unwrap();
    cluster.say(0, 2).await;
    let left = 3 - other;
    cluster.stop(other).await;
    let record = message(connection(0, 1), b"unheard");
    let append = &handle(cluster.node(left), 0).append;
    let taken = timeout(Duration::from_secs(5), append.append(edge(3, &[record]))).await;
    assert!(!matches!(taken, Ok(Ok(_))), "{taken:?}");
    assert!(!cluster.node(3).group(PartitionId(0)).is_formed());
    assert_eq!(records(cluster.node(3), 0).await, 0);
    cluster.start(other).await;
    cluster.ready(&[1, 2]).await;
    cluster.stop_all().await;
}

/// Dials a broker as another one would.
async fn dial(cluster: &Cluster, signed: &Signed, id: u64) -> (quinn::Connection, quinn::Endpoint) {
    let endpoint = client_endpoint();
    let config = client_config(&cluster.authority, Some(signed), PEER_ALPN);
    let name = format!("broker.{id}.trunkline.internal");
    let connecting = endpoint.connect_with(config, cluster.address(id), &name).unwrap();
    (timeout(PATIENCE, connecting).await.unwrap().unwrap(), endpoint)
}

fn hello(node: u64) -> Vec<u8> {
    use prost::Message as _;
    let hello = pb::Hello {
        version: PEER_VERSION,
        cluster: "test".into(),
        node,
        disk: vec![9; 16].into(),
        partition_count: PARTITIONS.into(),
        ..Default::default()
    };
    let body = hello.encode_to_vec();
    [&[Kind::Hello as u8, 0, 0], &(body.len() as u32).to_le_bytes()[..], &body].concat()
}

/// Sends bytes on a stream of their own; gives what is answered before it ends.
async fn exchange(connection: &quinn::Connection, bytes: &[u8]) -> Vec<u8> {
    let Ok((mut send, mut receive)) = connection.open_bi().await else { return Vec::new() };
    let _ = send.write_all(bytes).await;
    let _ = send.finish();
    timeout(PATIENCE, receive.read_to_end(1 << 20)).await.unwrap().unwrap_or_default()
}

#[tokio::test]
async fn only_a_broker_under_its_own_number_is_a_peer() {
    let mut cluster = Cluster::new();
    cluster.start(1).await;
    let edge = cluster.authority.sign("edge.e1.trunkline.internal");
    let (connection, _endpoint) = dial(&cluster, &edge, 1).await;
    let reason = timeout(PATIENCE, connection.closed()).await.unwrap().to_string();
    assert!(reason.contains("only brokers"), "{reason}");
    let broker = cluster.authority.sign("broker.2.trunkline.internal");
    let (connection, _endpoint) = dial(&cluster, &broker, 1).await;
    let answer = exchange(&connection, &hello(3)).await;
    assert!(String::from_utf8_lossy(&answer).contains("its certificate that of broker 2"), "{answer:?}");
    timeout(PATIENCE, connection.closed()).await.unwrap();
    let (connection, _endpoint) = dial(&cluster, &broker, 1).await;
    let answer = exchange(&connection, &hello(2)).await;
    assert_eq!(answer.first(), Some(&0), "{answer:?}");
    // and nobody gets anything before hello
    let (connection, _endpoint) = dial(&cluster, &broker, 1).await;
    let answer = exchange(&connection, &[Kind::Status as u8, 0, 0, 0, 0, 0, 0]).await;
    assert!(String::from_utf8_lossy(&answer).contains("before hello"), "{answer:?}");
    cluster.stop_all().await;
}

#[tokio::test]
async fn garbage_on_a_peers_stream_ends_that_stream_only() {
    let mut cluster = Cluster::formed().await;
    cluster.open_connections().await;
    cluster.stop(3).await;
    let broker = cluster.authority.sign("broker.4.trunkline.internal");
    let (connection, _endpoint) = dial(&cluster, &broker, 1).await;
    assert_eq!(exchange(&connection, &hello(4)).await.first(), Some(&0));
    let frame = |kind: u8, partition: u8, body: &[u8]| {
        [&[kind, partition, 0], &(body.len() as u32).to_le_bytes()[..], body].concat()
    };
    for kind in 0..=12 {
        for partition in [0, 1, 200] {
            for body in [&[][..], &[0xff; 40], &[0x0a, 0x02, 0x08, 0x01], &[3, 1, 2]] {
                exchange(&connection, &frame(kind, partition, body)).await;
            }
            // a declared length that never comes, and one that may not
            let answer = exchange(&connection, &[kind, partition, 0, 0xff, 0xff, 0xff, 0x7f]).await;
            assert_ne!(answer.first(), Some(&0), "kind {kind}: {answer:?}");
            exchange(&connection, &[kind, partition, 0, 9, 0, 0, 0, 1]).await;
        }
    }
    // an append of somebody who leads nothing: a vote that is another's, entries that do not follow
    let vote = |node, committed| pb::Vote { term: 1 << 40, node, committed };
    let entry = pb::Entry { index: 7, stored: vec![1; 30].into() };
    for append in [
        pb::Append { vote: Some(vote(1, true)), ..Default::default() },
        pb::Append { vote: Some(vote(4, false)), ..Default::default() },
        pb::Append { vote: Some(vote(4, true)), entries: vec![entry], ..Default::default() },
    ] {
        use prost::Message as _;
        let answer = exchange(&connection, &frame(Kind::Append as u8, 0, &append.encode_to_vec())).await;
        assert_eq!(answer.first(), Some(&1), "{append:?}: {answer:?}");
    }
    assert!(connection.close_reason().is_none(), "{:?}", connection.close_reason());
    cluster.say(0, 2).await;
    cluster.start(3).await;
    cluster.same_everywhere(&[1, 2, 3]).await;
    cluster.stop_all().await;
}

#[tokio::test]
async fn members_come_and_go_and_leaders_move() {
    let mut cluster = Cluster::formed().await;
    cluster.open_connections().await;
    cluster.start(4).await;
    let reason =
        eventually(|| cluster.node(4).readiness().err().filter(|reason| reason.contains("cluster add 4"))).await;
    assert!(reason.starts_with("waiting to be added"), "{reason}");
    let link = cluster.brokers[3].as_ref().unwrap().endpoint.local_addr().unwrap().to_string();
    let nobody = cluster.node(1).add_member(5, "127.0.0.1:1", PATIENCE).await.unwrap_err();
    assert!(nobody.to_string().contains("broker 5 is not reached at 127.0.0.1:1"), "{nobody}");
    cluster.node(3).add_member(4, &link, PATIENCE).await.unwrap();
    cluster.ready(&[4]).await;
    for partition in 0..PARTITIONS {
        cluster.node(2).transfer_leader(PartitionId(partition), 4).await.unwrap();
        eventually(|| (cluster.leader(partition) == Some(4)).then_some(())).await;
        cluster.say(partition, 2).await;
    }
    let refused = cluster.node(2).transfer_leader(PartitionId(0), 5).await.unwrap_err();
    assert!(refused.to_string().contains("has no vote"), "{refused}");
    // the one that leads everything is taken out; others take over
    cluster.node(1).remove_member(4).await.unwrap();
    for partition in 0..PARTITIONS {
        cluster.say(partition, 3).await;
        assert_eq!(cluster.node(1).membership(PartitionId(partition)).members.len(), 3);
    }
    assert!(cluster.node(1).remove_member(4).await.unwrap_err().to_string().contains("no member"));
    eventually(|| cluster.node(4).readiness().err().filter(|reason| reason.contains("no leader"))).await;
    cluster.same_everywhere(&[1, 2, 3]).await;
    // nobody wants a connection to it any more; the members are wanted each second
    assert!(cluster.node(1).peers().member(4).is_some());
    eventually(|| {
        cluster.node(1).peers().forget(Duration::from_secs(3));
        cluster.node(1).peers().member(4).is_none().then_some(())
    })
    .await;
    let members = || cluster.node(1).peers().members();
    eventually(|| (members().len() == 3 && members().iter().all(|member| member.reachable)).then_some(())).await;
    // without a majority that answers nobody is taken out
    cluster.stop(3).await;
    let gone = |node: &Node| node.peers().member(3).is_some_and(|member| !member.reachable).then_some(());
    eventually(|| gone(cluster.node(1)).and(gone(cluster.node(2)))).await;
    let refused = cluster.node(1).remove_member(2).await.unwrap_err();
    assert!(refused.to_string().contains("no majority would be left"), "{refused}");
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_leader_whose_disk_is_full_makes_way_for_one_with_room() {
    let cluster = Cluster::formed().await;
    cluster.open_connections().await;
    cluster.same_everywhere(&[1, 2, 3]).await;
    let full = cluster.leader(0).unwrap();
    let (other, left) = (full % 3 + 1, (full + 1) % 3 + 1);
    // the last one has no room either
    for id in [full, other] {
        cluster.node(id).inner.space.pretend(0);
    }
    let begun = Instant::now();
    cluster.say(0, 2).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    for partition in 0..PARTITIONS {
        eventually(|| (cluster.leader(partition) == Some(left)).then_some(())).await;
    }
    assert!(cluster.node(full).readiness().unwrap_err().contains("broker.disk_reserve"));
    cluster.same_everywhere(&[1, 2, 3]).await;
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_broker_that_stops_in_order_leaves_no_partition_without_a_leader() {
    let mut cluster = Cluster::formed().await;
    cluster.open_connections().await;
    for partition in 0..PARTITIONS {
        cluster.node(1).transfer_leader(PartitionId(partition), 1).await.unwrap();
    }
    let begun = Instant::now();
    cluster.node(1).hand_over(PATIENCE).await;
    cluster.stop(1).await;
    for partition in 0..PARTITIONS {
        cluster.say(partition, 2).await;
    }
    assert!(begun.elapsed() < Duration::from_millis(1400), "no election had to be waited for: {:?}", begun.elapsed());
    cluster.stop_all().await;
}
