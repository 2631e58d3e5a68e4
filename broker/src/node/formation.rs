//! Forms the cluster, once: the founder with the lowest number forms every group when all founders answer and none has formed it. Whoever
//! finds a group formed elsewhere and its own empty waits, and says what it waits for.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use trunkline_proto::{PartitionId, v1::peer as pb};

use super::{Founder, NodeConfig, open::own_member};
use crate::raft::{Group, Member, Peers};

/// How often the others are asked.
const INTERVAL: Duration = Duration::from_millis(300);
/// How long one may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// What to do about the groups that are not formed here.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Step {
    /// Form these.
    Form(Vec<PartitionId>),
    /// Wait, for this reason.
    Wait(String),
    /// This broker's data is gone: only an operator can go on.
    Stuck(String),
}

/// Runs until every group is formed here. `forming` is kept at what it waits for.
pub(super) async fn run(config: NodeConfig, peers: Peers, groups: Vec<Group>, forming: Arc<Mutex<String>>) {
    let mut founders = config.founders.clone();
    founders.sort_by_key(|founder| founder.id);
    loop {
        let unformed: Vec<PartitionId> =
            groups.iter().filter(|group| !group.is_formed()).map(Group::partition).collect();
        if unformed.is_empty() {
            forming.lock().clear();
            return;
        }
        let mut answers = BTreeMap::new();
        for member in peers.members().into_iter().filter(|member| member.id != config.node_id) {
            answers.insert(member.id, peers.status(member.id, PATIENCE).await);
        }
        let step = decide(config.node_id, &founders, &unformed, &answers);
        let reason = match step {
            Step::Form(partitions) => form(&peers, &groups, &founders, &partitions).await.err().unwrap_or_default(),
            Step::Wait(reason) => {
                if *forming.lock() != reason {
                    tracing::info!("{reason}");
                }
                reason
            }
            Step::Stuck(reason) => {
                if *forming.lock() != reason {
                    tracing::error!("{reason}");
                }
                reason
            }
        };
        *forming.lock() = reason;
        tokio::time::sleep(INTERVAL).await;
    }
}

fn decide(
    own: u64,
    founders: &[Founder],
    unformed: &[PartitionId],
    answers: &BTreeMap<u64, Result<pb::Status, String>>,
) -> Step {
    let is_unformed = |partition: &u32| unformed.iter().any(|id| u32::from(id.0) == *partition);
    let mut formed_elsewhere = None;
    for (id, status) in answers.iter().filter_map(|(id, answer)| Some((id, answer.as_ref().ok()?))) {
        if let Some(partition) = status.other_disk.iter().find(|partition| is_unformed(partition)) {
            return Step::Stuck(format!(
                "broker {id} knows this broker as a member of partition {partition} with another disk: this one is empty, and what \
                 was acknowledged from the other is gone. It takes no part. Run `trunkline cluster remove {own}`, then `trunkline \
                 cluster add {own} --link ADDRESS`",
            ));
        }
        if let Some(partition) = status.formed.iter().find(|partition| is_unformed(partition)) {
            formed_elsewhere.get_or_insert((*id, *partition, status.absent.contains(partition)));
        }
    }
    if !founders.iter().any(|founder| founder.id == own) {
        return Step::Wait(format!("waiting to be added: `trunkline cluster add {own} --link ADDRESS`"));
    }
    if let Some((id, partition, true)) = formed_elsewhere {
        return Step::Wait(format!(
            "broker {id} does not count this one among the members of partition {partition}: it was removed, or is not added yet. \
             `trunkline cluster add {own} --link ADDRESS`"
        ));
    }
    if let Some((id, partition, false)) = formed_elsewhere {
        return Step::Wait(format!("partition {partition} is formed at broker {id}; waiting for its leader"));
    }
    for founder in founders.iter().filter(|founder| founder.id != own) {
        match answers.get(&founder.id) {
            Some(Ok(status)) if is_same(founders, &status.founders) => {}
            Some(Ok(_)) => {
                return Step::Wait(format!("broker {} has other broker.members in its config", founder.id));
            }
            Some(Err(reason)) => return Step::Wait(format!("waiting for every member to form the cluster: {reason}")),
            None => return Step::Wait(format!("waiting for broker {} to form the cluster", founder.id)),
        }
    }
    match founders.first() {
        Some(first) if first.id == own => Step::Form(unformed.to_vec()),
        Some(first) => Step::Wait(format!("waiting for broker {} to form the cluster", first.id)),
        None => Step::Wait("no members are configured".to_owned()),
    }
}

