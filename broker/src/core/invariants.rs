//! What must hold of every state. For tests, simulation and `verify`: as slow as walking the whole state.

use std::collections::BTreeSet;

use trunkline_proto::{ConnectionId, Offset, limits};

use super::{connections::Connection, groups::GROUPS_MAX, partition::Partition};

impl Partition {
    /// Whether the parts of the state agree with each other and keep their bounds; otherwise what is wrong.
    pub fn check(&self) -> Result<(), String> {
        for (id, connection) in self.connections.iter() {
            self.check_connection(*id, connection).map_err(|wrong| format!("connection {id}: {wrong}"))?;
        }
        if !self.connections.names_are_exact() {
            return Err("shared channel names are not those in use".into());
        }
        self.check_edges()?;
        self.check_apis()?;
        self.channels.check()?;
        self.check_members()?;
        let end = Offset::end_of(self.applied);
        for (name, group) in self.groups.iter() {
            group.check(end).map_err(|wrong| format!("group {name} {wrong}"))?;
            if group.skipped.is_some_and(|skipped| skipped.through > self.trimmed) {
                return Err(format!("group {name} is told of events that are not gone"));
            }
        }
        if self.groups.iter().count() > GROUPS_MAX {
            return Err("too many groups".into());
        }
        self.outbox.check()?;
        self.retained.check(self.applied)?;
        self.dedup.check_invariants()?;
        if self.trimmed > end || self.watermarks.contains_key(&self.id) {
            return Err("trimmed beyond the end, or a watermark of its own".into());
        }
        Ok(())
    }

    fn check_connection(&self, id: ConnectionId, connection: &Connection) -> Result<(), &'static str> {
        if id.is_none() || id.partition(self.count) != self.id {
            return Err("belongs to another partition");
        }
        if usize::from(connection.api) >= self.apis.len() || self.edges.get(connection.edge).is_none() {
            return Err("names an unknown api or edge");
        }
        if connection.channels().len() > limits::CHANNELS_PER_CONNECTION_MAX {
            return Err("is in too many channels");
        }
        let bytes: usize = connection.attributes().iter().map(|(key, value)| key.len() + value.len()).sum();
        if bytes > limits::ATTRIBUTES_BYTES_MAX {
            return Err("has too many attributes");
        }
        if !connection.channels().is_sorted_by(|one, next| one < next)
            || !connection.attributes().is_sorted_by(|one, next| one.0 < next.0)
        {
            return Err("has its lists out of order");
        }
        let is_missing = |channel: &&std::sync::Arc<str>| {
            self.count.of_name(channel) == self.id && self.channels.edge_of(channel, id) != Some(connection.edge)
        };
        if connection.channels().iter().any(|channel| is_missing(&channel)) {
            return Err("is missing in a channel it is in");
        }
        Ok(())
    }

    fn check_edges(&self) -> Result<(), String> {
        let mut seen = BTreeSet::new();
        for (index, edge) in self.edges.iter() {
            for (incarnation, id) in edge.connections() {
                let known = self.connections.get(&id);
                if !known.is_some_and(|known| known.edge == index && known.incarnation == incarnation) {
                    return Err(format!("edge {} holds connection {id}, which is not its own", edge.name));
                }
                if incarnation > edge.incarnation {
                    return Err(format!("edge {} holds connection {id} of the future", edge.name));
                }
                seen.insert(id);
            }
        }
        if seen.len() == self.connections.len() { Ok(()) } else { Err("connections without an edge".into()) }
    }

    fn check_apis(&self) -> Result<(), String> {
        let mut counts = vec![0; self.apis.len()];
        for (_, connection) in self.connections.iter() {
            counts[usize::from(connection.api)] += 1;
        }
        if counts == self.apis.connection_counts() { Ok(()) } else { Err("connections per api are miscounted".into()) }
    }

    fn check_members(&self) -> Result<(), String> {
        for channel in self.channels.names() {
            if self.count.of_name(channel) != self.id {
                return Err(format!("channel {channel} belongs to another partition"));
            }
            for (edge, id) in self.channels.members(channel) {
                if self.edges.get(edge).is_none() {
                    return Err(format!("channel {channel}: member {id} at an unknown edge"));
                }
                let is_here = id.partition(self.count) == self.id;
                if is_here && !self.connections.get(&id).is_some_and(|connection| connection.is_in(channel)) {
                    return Err(format!("channel {channel}: ghost member {id}"));
                }
            }
        }
        Ok(())
    }
}
