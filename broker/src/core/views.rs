//! What others may see of a partition's state.

use std::sync::Arc;

use trunkline_proto::{ConnectionId, LogIndex, Offset, PartitionCount, PartitionId, RecordKind, Timestamp, v1};
use xxhash_rust::xxh3::xxh3_64;

use super::{
    connections::{Attribute, Connection, Phase},
    edges::Edge,
    effects::EdgeIndex,
    group::{Group, Hole, ParkedEvent, Skipped},
    outbox::OutboxEntry,
    partition::{self, Partition},
    retained::Milestone,
};

/// One open connection.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct ConnectionView<'a> {
    /// Which.
    pub id: ConnectionId,
    /// The API it came in by.
    pub api: &'a str,
    /// Name of the edge that holds its socket.
    pub edge: &'a str,
    /// That edge's number here.
    pub edge_index: EdgeIndex,
    /// The edge's incarnation when it opened.
    pub incarnation: u64,
    /// When it opened, in log time.
    pub opened_at: Timestamp,
    /// Where its ConnectionOpened stands.
    pub opened: Offset,
    /// When its last message came, to the second; when it opened, before the first.
    pub last_active: Timestamp,
    /// How far it has come.
    pub phase: Phase,
    /// Chosen subprotocol; empty: none.
    pub subprotocol: &'a str,
    /// Ascending by key.
    pub attributes: &'a [Attribute],
    /// Ascending.
    pub channels: &'a [Arc<str>],
    /// Address and port of the client.
    pub peer: &'a str,
    /// Who the client proved to be; empty: nobody.
    pub principal: &'a str,
    /// The handler group that decides (or decided) its registration; empty: none.
    pub handler_group: &'a str,
}

/// One edge as this partition knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EdgeView<'a> {
    /// Its name.
    pub name: &'a str,
    /// The newest one; 0: it never attached here.
    pub incarnation: u64,
    /// Last applied batch of that incarnation.
    pub last_sequence: u64,
    /// That incarnation is fenced.
    pub lost: bool,
    /// Where that incarnation attached: its deliveries begin after this.
    pub attached_offset: Offset,
    /// Its open connections here, those of older incarnations included.
    pub connections: usize,
}

/// One handler group.
#[derive(Clone, Copy, Debug)]
pub struct GroupView<'a> {
    /// Its name.
    pub name: &'a str,
    /// Of the last assignment.
    pub epoch: u64,
    /// Who has the partition; empty: nobody.
    pub member: &'a str,
    /// Ascending; empty: all.
    pub apis: &'a [Box<str>],
    /// Ascending; empty: all events.
    pub kinds: &'a [RecordKind],
    /// Every event up to here is settled, except the holes.
    pub through: Offset,
    /// Events it has yet to settle, holes included. May be short or over by some thousand after a start in the middle of the log,
    /// until the group has been at its end.
    pub lag: u64,
    /// Events acknowledged or parked, ever.
    pub settled: u64,
    /// Of its last commit or assignment, in log time.
    pub active: Timestamp,
    group: &'a Group,
}

impl<'a> GroupView<'a> {
    /// Open events up to `through`, ascending.
    pub fn holes(&self) -> impl Iterator<Item = (Offset, Hole)> + use<'a> {
        self.group.holes.iter().map(|(offset, hole)| (*offset, *hole))
    }

    /// The hole at `offset`.
    pub fn hole(&self, offset: Offset) -> Option<Hole> {
        self.group.holes.get(&offset).copied()
    }

    /// How many.
    pub fn hole_count(&self) -> usize {
        self.group.holes.len()
    }

    /// Dead letters, ascending.
    pub fn parked(&self) -> impl Iterator<Item = (Offset, &'a ParkedEvent)> + use<'a> {
        self.group.parked.iter().map(|(offset, event)| (*offset, event))
    }

    /// How many.
    pub fn parked_count(&self) -> usize {
        self.group.parked.len()
    }

    /// What retention took before the group had it, if its members are to be told.
    pub fn skipped(&self) -> Option<Skipped> {
        self.group.skipped
    }

    /// Everything up to here may be trimmed without the group missing it.
    pub fn retention_limit(&self) -> Offset {
        self.group.retention_limit()
    }

    /// Whether the group consumes such events.
    pub fn takes(&self, kind: RecordKind, api: &str) -> bool {
        kind.is_event() && (self.kinds.is_empty() || self.kinds.contains(&kind)) && self.group.filter.takes_api(api)
    }
}

