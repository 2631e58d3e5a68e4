//! Commands: push, publish, close, join, leave, attributes and registration decisions. Each is judged alone; one for another
//! partition goes to the outbox and is judged there.

use std::collections::BTreeMap;

use trunkline_proto::{CloseCode, ConnectionId, Offset, PartitionId, Record, RecordKind, limits, v1};

use super::{
    connections::{Connection, Phase},
    effects::{Applied, Done, EdgeIndex, Refusal, Targets},
    expand,
    outbox::OutboxItem,
    partition::Partition,
    records::Logged,
};

/// Where a command comes from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Origin<'a> {
    /// With a commit of this handler group, which may decide registrations.
    Commit(&'a str),
    /// Submitted alone.
    Submit,
    /// From the log of that partition.
    Forward(PartitionId),
}

/// A command whose body obeys every rule that needs no state.
#[derive(Debug)]
enum Command {
    Accept(v1::ConnectionAccepted),
    Reject,
    Push,
    Publish(v1::Published),
    Close,
    Join(v1::ChannelJoined),
    Leave(v1::ChannelLeft),
    Attributes(v1::AttributesSet),
}

impl Command {
    fn decode(logged: &Logged<'_>) -> Result<Self, Refusal> {
        let (command, is_valid) = match logged.record.kind {
            RecordKind::ConnectionAccepted => {
                let body: v1::ConnectionAccepted = logged.decode()?;
                let is_valid = body.channels.iter().all(|channel| limits::is_channel(channel))
                    && body.attributes.keys().all(|key| !key.is_empty());
                (Self::Accept(body), is_valid)
            }
            RecordKind::ConnectionRejected => {
                let body: v1::ConnectionRejected = logged.decode()?;
                (Self::Reject, (400..600).contains(&body.status))
            }
            RecordKind::Pushed => {
                let body: v1::Pushed = logged.decode()?;
                (Self::Push, is_message(body.kind, body.payload.len()))
            }
            RecordKind::Published => {
                let body: v1::Published = logged.decode()?;
                let is_valid = is_publish(&body);
                (Self::Publish(body), is_valid)
            }
            RecordKind::CloseRequested => (Self::Close, is_close(&logged.decode()?)),
            RecordKind::ChannelJoined => {
                let body: v1::ChannelJoined = logged.decode()?;
                let is_valid = limits::is_channel(&body.channel);
                (Self::Join(body), is_valid)
            }
            RecordKind::ChannelLeft => {
                let body: v1::ChannelLeft = logged.decode()?;
                let is_valid = limits::is_channel(&body.channel);
                (Self::Leave(body), is_valid)
            }
            RecordKind::AttributesSet => {
                let body: v1::AttributesSet = logged.decode()?;
                let is_valid = body.set.keys().all(|key| !key.is_empty());
                (Self::Attributes(body), is_valid)
            }
            _ => return Err(Refusal::Malformed),
        };
        if is_valid { Ok(command) } else { Err(Refusal::Malformed) }
    }
}

fn is_message(kind: i32, bytes: usize) -> bool {
    let is_kind = matches!(v1::MessageKind::try_from(kind), Ok(v1::MessageKind::Text | v1::MessageKind::Binary));
    is_kind && bytes <= limits::MESSAGE_BYTES_MAX
}

fn is_publish(body: &v1::Published) -> bool {
    let to_channel = body.api.is_empty() && limits::is_channel(&body.channel);
    let to_api = body.channel.is_empty() && limits::is_name(&body.api);
    let except = body.except.len() <= limits::EXCEPT_MAX && body.except.iter().all(|id| id.len() == 16);
    (to_channel || to_api) && except && is_message(body.kind, body.payload.len())
}

fn is_close(body: &v1::CloseRequested) -> bool {
    // 0: the edge's default, 1000
    let code = u16::try_from(body.code).is_ok_and(|code| code == 0 || CloseCode(code).may_be_requested());
    code && body.reason.len() <= limits::CLOSE_REASON_BYTES_MAX
}

/// Whether a command bound to `apis` ([`trunkline_proto::Record::api`]) may be for a connection of `api`.
fn is_bound_to(apis: &str, api: &str) -> bool {
    apis.is_empty() || apis.split(',').any(|one| one == api)
}

impl Partition {
    /// Judges one command and, if it belongs here, carries it out.
    pub(super) fn command(
        &mut self,
        origin: Origin<'_>,
        logged: &Logged<'_>,
        out: &mut Applied,
    ) -> Result<Done, Refusal> {
        let command = Command::decode(logged)?;
        let id = logged.record.connection;
        let owner = match &command {
            Command::Publish(body) => expand::owner_of_publish(self.count, body),
            _ if id.is_none() => return Err(Refusal::Malformed),
            _ => id.partition(self.count),
        };
        if owner == self.id {
            self.own_command(origin, command, logged, out)
        } else if let Origin::Forward(source) = origin {
            self.membership(source, owner, command, logged, out)
        } else {
            self.forward(owner, &command, logged)
        }
    }