fn is_same(ours: &[Founder], theirs: &[pb::Founder]) -> bool {
    let mut theirs: Vec<Founder> =
        theirs.iter().map(|founder| Founder { id: founder.id, link: founder.link.clone() }).collect();
    theirs.sort_by_key(|founder| founder.id);
    ours == theirs
}

async fn form(peers: &Peers, groups: &[Group], founders: &[Founder], partitions: &[PartitionId]) -> Result<(), String> {
    let mut members = BTreeMap::new();
    for founder in founders {
        let member = match founder.id == peers.own().node {
            true => own_member(peers),
            false => {
                let disk = peers.disk(founder.id).ok_or_else(|| format!("broker {} went away", founder.id))?;
                Member { link: founder.link.clone(), disk }
            }
        };
        members.insert(founder.id, member);
    }
    for partition in partitions {
        let group = groups
            .iter()
            .find(|group| group.partition() == *partition)
            .ok_or_else(|| format!("there is no partition {partition}"))?;
        group.form(members.clone()).await.map_err(|error| format!("partition {partition}: {error}"))?;
    }
    tracing::info!(partitions = partitions.len(), members = members.len(), "the cluster is formed");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn founders() -> Vec<Founder> {
        (1..=3).map(|id| Founder { id, link: format!("b{id}:7443") }).collect()
    }

    fn status(formed: &[u32], other_disk: &[u32]) -> Result<pb::Status, String> {
        let founders = founders().into_iter().map(|founder| pb::Founder { id: founder.id, link: founder.link });
        Ok(pb::Status {
            founders: founders.collect(),
            formed: formed.to_vec(),
            other_disk: other_disk.to_vec(),
            ..Default::default()
        })
    }

    const UNFORMED: [PartitionId; 2] = [PartitionId(0), PartitionId(2)];

    fn step(own: u64, answers: &[(u64, Result<pb::Status, String>)]) -> Step {
        decide(own, &founders(), &UNFORMED, &answers.iter().cloned().collect())
    }

    #[test]
    fn only_the_lowest_forms_and_only_when_everybody_answers_with_nothing() {
        let all = [(2, status(&[1], &[])), (3, status(&[], &[]))];
        assert_eq!(step(1, &all), Step::Form(UNFORMED.to_vec()));
        assert!(matches!(step(2, &[(1, status(&[], &[])), (3, status(&[], &[]))]), Step::Wait(_)));
        assert!(matches!(step(1, &all[..1]), Step::Wait(_)));
        let silent = [(2, status(&[], &[])), (3, Err("broker 3 is not reached".to_owned()))];
        assert_eq!(
            step(1, &silent),
            Step::Wait("waiting for every member to form the cluster: broker 3 is not reached".into())
        );
        let elsewhere = [(2, status(&[], &[])), (3, status(&[2], &[]))];
        assert!(matches!(step(1, &elsewhere), Step::Wait(reason) if reason.contains("formed at broker 3")));
    }

    #[test]
    fn another_config_forms_nothing() {
        let mut other = status(&[], &[]).unwrap();
        other.founders[0].link = "elsewhere:1".into();
        let answers = [(2, Ok(other)), (3, status(&[], &[]))];
        assert!(
            matches!(step(1, &answers), Step::Wait(reason) if reason.contains("broker 2 has other broker.members"))
        );
    }

    #[test]
    fn an_empty_disk_is_named_and_told_how_to_rejoin() {
        for own in 1..=3 {
            let others = (1..=3).filter(|id| *id != own).map(|id| (id, status(&[0, 2], &[0, 2])));
            let Step::Stuck(reason) = step(own, &others.collect::<Vec<_>>()) else { panic!("{own} goes on") };
            assert!(reason.contains(&format!("cluster remove {own}")), "{reason}");
        }
        // a partition that this broker has is no reason
        assert!(matches!(step(1, &[(2, status(&[1], &[1]))]), Step::Wait(_)));
    }

    #[test]
    fn a_founder_that_was_removed_is_told_to_be_added() {
        let mut removed = status(&[0, 1, 2], &[]).unwrap();
        removed.absent = vec![0, 1, 2];
        let answers = [(1, Ok(removed)), (2, status(&[0, 1, 2], &[]))];
        assert!(matches!(step(3, &answers), Step::Wait(reason) if reason.contains("cluster add 3")));
    }

    #[test]
    fn a_broker_that_is_no_founder_waits_to_be_added() {
        let answers = [(1, status(&[0, 1, 2], &[])), (2, status(&[0, 1, 2], &[])), (3, status(&[0, 1, 2], &[]))];
        assert!(matches!(step(4, &answers), Step::Wait(reason) if reason.contains("cluster add 4")));
    }
}