impl Partition {
    /// Which partition this is.
    pub fn id(&self) -> PartitionId {
        self.id
    }

    /// Of how many.
    pub fn partition_count(&self) -> PartitionCount {
        self.count
    }

    /// The last entry applied or skipped.
    pub fn applied(&self) -> LogIndex {
        self.applied
    }

    /// Log time: of the last entry, or of an earlier one that was stamped later.
    pub fn time(&self) -> Timestamp {
        self.time
    }

    /// Rolling digest over all entries and verdicts: equal on every replica at equal `applied`.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// Digest of the whole state. As slow as [`Partition::encode`].
    pub fn state_digest(&self) -> u64 {
        xxh3_64(&self.encode())
    }

    /// Records up to here may be deleted, or are.
    pub fn trimmed(&self) -> Offset {
        self.trimmed
    }

    /// The first entry that is whole: nothing of it is trimmed.
    pub fn first_retained(&self) -> LogIndex {
        match self.trimmed {
            Offset::ZERO => LogIndex(0),
            trimmed => LogIndex(partition::whole_entries(trimmed).0 + 1),
        }
    }

    /// A Trimmed record beyond this is refused: handlers or other partitions still need what follows.
    pub fn retention_limit(&self) -> Offset {
        let groups = self.groups.iter().map(|(_, group)| group.retention_limit());
        groups.min().unwrap_or(Offset::MAX).min(self.forwarding_limit())
    }

    /// As [`Partition::retention_limit`], for what other partitions still need.
    pub fn forwarding_limit(&self) -> Offset {
        let forwards = self.outbox.first_logged().map(|first| Offset(first.0.saturating_sub(1)));
        forwards.unwrap_or(Offset::MAX).min(Offset::end_of(self.applied))
    }

    /// Bytes of the entries that are not trimmed.
    pub fn retained_bytes(&self) -> u64 {
        self.retained.bytes()
    }

    /// Where the log may be trimmed, ascending, and in the end where it stands. None while it holds nothing that has a time.
    pub fn milestones(&self) -> impl Iterator<Item = Milestone> {
        let end = Milestone { index: self.applied, time: self.time, bytes: self.retained.written() };
        self.retained.milestones().chain((self.time != Timestamp(0)).then_some(end))
    }

    /// Semantics of apply in force.
    pub fn apply_version(&self) -> u32 {
        self.apply_version
    }

