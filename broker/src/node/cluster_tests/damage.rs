//! Brokers whose disk fails, as a whole or in one partition.

use super::*;
use crate::store::marks::{self, Mark};

impl Cluster {
    /// Puts every leader at this broker.
    async fn led_by(&self, id: u64) {
        for partition in 0..PARTITIONS {
            let leader = eventually(|| self.leader(partition)).await;
            self.node(leader).transfer_leader(PartitionId(partition), id).await.unwrap();
            eventually(|| (self.leader(partition) == Some(id)).then_some(())).await;
        }
        self.same_everywhere(&[1, 2, 3]).await;
    }
}

#[tokio::test]
async fn a_leader_that_cannot_read_a_partition_hands_it_over_and_keeps_the_others() {
    let cluster = Cluster::formed().await;
    cluster.open_connections().await;
    cluster.say(0, 2).await;
    cluster.led_by(1).await;
    let node = cluster.node(1);
    node.spoil(PartitionId(0), LogIndex(3));
    let read = node.read_log(PartitionId(0), LogIndex(0), 1 << 20).await.unwrap_err();
    assert!(matches!(&read, ReadError::Damaged { place, .. } if place.contains("partition 0")), "{read}");
    eventually(|| cluster.leader(0).filter(|leader| *leader != 1)).await;
    assert_eq!(*handle(node, 0).role.borrow(), Role::Closed);
    assert_eq!(cluster.leader(1), Some(1));
    let reason = node.readiness().unwrap_err();
    assert!(reason.contains("partition 0") && reason.contains("cluster remove 1"), "{reason}");
    for partition in 0..PARTITIONS {
        cluster.say(partition, 3).await;
    }
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_leader_that_meets_a_flipped_bit_in_what_a_follower_lacks_hands_over() {
    let mut cluster = Cluster::formed().await;
    cluster.open_connections().await;
    cluster.led_by(1).await;
    cluster.stop(3).await;
    // more than is kept in memory for those that lag
    let text = vec![b'x'; 16 << 10];
    for sequence in 2..=80 {
        cluster.append(0, || edge(sequence, &[message(connection(0, 1), &text)])).await;
    }
    cluster.same_everywhere(&[1, 2]).await;
    let lacks = handle(cluster.node(1), 0).tail.applied().0 - 75;
    cluster.node(1).spoil(PartitionId(0), LogIndex(lacks));
    cluster.start(3).await;
    let next = eventually(|| cluster.leader(0).filter(|leader| *leader != 1)).await;
    assert_eq!(*handle(cluster.node(1), 0).role.borrow(), Role::Closed);
    let reason = cluster.node(1).readiness().unwrap_err();
    assert!(reason.contains(&format!("partition 0 index {lacks}")), "{reason}");
    assert!(reason.contains("cluster remove 1"), "{reason}");
    assert_eq!(cluster.leader(1), Some(1), "that one is sound");
    // the two that are sound go on, and what was spoilt reached nobody
    cluster.say(0, 81).await;
    eventually(|| {
        let digest = |id| handle(cluster.node(id), 0).state.read().digest();
        (digest(2) == digest(3)).then_some(())
    })
    .await;
    assert_eq!(records(cluster.node(3), 0).await, 82, "{next} leads");
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_broker_that_cannot_write_leads_nothing_any_more() {
    let cluster = Cluster::formed().await;
    cluster.open_connections().await;
    cluster.led_by(1).await;
    let node = cluster.node(1);
    node.writer().fail_next();
    let record = message(connection(0, 1), b"where?");
    let lost = timeout(PATIENCE, handle(node, 0).append.append(edge(2, &[record]))).await.unwrap();
    for partition in 0..PARTITIONS {
        eventually(|| cluster.leader(partition).filter(|leader| *leader != 1)).await;
        eventually(|| (*handle(node, partition).role.borrow() == Role::Closed).then_some(())).await;
        cluster.say(partition, 3 - u64::from(partition)).await;
    }
    assert!(!matches!(&lost, Err(AppendError::NotLeader { .. })), "{lost:?}");
    let reason = node.readiness().unwrap_err();
    assert!(reason.contains("injected failure"), "{reason}");
    cluster.same_everywhere(&[2, 3]).await;
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_broker_that_lost_what_it_acknowledged_has_no_vote_there_and_is_rebuilt() {
    let mut cluster = Cluster::formed().await;
    cluster.open_connections().await;
    cluster.led_by(1).await;
    cluster.stop(3).await;
    let before = marks::read(&cluster.data(3), count(PARTITIONS)).unwrap();
    let beyond = Mark { end: before[0].end + 1, ..before[0] };
    marks::write(&cluster.data(3), &[beyond, before[1]], true).unwrap();
    cluster.start(3).await;
    eventually(|| {
        matches!(*handle(cluster.node(3), 1).role.borrow(), Role::Follower { leader: Some(_) }).then_some(())
    })
    .await;
    let reason = cluster.node(3).readiness().unwrap_err();
    assert!(reason.contains("partition 0") && reason.contains("acknowledged data is lost"), "{reason}");
    // it holds the one and not the other: with the only sound follower gone, one of them has a majority
    cluster.stop(2).await;
    cluster.say(1, 2).await;
    let record = message(connection(0, 1), b"unheard");
    let append = &handle(cluster.node(1), 0).append;
    let taken = timeout(Duration::from_secs(4), append.append(edge(2, &[record]))).await;
    assert!(!matches!(taken, Ok(Ok(_))), "{taken:?}");
    cluster.start(2).await;
    cluster.ready(&[1, 2]).await;
    // as readiness says
    cluster.node(1).remove_member(3).await.unwrap();
    cluster.stop(3).await;
    std::fs::remove_dir_all(cluster.data(3)).unwrap();
    cluster.start(3).await;
    let link = cluster.address(3).to_string();
    cluster.node(1).add_member(3, &link, PATIENCE).await.unwrap();
    cluster.ready(&[3]).await;
    cluster.same_everywhere(&[1, 2, 3]).await;
    assert_eq!(cluster.node(3).readiness(), Ok(()));
    cluster.stop_all().await;
}
