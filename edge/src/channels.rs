//! Which connections of this shard are in which channel, folded from the joins and leaves the brokers deliver, in their order.

use std::sync::Arc;

use hashbrown::HashMap;
use slab::Slab;
use smallvec::SmallVec;

/// The channels one connection is in.
pub type Memberships = SmallVec<[Membership; 1]>;

/// Where a connection stands in one channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Membership {
    channel: u32,
    /// Its place among the members.
    place: u32,
}

#[derive(Debug)]
struct Channel {
    name: Arc<str>,
    /// Slots of the connections. In the order they joined until one leaves, then the last takes its place.
    members: Vec<u32>,
}

/// The channel index of a shard. What a connection is in is kept with the connection and passed in.
#[derive(Debug, Default)]
pub struct ChannelIndex {
    names: HashMap<Arc<str>, u32, foldhash::fast::RandomState>,
    channels: Slab<Channel>,
}

/// Gives the memberships of another connection.
pub trait Members {
    /// Those of the connection in that slot.
    fn memberships(&mut self, slot: u32) -> Option<&mut Memberships>;
}

impl ChannelIndex {
    /// The connection in `slot` joins. Joining twice changes nothing.
    pub fn join(&mut self, name: &str, slot: u32, memberships: &mut Memberships) {
        let channel = match self.names.get(name) {
            Some(channel) => *channel,
            None => {
                let name: Arc<str> = name.into();
                let channel = self.channels.insert(Channel { name: Arc::clone(&name), members: Vec::new() }) as u32;
                self.names.insert(name, channel);
                channel
            }
        };
        if memberships.iter().any(|membership| membership.channel == channel) {
            return;
        }
        let Some(entry) = self.channels.get_mut(channel as usize) else { return };
        memberships.push(Membership { channel, place: entry.members.len() as u32 });
        entry.members.push(slot);
    }

    /// The connection in `slot` leaves.
    pub fn leave(&mut self, name: &str, slot: u32, members: &mut impl Members) {
        let Some(channel) = self.names.get(name).copied() else { return };
        let Some(memberships) = members.memberships(slot) else { return };
        let Some(at) = memberships.iter().position(|membership| membership.channel == channel) else { return };
        let membership = memberships.swap_remove(at);
        self.remove(membership, members);
    }

    /// A connection that is gone leaves whatever it was in.
    pub fn leave_all(&mut self, memberships: Memberships, members: &mut impl Members) {
        for membership in memberships {
            self.remove(membership, members);
        }
    }

    /// Who is in the channel.
    pub fn members(&self, name: &str) -> &[u32] {
        let channel = self.names.get(name).and_then(|channel| self.channels.get(*channel as usize));
        channel.map_or(&[], |channel| &channel.members)
    }

    fn remove(&mut self, gone: Membership, members: &mut impl Members) {
        let Some(channel) = self.channels.get_mut(gone.channel as usize) else { return };
        channel.members.swap_remove(gone.place as usize);
        if let Some(moved) = channel.members.get(gone.place as usize) {
            let theirs = members.memberships(*moved).into_iter().flatten();
            for membership in theirs.filter(|membership| membership.channel == gone.channel) {
                membership.place = gone.place;
            }
        } else if channel.members.is_empty() {
            let channel = self.channels.remove(gone.channel as usize);
            self.names.remove(&channel.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    impl Members for BTreeMap<u32, Memberships> {
        fn memberships(&mut self, slot: u32) -> Option<&mut Memberships> {
            self.get_mut(&slot)
        }
    }

    proptest! {
        #[test]
        fn agrees_with_sets(steps in proptest::collection::vec((0..3u8, 0..8u32, 0..5u8), 0..200)) {
            let (mut index, mut connections) = (ChannelIndex::default(), BTreeMap::new());
            let mut model: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
            for (what, slot, channel) in steps {
                let name = format!("c{channel}");
                match what {
                    0 => {
                        index.join(&name, slot, connections.entry(slot).or_default());
                        model.entry(name).or_default().insert(slot);
                    }
                    1 => {
                        index.leave(&name, slot, &mut connections);
                        model.entry(name).or_default().remove(&slot);
                    }
                    _ => {
                        let memberships = connections.remove(&slot).unwrap_or_default();
                        index.leave_all(memberships, &mut connections);
                        model.values_mut().for_each(|members| { members.remove(&slot); });
                    }
                }
                for (name, members) in &model {
                    let mut found = index.members(name).to_vec();
                    found.sort_unstable();
                    prop_assert_eq!(found, members.iter().copied().collect::<Vec<_>>());
                }
                let live = model.values().filter(|members| !members.is_empty()).count();
                prop_assert_eq!((index.names.len(), index.channels.len()), (live, live), "an empty channel takes no memory");
            }
        }
    }
}