    /// The connection, unless it is closed.
    pub fn connection(&self, id: &ConnectionId) -> Option<ConnectionView<'_>> {
        self.connections.get(id).map(|connection| self.view(*id, connection))
    }

    /// What the state knows of how a connection came to be, unless it is closed.
    pub fn opening(&self, id: &ConnectionId) -> Option<v1::Opening> {
        let connection = self.connections.get(id)?;
        Some(v1::Opening { api: self.apis.name(connection.api).to_owned(), ..connection.opening() })
    }

    /// Open connections by id: those after `after`, or all.
    pub fn connections_after(&self, after: Option<ConnectionId>) -> impl Iterator<Item = ConnectionView<'_>> {
        self.connections.after(after).map(|(id, connection)| self.view(*id, connection))
    }

    /// How many are open.
    pub fn connection_count(&self) -> usize {
        self.connections.len()
    }

    /// APIs ever seen here and how many connections each has open, in the order they were first seen.
    pub fn api_connections(&self) -> impl Iterator<Item = (&str, u64)> {
        self.apis.iter()
    }

    /// How many connections of an API are open.
    pub fn api_connection_count(&self, api: &str) -> u64 {
        self.apis.connections(api)
    }

    fn view<'a>(&'a self, id: ConnectionId, connection: &'a Connection) -> ConnectionView<'a> {
        ConnectionView {
            id,
            api: self.apis.name(connection.api),
            edge: self.edges.name(connection.edge),
            edge_index: connection.edge,
            incarnation: connection.incarnation,
            opened_at: connection.opened_at,
            opened: connection.opened,
            last_active: connection.last_active(),
            phase: connection.phase,
            subprotocol: connection.subprotocol(),
            attributes: connection.attributes(),
            channels: connection.channels(),
            peer: &connection.peer,
            principal: connection.principal(),
            handler_group: connection.registrar.map_or("", |number| self.registrars.name(number.get() - 1)),
        }
    }

    /// Members of a channel this partition owns, by edge, then id.
    pub fn channel_members(&self, channel: &str) -> impl Iterator<Item = ConnectionId> {
        self.channels.members(channel).map(|(_, id)| id)
    }

    /// Edges with members of a channel this partition owns, ascending.
    pub fn channel_edges(&self, channel: &str) -> impl Iterator<Item = EdgeIndex> {
        self.channels.edges(channel).into_iter()
    }

    /// Channels this partition owns that have members, by name.
    pub fn channels(&self) -> impl Iterator<Item = &str> {
        self.channels.names()
    }

    /// How many.
    pub fn channel_count(&self) -> usize {
        self.channels.len()
    }

    /// The number of an edge, if it was ever seen here.
    pub fn edge_index(&self, name: &str) -> Option<EdgeIndex> {
        self.edges.index(name)
    }

    /// The edge's name; empty if there is none.
    pub fn edge_name(&self, edge: EdgeIndex) -> &str {
        self.edges.name(edge)
    }

    /// An edge by name.
    pub fn edge(&self, name: &str) -> Option<EdgeView<'_>> {
        self.edges.index(name).and_then(|index| self.edges.get(index)).map(edge_view)
    }

    /// Edges ever seen here, by index.
    pub fn edges(&self) -> impl Iterator<Item = (EdgeIndex, EdgeView<'_>)> {
        self.edges.iter().map(|(index, edge)| (index, edge_view(edge)))
    }

    /// At most `max` connections, with their APIs, that the leader must close: those of lost and replaced incarnations.
    pub fn obligations(&self, max: usize) -> Vec<(ConnectionId, String)> {
        let api = |id: ConnectionId| {
            let connection = self.connections.get(&id)?;
            Some((id, self.apis.name(connection.api).to_owned()))
        };
        self.edges.obligations().filter_map(api).take(max).collect()
    }

    /// A handler group by name.
    pub fn group(&self, name: &str) -> Option<GroupView<'_>> {
        self.groups.get(name).map(|(name, group)| self.group_view(name, group))
    }

    /// Handler groups by name.
    pub fn groups(&self) -> impl Iterator<Item = GroupView<'_>> {
        self.groups.iter().map(|(name, group)| self.group_view(name, group))
    }

    /// Events the group has yet to settle; 0 if there is no such group.
    pub fn group_lag(&self, name: &str) -> u64 {
        self.groups.get(name).map_or(0, |(_, group)| group.lag(&self.apis))
    }

    fn group_view<'a>(&'a self, name: &'a str, group: &'a Group) -> GroupView<'a> {
        GroupView {
            name,
            epoch: group.epoch,
            member: &group.member,
            apis: &group.filter.apis,
            kinds: &group.filter.kinds,
            through: group.through,
            lag: group.lag(&self.apis),
            settled: group.settled,
            active: group.active,
            group,
        }
    }

    /// Forwards that wait for `target`, in order.
    pub fn outbox(&self, target: PartitionId) -> impl Iterator<Item = OutboxEntry<'_>> {
        self.outbox.after(target, Offset::ZERO)
    }

    /// Forwards that wait for `target` and come from records after `after`, in order.
    pub fn outbox_after(&self, target: PartitionId, after: Offset) -> impl Iterator<Item = OutboxEntry<'_>> {
        self.outbox.after(target, after)
    }

    /// Partitions that something waits for.
    pub fn outbox_targets(&self) -> impl Iterator<Item = PartitionId> {
        self.outbox.targets()
    }

    /// Forwards that wait, for all targets.
    pub fn outbox_len(&self) -> usize {
        self.outbox.len()
    }

    /// Source offset of the last forward taken from that partition.
    pub fn watermark(&self, source: PartitionId) -> Offset {
        self.watermarks.get(&source).copied().unwrap_or_default()
    }
}

fn edge_view(edge: &Edge) -> EdgeView<'_> {
    EdgeView {
        name: &edge.name,
        incarnation: edge.incarnation,
        last_sequence: edge.last_sequence,
        lost: edge.lost,
        attached_offset: edge.attached,
        connections: edge.connection_count(),
    }
}
