//! Keeps leaders spread over the brokers, and the group's idea of this broker true. The preferred leader of partition p is the (p mod
//! n)-th voter by number; a leader that is not preferred hands over to it once it has caught up and has been there for a while. One
//! whose disk is full takes no appends: it hands over at once to whoever has room, and is not preferred until it has room itself.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    time::{Duration, Instant},
};

use trunkline_proto::{PartitionId, v1::peer as pb};

use super::{Founder, open::own_member};
use crate::{
    raft::{Group, Member, Membership, Peers, Role},
    store::{DiskId, Space},
};

const INTERVAL: Duration = Duration::from_secs(1);
/// The preferred leader must have been there for so long, and this one have led.
const SETTLED: Duration = Duration::from_secs(10);
/// A broker that is a member of no group for so long is forgotten. One that is being added is a member within less.
const UNWANTED: Duration = Duration::from_secs(60);
/// Entries the preferred leader may lack: the rest it gets while the leadership moves.
const LAG_MAX: u64 = 256;
/// How long another broker may take to say whether it has room.
const PATIENCE: Duration = Duration::from_secs(1);

/// Who should lead a partition.
pub(super) fn preferred(partition: PartitionId, membership: &Membership) -> Option<u64> {
    let voters = membership.voters.len().max(1);
    membership.voters.iter().nth(usize::from(partition.0) % voters).copied()
}

/// Runs until dropped. Brokers that are members of no group are forgotten; `founders` only once each of the `partitions` is formed here.
pub(super) async fn run(peers: Peers, groups: Vec<Group>, founders: Vec<Founder>, partitions: usize, space: Space) {
    let mut led_since: Vec<Option<Instant>> = vec![None; groups.len()];
    loop {
        tokio::time::sleep(INTERVAL).await;
        if groups.iter().filter(|group| group.is_formed()).count() < partitions {
            founders.iter().for_each(|founder| peers.ensure(founder.id, &founder.link));
        }
        let is_full = space.check().is_err();
        let mut room = Room { peers: &peers, known: BTreeMap::new() };
        for (group, led_since) in groups.iter().zip(&mut led_since) {
            let membership = group.membership();
            for (id, member) in &membership.members {
                peers.ensure(*id, &member.link);
            }
            let leads = matches!(*group.role().borrow(), Role::Leader { .. });
            let since = led_since.take().unwrap_or_else(Instant::now);
            if !leads {
                continue;
            }
            *led_since = Some(since);
            if is_full {
                make_way(&mut room, group, &membership).await;
                continue;
            }
            correct_own(&peers, group, &membership).await;
            if since.elapsed() >= SETTLED && hand_over(&mut room, group, &membership).await {
                // once is enough; if it came to nothing, not before it has settled again
                *led_since = None;
            }
        }
        peers.forget(UNWANTED);
    }
}

/// What the group knows of this broker may be from before it had a disk id, or another address.
async fn correct_own(peers: &Peers, group: &Group, membership: &Membership) {
    let own = own_member(peers);
    let known = membership.members.get(&peers.own().node);
    // an address may change, a disk never does: that would be another voter
    let is_same = |known: &Member| known.disk == own.disk || known.disk == DiskId::UNKNOWN;
    if own.link.is_empty() || known.is_none_or(|known| *known == own || !is_same(known)) {
        return;
    }
    match group.rename(peers.own().node, own).await {
        Ok(()) => tracing::info!(partition = %group.partition(), "this broker's address is corrected"),
        Err(error) => tracing::debug!(partition = %group.partition(), %error, "this broker's address is not corrected"),
    }
}

/// Who can lead: asked once a round.
struct Room<'a> {
    peers: &'a Peers,
    known: BTreeMap<u64, Option<pb::Status>>,
}

impl Room<'_> {
    /// Whether it has room on its disk, and a replica that is not closed.
    async fn is_at(&mut self, id: u64, partition: PartitionId) -> bool {
        let status = match self.known.entry(id) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => unknown.insert(self.peers.status(id, PATIENCE).await.ok()),
        };
        let has_room = |status: &pb::Status| !status.no_space && !status.closed.contains(&u32::from(partition.0));
        status.as_ref().is_some_and(has_room)
    }
}

/// This broker takes no appends: whoever has room and all there is leads in its place.
async fn make_way(room: &mut Room<'_>, group: &Group, membership: &Membership) {
    let own = room.peers.own().node;
    for to in membership.voters.iter().copied().filter(|to| *to != own) {
        if group.lag(to).is_some_and(|lag| lag <= LAG_MAX) && room.is_at(to, group.partition()).await {
            tracing::warn!(partition = %group.partition(), to, "no room on the disk: leadership goes to a broker that has some");
            // a group that has stopped leads nothing
            let _ = group.transfer(to).await;
            return;
        }
    }
}

async fn hand_over(room: &mut Room<'_>, group: &Group, membership: &Membership) -> bool {
    let own = room.peers.own().node;
    let Some(to) = preferred(group.partition(), membership).filter(|to| *to != own) else { return false };
    let settled = |since: Instant| since.elapsed() >= SETTLED;
    let is_there = room.peers.member(to).and_then(|member| member.since).is_some_and(settled);
    if !is_there || group.lag(to).is_none_or(|lag| lag > LAG_MAX) || !room.is_at(to, group.partition()).await {
        return false;
    }
    tracing::info!(partition = %group.partition(), to, "leadership goes to its preferred broker");
    group.transfer(to).await.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaders_are_spread_evenly() {
        let membership = Membership { voters: [1, 4, 9].into(), ..Membership::default() };
        let leaders: Vec<_> = (0..6).filter_map(|p| preferred(PartitionId(p), &membership)).collect();
        assert_eq!(leaders, [1, 4, 9, 1, 4, 9]);
        assert_eq!(preferred(PartitionId(3), &Membership::default()), None);
    }
}