    fn forward(&mut self, owner: PartitionId, command: &Command, logged: &Logged<'_>) -> Result<Done, Refusal> {
        match command {
            // a group decides in the partition that told it of the connection
            Command::Accept(_) | Command::Reject => return Err(Refusal::NotPending),
            Command::Join(body) if !body.edge.is_empty() => return Err(Refusal::Malformed),
            _ => {}
        }
        self.outbox.room(owner)?;
        self.outbox.push(owner, logged.offset, OutboxItem::Logged);
        Ok(Done::Forwarded(owner))
    }

    fn own_command(
        &mut self,
        origin: Origin<'_>,
        command: Command,
        logged: &Logged<'_>,
        out: &mut Applied,
    ) -> Result<Done, Refusal> {
        match command {
            Command::Accept(body) => self.accept(origin, &body, logged, out)?,
            Command::Reject => self.reject(origin, logged, out)?,
            Command::Push => {
                let edge = self.commandable(logged)?.edge;
                out.deliver(logged.position(), edge, logged.shared()?);
            }
            Command::Publish(body) => self.publish(&body, logged, out)?,
            Command::Close => {
                let connection = self.commandable(logged)?;
                connection.phase = Phase::Closing;
                let edge = connection.edge;
                out.deliver(logged.position(), edge, logged.shared()?);
            }
            Command::Join(body) => self.join_by_command(&body, logged, out)?,
            Command::Leave(body) => self.leave_by_command(&body, logged, out)?,
            Command::Attributes(body) => {
                let connection = self.commandable(logged)?;
                let attributes = connection.changed_attributes(&body.set, &body.removed)?;
                connection.set_attributes(attributes);
            }
        }
        Ok(Done::Here)
    }

    /// The connection of a command, if it still takes some and the command is not bound to other APIs: to who may not command it, it
    /// is not there.
    fn commandable(&mut self, logged: &Logged<'_>) -> Result<&mut Connection, Refusal> {
        let Self { connections, apis, .. } = self;
        let found = connections.get_mut(&logged.record.connection).filter(|connection| {
            connection.phase != Phase::Closing && is_bound_to(logged.record.api, apis.name(connection.api))
        });
        found.ok_or(Refusal::Gone)
    }

    /// The edge of a connection whose registration is `origin`'s to decide.
    fn decidable(&self, origin: Origin<'_>, logged: &Logged<'_>) -> Result<EdgeIndex, Refusal> {
        let found = self.connections.get(&logged.record.connection);
        let found = found.filter(|connection| is_bound_to(logged.record.api, self.apis.name(connection.api)));
        let connection = found.ok_or(Refusal::Gone)?;
        let registrar = connection.registrar.map(|number| self.registrars.name(number.get() - 1));
        match origin {
            Origin::Commit(group) if connection.phase == Phase::Pending && registrar == Some(group) => {
                Ok(connection.edge)
            }
            _ => Err(Refusal::NotPending),
        }
    }

    fn accept(
        &mut self,
        origin: Origin<'_>,
        body: &v1::ConnectionAccepted,
        logged: &Logged<'_>,
        out: &mut Applied,
    ) -> Result<(), Refusal> {
        let id = logged.record.connection;
        let edge = self.decidable(origin, logged)?;
        self.room_in_channels(&id, &body.channels)?;
        let connection = self.connections.get_mut(&id).ok_or(Refusal::Gone)?;
        let attributes = connection.changed_attributes(&body.attributes, &[])?;
        connection.set_attributes(attributes);
        connection.set_subprotocol(&body.subprotocol);
        connection.phase = Phase::Open;
        out.deliver(logged.position(), edge, logged.shared()?);
        self.join_all(&id, edge, &body.channels, logged.offset, None, out);
        Ok(())
    }

