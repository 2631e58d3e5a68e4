//! Channels this partition owns: their members by edge. One sorted set holds all memberships: 24 bytes each, so a channel with
//! a single member costs little more than its name.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use smallvec::SmallVec;
use trunkline_proto::ConnectionId;

use super::{
    effects::EdgeIndex,
    snapshot::{Reader, SnapshotError, Writer},
};

/// A channel with at least one member.
#[derive(Clone, Debug)]
struct Channel {
    /// Its number in `members`; never leaves this file, so it may differ between replicas.
    number: u32,
    /// Edges with members, ascending, and how many.
    edges: Vec<(EdgeIndex, u32)>,
}

/// The channels of this partition.
#[derive(Clone, Default, Debug)]
pub(super) struct Channels {
    channels: BTreeMap<Arc<str>, Channel>,
    members: BTreeSet<(u32, EdgeIndex, ConnectionId)>,
    /// Numbers of channels that are gone.
    free: Vec<u32>,
}

impl Channels {
    /// How many channels have members.
    pub(super) fn len(&self) -> usize {
        self.channels.len()
    }

    /// By name.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.channels.keys().map(|name| &**name)
    }

    /// By edge, then id.
    pub(super) fn members(&self, name: &str) -> impl Iterator<Item = (EdgeIndex, ConnectionId)> {
        let number = self.channels.get(name).map(|channel| channel.number);
        number.into_iter().flat_map(|number| self.of_number(number))
    }

    fn of_number(&self, number: u32) -> impl Iterator<Item = (EdgeIndex, ConnectionId)> {
        let first = (number, EdgeIndex(0), ConnectionId([0; 16]));
        let last = (number, EdgeIndex(u32::MAX), ConnectionId([0xff; 16]));
        self.members.range(first..=last).map(|(_, edge, id)| (*edge, *id))
    }

    /// Edges with members, ascending.
    pub(super) fn edges(&self, name: &str) -> SmallVec<[EdgeIndex; 2]> {
        self.channels.get(name).map(|channel| channel.edges.iter().map(|(edge, _)| *edge).collect()).unwrap_or_default()
    }

    /// The edge through which the connection is a member.
    pub(super) fn edge_of(&self, name: &str, id: ConnectionId) -> Option<EdgeIndex> {
        let channel = self.channels.get(name)?;
        let mut edges = channel.edges.iter().map(|(edge, _)| *edge);
        edges.find(|edge| self.members.contains(&(channel.number, *edge, id)))
    }

    /// Adds a member; false if it is one already.
    pub(super) fn join(&mut self, name: &str, edge: EdgeIndex, id: ConnectionId) -> bool {
        if self.edge_of(name, id).is_some() {
            return false;
        }
        if !self.channels.contains_key(name) {
            // every number below the count is in use or free
            let number = self.free.pop().unwrap_or(self.channels.len() as u32);
            self.channels.insert(name.into(), Channel { number, edges: Vec::new() });
        }
        let Some(channel) = self.channels.get_mut(name) else { return false };
        match channel.edges.binary_search_by_key(&edge, |(edge, _)| *edge) {
            Ok(at) => channel.edges[at].1 += 1,
            Err(at) => {
                channel.edges.reserve_exact(1);
                channel.edges.insert(at, (edge, 1));
            }
        }
        self.members.insert((channel.number, edge, id))
    }

    /// Removes a member and tells its edge.
    pub(super) fn leave(&mut self, name: &str, id: ConnectionId) -> Option<EdgeIndex> {
        let edge = self.edge_of(name, id)?;
        let channel = self.channels.get_mut(name)?;
        self.members.remove(&(channel.number, edge, id));
        let at = channel.edges.binary_search_by_key(&edge, |(edge, _)| *edge).ok()?;
        channel.edges[at].1 -= 1;
        if channel.edges[at].1 == 0 {
            channel.edges.remove(at);
        }
        if channel.edges.is_empty() {
            self.free.push(channel.number);
            self.channels.remove(name);
        }
        Some(edge)
    }

    /// Whether names, numbers and counts agree with the memberships.
    pub(super) fn check(&self) -> Result<(), String> {
        let mut members = 0;
        let mut numbers: BTreeSet<u32> = self.free.iter().copied().collect();
        for (name, channel) in &self.channels {
            let mut counted: BTreeMap<EdgeIndex, u32> = BTreeMap::new();
            for (edge, _) in self.of_number(channel.number) {
                *counted.entry(edge).or_default() += 1;
                members += 1;
            }
            if counted.is_empty() || !counted.into_iter().eq(channel.edges.iter().copied()) {
                return Err(format!("channel {name}: members per edge are miscounted"));
            }
            if !numbers.insert(channel.number) {
                return Err(format!("channel {name}: its number is used twice"));
            }
        }
        if members != self.members.len() {
            return Err("memberships of a channel that is gone".into());
        }
        if numbers.len() != self.channels.len() + self.free.len()
            || numbers.last().is_some_and(|last| *last as usize + 1 != numbers.len())
        {
            return Err("channel numbers leak".into());
        }
        Ok(())
    }

    pub(super) fn encode(&self, out: &mut Writer) {
        out.length(self.channels.len());
        for (name, channel) in &self.channels {
            out.text(name);
            out.u64(channel.edges.iter().map(|(_, members)| u64::from(*members)).sum());
            for (edge, id) in self.of_number(channel.number) {
                out.u32(edge.0);
                out.connection(&id);
            }
        }
    }

    pub(super) fn decode(input: &mut Reader<'_>, edges: usize) -> Result<Self, SnapshotError> {
        let mut channels = Self::default();
        for _ in 0..input.length()? {
            let name = input.text()?;
            for _ in 0..input.length()? {
                let edge = EdgeIndex(input.u32()?);
                if edge.0 as usize >= edges || !channels.join(name, edge, input.connection()?) {
                    return Err(SnapshotError::Invalid("channel"));
                }
            }
        }
        Ok(channels)
    }
}
