//! Events of connections, written by edges (and, for connections of lost edges, by the leader): opened, messages, closed.

use std::{collections::BTreeMap, num::NonZeroU16, sync::Arc};

use trunkline_proto::{ConnectionId, Offset, PartitionId, Record, RecordKind, limits, v1};

use super::{
    connections::{Connection, Phase},
    effects::{Applied, Done, EdgeIndex, Refusal},
    expand,
    outbox::OutboxItem,
    partition::Partition,
    records::Logged,
};

/// Longest principal, peer address or subprotocol kept with a connection, in bytes.
const TEXT_BYTES_MAX: usize = 4096;

/// The edge, and which life of it, that a batch comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct From {
    pub edge: EdgeIndex,
    pub incarnation: u64,
}

impl Partition {
    /// Judges one record of an edge's batch.
    pub(super) fn event(&mut self, from: From, logged: &Logged<'_>, out: &mut Applied) -> Result<Done, Refusal> {
        match logged.record.kind {
            RecordKind::MessageReceived => self.message(from, logged)?,
            RecordKind::ConnectionOpened => {
                self.opened(from, logged, out).inspect_err(|refusal| turn_away(from, logged, refusal, out))?;
            }
            RecordKind::ConnectionClosed => {
                self.known(from, logged)?;
                self.closed(logged, out)?;
            }
            _ => return Err(Refusal::Malformed),
        }
        Ok(Done::Here)
    }

    /// The record's connection, if that is open at this edge. The hot path: one lookup, no decoding.
    fn known(&mut self, from: From, logged: &Logged<'_>) -> Result<&mut Connection, Refusal> {
        let connection = self.connections.get_mut(&logged.record.connection).ok_or(Refusal::Gone)?;
        if connection.edge != from.edge || connection.incarnation != from.incarnation {
            return Err(Refusal::Gone);
        }
        if self.apis.name(connection.api) != logged.record.api {
            return Err(Refusal::Malformed);
        }
        Ok(connection)
    }

    fn message(&mut self, from: From, logged: &Logged<'_>) -> Result<(), Refusal> {
        let now = self.time;
        let connection = self.known(from, logged)?;
        connection.active(now);
        let api = connection.api;
        self.apis.count(api, RecordKind::MessageReceived, logged.offset);
        Ok(())
    }

    fn opened(&mut self, from: From, logged: &Logged<'_>, out: &mut Applied) -> Result<(), Refusal> {
        let (id, api) = (logged.record.connection, logged.record.api);
        let body: v1::ConnectionOpened = logged.decode()?;
        self.check_opened(from, &id, api, &body)?;
        let api = self.apis.intern(api);
        let mut connection = Connection::new(self.time, logged.offset, from.edge, from.incarnation, api);
        connection.peer = body.peer.as_str().into();
        connection.set_principal(&body.principal);
        connection.set_subprotocol(&body.subprotocol);
        connection.set_attributes(connection.changed_attributes(&body.attributes, &[])?);
        if !body.handler_group.is_empty() {
            connection.phase = Phase::Pending;
            connection.registrar = NonZeroU16::new(self.registrars.intern(&body.handler_group) + 1);
        }
        self.connections.insert(id, connection);
        self.edges.opened(from.edge, from.incarnation, id);
        self.apis.opened(api);
        self.apis.count(api, RecordKind::ConnectionOpened, logged.offset);
        self.join_all(&id, from.edge, &body.channels, logged.offset, None, out);
        Ok(())
    }

    fn check_opened(
        &self,
        from: From,
        id: &ConnectionId,
        api: &str,
        body: &v1::ConnectionOpened,
    ) -> Result<(), Refusal> {
        let is_here = !id.is_none() && id.partition(self.count) == self.id;
        let is_from = body.edge == self.edges.name(from.edge) && body.incarnation == from.incarnation;
        let names = limits::is_name(api)
            && (body.handler_group.is_empty() || limits::is_name(&body.handler_group))
            && body.channels.iter().all(|channel| limits::is_channel(channel));
        if !(is_here && is_from && names) {
            return Err(Refusal::Malformed);
        }
        if self.connections.contains(id) {
            return Err(Refusal::ConnectionExists);
        }
        let is_short = [&body.peer, &body.principal, &body.subprotocol].iter().all(|text| text.len() <= TEXT_BYTES_MAX);
        let has_room =
            self.apis.has_room(api) && (body.handler_group.is_empty() || self.registrars.has_room(&body.handler_group));
        if !(is_short && has_room) {
            return Err(Refusal::Limit);
        }
        self.room_in_channels(id, &body.channels)
    }

    /// Closes a connection of an incarnation that is lost or replaced: the leader's obligation.
    pub(super) fn closed_by_leader(&mut self, logged: &Logged<'_>, out: &mut Applied) -> Result<(), Refusal> {
        let connection = self.connections.get(&logged.record.connection).ok_or(Refusal::Gone)?;
        let from = From { edge: connection.edge, incarnation: connection.incarnation };
        self.known(from, logged)?;
        if !self.edges.is_fenced(from.edge, from.incarnation) {
            return Err(Refusal::NotOpen);
        }
        self.closed(logged, out)
    }

    fn closed(&mut self, logged: &Logged<'_>, out: &mut Applied) -> Result<(), Refusal> {
        let id = logged.record.connection;
        logged.decode::<v1::ConnectionClosed>()?;
        let connection = self.connections.remove(&id).ok_or(Refusal::Gone)?;
        self.edges.closed(connection.edge, connection.incarnation, &id);
        self.apis.closed(connection.api);
        self.apis.count(connection.api, RecordKind::ConnectionClosed, logged.offset);
        self.leave_all(id, connection.channels(), logged.offset);
        out.closed.push((id, v1::Opening { api: self.apis.name(connection.api).to_owned(), ..connection.opening() }));
        Ok(())
    }

    /// Takes a closed connection out of its channels: here, or by one forward to each partition that owns some. Its edge knows.
    fn leave_all(&mut self, id: ConnectionId, channels: &[Arc<str>], offset: Offset) {
        let mut elsewhere: BTreeMap<PartitionId, Vec<Record>> = BTreeMap::new();
        for channel in channels {
            let owner = self.count.of_name(channel);
            if owner == self.id {
                self.channels.leave(channel, id);
            } else {
                elsewhere.entry(owner).or_default().push(expand::left(id, channel));
            }
        }
        for (owner, records) in elsewhere {
            self.outbox.push(owner, offset, OutboxItem::Made(records.into()));
        }
    }
}

/// A connection whose opening is refused is told so: its edge waits for the log's answer, and a refused record gives none.
fn turn_away(from: From, logged: &Logged<'_>, refusal: &Refusal, out: &mut Applied) {
    if let Some(rejected) = expand::turned_away(logged.record.connection, logged.record.api, refusal) {
        out.deliver(logged.position(), from.edge, rejected);
    }
}