    fn reject(&mut self, origin: Origin<'_>, logged: &Logged<'_>, out: &mut Applied) -> Result<(), Refusal> {
        let id = logged.record.connection;
        let edge = self.decidable(origin, logged)?;
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.phase = Phase::Closing;
        }
        out.deliver(logged.position(), edge, logged.shared()?);
        Ok(())
    }

    fn publish(&mut self, body: &v1::Published, logged: &Logged<'_>, out: &mut Applied) -> Result<(), Refusal> {
        let targets =
            if body.channel.is_empty() { Targets::All } else { Targets::Edges(self.channels.edges(&body.channel)) };
        // a channel without members: applied, and nobody hears it
        if !matches!(&targets, Targets::Edges(edges) if edges.is_empty()) {
            out.deliver_to(logged.position(), targets, logged.shared()?);
        }
        Ok(())
    }

    fn join_by_command(
        &mut self,
        body: &v1::ChannelJoined,
        logged: &Logged<'_>,
        out: &mut Applied,
    ) -> Result<(), Refusal> {
        if !body.edge.is_empty() {
            return Err(Refusal::Malformed);
        }
        let id = logged.record.connection;
        let edge = self.commandable(logged)?.edge;
        let channels = std::slice::from_ref(&body.channel);
        self.room_in_channels(&id, channels)?;
        self.join_all(&id, edge, channels, logged.offset, Some(logged.shared()?), out);
        Ok(())
    }

    fn leave_by_command(
        &mut self,
        body: &v1::ChannelLeft,
        logged: &Logged<'_>,
        out: &mut Applied,
    ) -> Result<(), Refusal> {
        let id = logged.record.connection;
        let connection = self.commandable(logged)?;
        let (edge, is_member) = (connection.edge, connection.is_in(&body.channel));
        if !is_member {
            return Ok(());
        }
        let owner = self.count.of_name(&body.channel);
        if owner != self.id {
            self.outbox.room(owner)?;
            let left = expand::left(id, &body.channel);
            self.outbox.push(owner, logged.offset, OutboxItem::Made(Box::new([left])));
        } else {
            self.channels.leave(&body.channel, id);
            out.deliver(logged.position(), edge, logged.shared()?);
        }
        self.connections.leave(&id, &body.channel);
        Ok(())
    }

    /// Refuses unless the connection may be in these channels too and every forward that takes has room.
    pub(super) fn room_in_channels(&self, id: &ConnectionId, channels: &[String]) -> Result<(), Refusal> {
        let connection = self.connections.get(id);
        let is_new = |channel: &&String| !connection.is_some_and(|connection| connection.is_in(channel));
        let mut new: Vec<&String> = channels.iter().filter(is_new).collect();
        new.sort_unstable();
        new.dedup();
        let joined = connection.map_or(0, |connection| connection.channels().len());
        if joined + new.len() > limits::CHANNELS_PER_CONNECTION_MAX {
            return Err(Refusal::Limit);
        }
        let mut owners = new.iter().map(|channel| self.count.of_name(channel)).filter(|owner| *owner != self.id);
        owners.try_for_each(|owner| self.outbox.room(owner))
    }

    /// Puts the connection into those of `channels` it is not in: here, or by one forward to each partition that owns some.
    /// The edge is told with `logged`, or with a record made for each channel.
    pub(super) fn join_all(
        &mut self,
        id: &ConnectionId,
        edge: EdgeIndex,
        channels: &[String],
        offset: Offset,
        logged: Option<Record>,
        out: &mut Applied,
    ) {
        let mut elsewhere: BTreeMap<PartitionId, Vec<Record>> = BTreeMap::new();
        for channel in channels {
            if self.connections.join(id, channel).is_none() {
                continue;
            }
            let owner = self.count.of_name(channel);
            if owner != self.id {
                elsewhere.entry(owner).or_default().push(expand::joined(*id, channel, self.edges.name(edge)));
            } else if self.channels.join(channel, edge, *id) {
                let record = logged.clone().unwrap_or_else(|| expand::joined(*id, channel, ""));
                out.deliver(offset.position(), edge, record);
            }
        }
        for (owner, records) in elsewhere {
            self.outbox.push(owner, offset, OutboxItem::Made(records.into()));
        }
    }

    /// A join or leave that the connection's partition has applied and this one, which owns the channel, is told of.
    fn membership(
        &mut self,
        source: PartitionId,
        owner: PartitionId,
        command: Command,
        logged: &Logged<'_>,
        out: &mut Applied,
    ) -> Result<Done, Refusal> {
        let id = logged.record.connection;
        if owner != source {
            return Err(Refusal::Malformed);
        }
        match command {
            Command::Join(body) if self.count.of_name(&body.channel) == self.id && limits::is_name(&body.edge) => {
                let edge = self.edges.intern(&body.edge)?;
                if self.channels.join(&body.channel, edge, id) {
                    out.deliver(logged.position(), edge, logged.shared()?);
                }
            }
            Command::Leave(body) if self.count.of_name(&body.channel) == self.id => {
                if let Some(edge) = self.channels.leave(&body.channel, id) {
                    out.deliver(logged.position(), edge, logged.shared()?);
                }
            }
            _ => return Err(Refusal::Malformed),
        }
        Ok(Done::Here)
    }
}
