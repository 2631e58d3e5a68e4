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

/// A follower whose folder is put back to what it was before it acknowledged entries of partition 0. It does not run.
async fn put_back(cluster: &mut Cluster, follower: u64) {
    cluster.same_everywhere(&[1, 2, 3]).await;
    cluster.stop(follower).await;
    let older = cluster.folder.path().join("older");
    copy(&cluster.data(follower), &older);
    cluster.start(follower).await;
    for sequence in 2..=20 {
        cluster.say(0, sequence).await;
    }
    cluster.same_everywhere(&[1, 2, 3]).await;
    let had = handle(cluster.node(follower), 0).tail.applied().0 + 1;
    for other in (1..=3).filter(|id| *id != follower) {
        let witness = &cluster.node(other).peers().own().witness;
        eventually(|| (witness.end_of(follower, PartitionId(0)) >= had).then_some(())).await;
    }
    cluster.stop(follower).await;
    std::fs::remove_dir_all(cluster.data(follower)).unwrap();
    std::fs::rename(&older, cluster.data(follower)).unwrap();
}

/// It knows that its folder is an older copy, and has closed every partition for good.
async fn is_closed(cluster: &Cluster, id: u64) {
    let remedy = format!("cluster remove {id}");
    let is_told = |reason: &String| reason.contains("older copy") && reason.contains(&remedy);
    eventually(|| cluster.node(id).readiness().err().filter(is_told)).await;
    for partition in 0..PARTITIONS {
        let mut role = handle(cluster.node(id), partition).role.clone();
        tokio::time::timeout(PATIENCE, role.wait_for(|role| *role == Role::Closed)).await.unwrap().unwrap();
    }
}

/// A cluster, a broker of it that runs with an older copy of its folder and has closed, and another one.
async fn with_an_older_copy() -> (Cluster, u64, u64) {
    let mut cluster = Cluster::formed().await;
    cluster.open_connections().await;
    let follower = (1..=3).find(|id| (0..PARTITIONS).all(|partition| cluster.leader(partition) != Some(*id))).unwrap();
    put_back(&mut cluster, follower).await;
    cluster.start(follower).await;
    is_closed(&cluster, follower).await;
    (cluster, follower, follower % 3 + 1)
}

#[tokio::test]
async fn a_broker_whose_folder_is_an_older_copy_closes_and_is_rebuilt() {
    let (mut cluster, follower, other) = with_an_older_copy().await;
    cluster.say(0, 21).await;
    cluster.stop(follower).await;
    // whoever is there at its next start: the folder itself tells now, and why
    let report = crate::store::verify(&cluster.data(follower), |_| {}).unwrap();
    let says_why = |damage: &Option<String>| damage.as_ref().is_some_and(|damage| damage.contains("older copy"));
    assert!(report.partitions.iter().all(|partition| says_why(&partition.damage)), "{report:?}");
    std::fs::remove_dir_all(cluster.data(follower)).unwrap();
    cluster.start(follower).await;
    let link = cluster.address(follower).to_string();
    cluster.node(other).remove_member(follower).await.unwrap();
    cluster.node(other).add_member(follower, &link, PATIENCE).await.unwrap();
    cluster.ready(&[follower]).await;
    cluster.same_everywhere(&[1, 2, 3]).await;
    assert_eq!(records(cluster.node(follower), 0).await, 22);
    // what was known of the old folder does not count against the new one
    cluster.stop(follower).await;
    cluster.start(follower).await;
    cluster.ready(&[follower]).await;
    cluster.stop_all().await;
}

#[tokio::test]
async fn an_older_copy_sends_what_is_asked_of_it_to_the_others_and_says_what_to_do() {
    let (mut cluster, follower, other) = with_an_older_copy().await;
    // it knows who leads, though no leader speaks to it
    let node = cluster.node(follower);
    for partition in 0..PARTITIONS {
        let leader = cluster.leader(partition).unwrap();
        assert_eq!(node.find_leader(PartitionId(partition), PATIENCE).await, Some(leader));
        assert!(node.leaders().iter().any(|(id, by, link)| (id.0, *by) == (partition, leader) && link.is_some()));
    }
    // the others see it, and that it is not to lead
    let peers = cluster.node(other).peers();
    eventually(|| peers.member(follower).filter(|member| member.reachable)).await;
    let status = peers.status(follower, PATIENCE).await.unwrap();
    assert_eq!(status.closed, (0..u32::from(PARTITIONS)).collect::<Vec<_>>());
    for partition in 0..PARTITIONS {
        let leader = cluster.leader(partition).unwrap();
        let refused = cluster.node(other).transfer_leader(PartitionId(partition), follower).await.unwrap_err();
        assert!(refused.to_string().contains("cannot lead"), "{refused}");
        assert_eq!(cluster.leader(partition), Some(leader));
    }
    let log = |id: u64| cluster.node(id).membership(PartitionId(0)).voters;
    assert!(log(other).contains(&follower));
    // with it and one more there is no majority
    let refused = cluster.node(other).remove_member(6 - follower - other).await.unwrap_err();
    assert!(refused.to_string().contains("no majority would be left"), "{refused}");
    // it passes on what it is told to do about itself, and is taken back only with another folder
    node.remove_member(follower).await.unwrap();
    eventually(|| (!log(other).contains(&follower)).then_some(())).await;
    let link = cluster.address(follower).to_string();
    let refused = cluster.node(other).add_member(follower, &link, PATIENCE).await.unwrap_err();
    assert!(refused.to_string().contains("older copy") && refused.to_string().contains("delete its data folder"));
    // nor does it start again
    cluster.stop(follower).await;
    let founders = (1..=3).map(|id| Founder { id, link: cluster.address(id).to_string() }).collect();
    let config = NodeConfig::new(cluster.data(follower), "test", crate::testing::count(PARTITIONS));
    let again = Node::open(NodeConfig { node_id: follower, founders, ..config }).await;
    let Err(refused) = again else { panic!("it starts again") };
    let refused = refused.to_string();
    assert!(refused.contains("older copy") && refused.contains(&format!("cluster remove {follower}")), "{refused}");
    cluster.stop_all().await;
}

#[tokio::test]
async fn an_older_copy_elects_nobody_though_the_leader_it_acknowledged_to_is_gone() {
    let mut cluster = Cluster::formed().await;
    cluster.open_connections().await;
    let leader = cluster.leader(0).unwrap();
    let follower = (1..=3).find(|id| (0..PARTITIONS).all(|partition| cluster.leader(partition) != Some(*id))).unwrap();
    let other = 6 - leader - follower;
    put_back(&mut cluster, follower).await;
    cluster.stop(leader).await;
    // it knows by the follower's own word, and remembers it
    cluster.stop(other).await;
    cluster.start(other).await;
    cluster.start(follower).await;
    is_closed(&cluster, follower).await;
    assert_eq!(cluster.leader(0), None);
    cluster.start(leader).await;
    cluster.ready(&[leader, other]).await;
    cluster.same_everywhere(&[leader, other]).await;
    assert_eq!(records(cluster.node(other), 0).await, 21);
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
