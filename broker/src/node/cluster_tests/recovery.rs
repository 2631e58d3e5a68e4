//! A majority of the disks is lost, and one broker goes on alone.

use super::*;
use crate::{
    node::recover::{RecoverError, recover, survey},
    store,
};

/// Messages that the survivor has.
const SAID: u64 = 20;

#[tokio::test]
async fn one_of_three_goes_on_with_all_it_has_and_takes_new_ones_in_place_of_lost_disks() {
    let mut cluster = Cluster::formed().await;
    cluster.open_connections().await;
    for sequence in 2..=SAID {
        cluster.say(0, sequence).await;
    }
    cluster.same_everywhere(&[1, 2, 3]).await;
    for id in 1..=3 {
        cluster.stop(id).await;
    }
    let lost = cluster.folder.path().join("lost");
    std::fs::rename(cluster.data(2), &lost).unwrap();
    std::fs::remove_dir_all(cluster.data(1)).unwrap();
    let found = survey(&cluster.data(3)).unwrap();
    assert_eq!(found.left_behind.keys().copied().collect::<Vec<_>>(), [1, 2]);
    assert!(found.partitions.len() == usize::from(PARTITIONS) && found.partitions[0].last.index.0 > SAID);
    assert!(found.partitions.iter().all(|kept| kept.had_more.is_empty()), "{found:?}");
    assert_eq!(survey(&cluster.data(3)).unwrap(), found, "to look changes nothing");
    assert_eq!(recover(&cluster.data(3)).unwrap(), found);
    assert!(store::verify(&cluster.data(3), |_| {}).unwrap().is_sound());
    assert!(matches!(survey(&cluster.data(3)), Err(RecoverError::Alone { broker: 3 })));
    // it goes on by itself, with the same configuration
    cluster.start(3).await;
    cluster.ready(&[3]).await;
    assert_eq!(cluster.node(3).membership(PartitionId(1)).voters, [3].into());
    assert_eq!(records(cluster.node(3), 0).await as u64, 1 + SAID, "all that was acknowledged");
    cluster.say(0, SAID + 1).await;
    // new ones in place of the others
    for id in [1, 2] {
        cluster.start(id).await;
        let link = cluster.address(id).to_string();
        cluster.node(3).add_member(id, &link, PATIENCE).await.unwrap();
    }
    cluster.ready(&[1, 2, 3]).await;
    cluster.same_everywhere(&[1, 2, 3]).await;
    // and one whose disk turns up again takes no part
    cluster.stop(2).await;
    let second = cluster.folder.path().join("second");
    std::fs::rename(cluster.data(2), &second).unwrap();
    std::fs::rename(&lost, cluster.data(2)).unwrap();
    cluster.start(2).await;
    let says = |part: &'static str| move |reason: &String| reason.contains(part);
    eventually(|| cluster.node(2).readiness().err().filter(says("recovered without this data folder"))).await;
    cluster.say(0, SAID + 2).await;
    cluster.stop(2).await;
    assert!(store::verify(&cluster.data(2), |_| {}).unwrap().is_sound(), "which can be taken back");
    std::fs::remove_dir_all(cluster.data(2)).unwrap();
    std::fs::rename(&second, cluster.data(2)).unwrap();
    cluster.start(2).await;
    cluster.ready(&[1, 2, 3]).await;
    cluster.same_everywhere(&[1, 2, 3]).await;
    assert_eq!(records(cluster.node(2), 0).await as u64, 3 + SAID);
    cluster.stop_all().await;
}

#[tokio::test]
async fn what_others_are_known_to_have_had_is_named_as_lost() {
    let mut cluster = Cluster::formed().await;
    cluster.open_connections().await;
    cluster.same_everywhere(&[1, 2, 3]).await;
    cluster.stop(3).await;
    let (data, older) = (cluster.data(3), cluster.folder.path().join("older"));
    store::copy_folder(&data, &older);
    cluster.start(3).await;
    cluster.ready(&[3]).await;
    for sequence in 2..=SAID {
        cluster.say(0, sequence).await;
    }
    cluster.same_everywhere(&[1, 2, 3]).await;
    let end = handle(cluster.node(3), 0).tail.applied();
    let witness = &cluster.node(3).peers().own().witness;
    eventually(|| (witness.end_of(1, PartitionId(0)) > end.0).then_some(())).await;
    let _folder = cluster.stop_all().await;
    // its log ends before, and what it remembers of the others does not
    std::fs::copy(data.join("peers"), older.join("peers")).unwrap();
    let found = survey(&older).unwrap();
    let kept = &found.partitions[0];
    assert!(kept.last.index < end && kept.had_more.get(&1).is_some_and(|last| *last >= end), "{kept:?}");
}

#[tokio::test]
async fn a_folder_that_is_of_no_use_is_not_recovered() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(survey(dir.path()), Err(RecoverError::Open(_))), "no folder of a broker");
    let node = crate::testing::node(&dir).await;
    assert!(matches!(recover(dir.path()), Err(RecoverError::Open(OpenError::Locked { .. }))), "it runs");
    node.shutdown().await;
    assert!(matches!(recover(dir.path()), Err(RecoverError::Alone { .. })));
    let mut cluster = Cluster::new();
    cluster.start(2).await;
    cluster.stop(2).await;
    let refused = recover(&cluster.data(2)).unwrap_err();
    assert!(matches!(refused, RecoverError::NoMember { broker: 2, .. }), "{refused}");
}
