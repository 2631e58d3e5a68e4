//! Brokers that lose what they had, and come back.

use super::{
    cluster_tests::{Cluster, PARTITIONS, eventually, handle, records},
    *,
};
use crate::link::tests::support::PATIENCE;

fn copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to.join(entry.file_name())),
            false => drop(std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}

#[tokio::test]
async fn a_broker_that_has_lost_what_it_acknowledged_catches_up() {
    let mut cluster = Cluster::formed().await;
    cluster.open_connections().await;
    let follower = (1..=3).find(|id| (0..PARTITIONS).all(|partition| cluster.leader(partition) != Some(*id))).unwrap();
    let others: Vec<u64> = (1..=3).filter(|id| *id != follower).collect();
    cluster.same_everywhere(&[1, 2, 3]).await;
    cluster.stop(follower).await;
    let older = cluster.folder.path().join("older");
    copy(&cluster.data(follower), &older);
    cluster.start(follower).await;
    for sequence in 2..=20 {
        cluster.say(0, sequence).await;
    }
    cluster.same_everywhere(&[1, 2, 3]).await;
    let terms = |cluster: &Cluster| -> Vec<Role> {
        others.iter().map(|id| *handle(cluster.node(*id), 0).role.borrow()).collect()
    };
    let led = terms(&cluster);
    cluster.stop(follower).await;
    std::fs::remove_dir_all(cluster.data(follower)).unwrap();
    std::fs::rename(&older, cluster.data(follower)).unwrap();
    cluster.start(follower).await;
    cluster.say(0, 21).await;
    cluster.same_everywhere(&[1, 2, 3]).await;
    // by the leader that had its acknowledgements
    assert_eq!(terms(&cluster), led);
    assert_eq!(records(cluster.node(follower), 0).await, 22);
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_broker_that_was_wiped_is_removed_and_added_again() {
    let mut cluster = Cluster::formed().await;
    cluster.open_connections().await;
    cluster.stop(3).await;
    std::fs::remove_dir_all(cluster.data(3)).unwrap();
    cluster.start(3).await;
    for sequence in 2..=40 {
        cluster.say(0, sequence).await;
    }
    let link = cluster.address(3).to_string();
    let refused = cluster.node(1).add_member(3, &link, PATIENCE).await.unwrap_err();
    assert!(refused.to_string().contains("remove it first"), "{refused}");
    cluster.node(2).remove_member(3).await.unwrap();
    assert_eq!(cluster.node(1).membership(PartitionId(0)).voters, [1, 2].into());
    cluster.node(1).add_member(3, &link, PATIENCE).await.unwrap();
    cluster.ready(&[3]).await;
    cluster.same_everywhere(&[1, 2, 3]).await;
    assert_eq!(records(cluster.node(3), 0).await, 41);
    // it counts again: with it and one more there is a majority
    cluster.stop(1).await;
    cluster.say(0, 41).await;
    cluster.say(1, 2).await;
    cluster.same_everywhere(&[2, 3]).await;
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_broker_that_is_added_hears_a_leader_that_was_added_before_it() {
    let mut cluster = Cluster::formed().await;
    cluster.open_connections().await;
    // more than is sent at first, to find out what the other has
    for sequence in 2..=40 {
        cluster.say(0, sequence).await;
    }
    for id in [1, 3] {
        cluster.stop(id).await;
        std::fs::remove_dir_all(cluster.data(id)).unwrap();
        cluster.start(id).await;
        let link = cluster.address(id).to_string();
        cluster.node(2).remove_member(id).await.unwrap();
        cluster.node(2).add_member(id, &link, PATIENCE).await.unwrap();
        cluster.ready(&[id]).await;
        // what the next one is sent begins with a membership in which this leader had another disk
        for partition in 0..PARTITIONS {
            cluster.node(2).transfer_leader(PartitionId(partition), id).await.unwrap();
        }
    }
    cluster.same_everywhere(&[1, 2, 3]).await;
    cluster.stop_all().await;
}

#[tokio::test]
async fn nobody_is_told_to_remove_a_broker_for_a_connection_to_its_process_from_before() {
    let cluster = Cluster::formed().await;
    let (peers, link) = (cluster.node(1).peers(), cluster.address(3).to_string());
    eventually(|| peers.disk(3)).await;
    // as if it had been wiped and added again while this connection stood
    let member = Member { link: link.clone(), disk: DiskId([7; 16]) };
    let first = peers.objection(3, &member).unwrap();
    assert!(first.contains("connected anew") && !first.contains("cluster remove"), "{first}");
    // it leads there still: then it is true
    let objection = || peers.objection(3, &member).filter(|reason| reason.contains("cluster remove 3"));
    eventually(objection).await;
    // and the one that is there is spoken to
    let there = Member { link, disk: eventually(|| peers.disk(3)).await };
    eventually(|| peers.objection(3, &there).is_none().then_some(())).await;
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_broker_that_was_removed_passes_on_what_operators_wish() {
    let cluster = Cluster::formed().await;
    cluster.node(2).remove_member(1).await.unwrap();
    // it may never have heard of it, and hears no leader any more
    let link = cluster.address(1).to_string();
    cluster.node(1).add_member(1, &link, PATIENCE).await.unwrap();
    assert_eq!(cluster.node(2).membership(PartitionId(0)).voters, [1, 2, 3].into());
    cluster.ready(&[1, 2, 3]).await;
    cluster.stop_all().await;
}
