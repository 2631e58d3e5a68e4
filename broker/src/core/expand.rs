//! Which deliveries a record makes, without any state: for cursors that catch up from the log. It names at least what apply
//! named when the record was applied (more joins, and publishes for every edge); an edge drops what it does not need.

use trunkline_proto::{ConnectionId, PartitionCount, PartitionId, Record, RecordKind, v1};

/// Who a delivery read from the log is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Recipient {
    /// The edge that has this connection now, by this partition's state; nobody if it is closed.
    Connection(ConnectionId),
    /// The edge of that name.
    Edge(String),
    /// Every edge: each looks into its own channel index.
    Everyone,
}

/// A delivery read from the log.
#[derive(Clone, PartialEq, Debug)]
pub struct Expanded {
    /// For whom.
    pub recipient: Recipient,
    /// What.
    pub record: Record,
}

/// The deliveries of an applied (not refused) record of partition `id` of `count`.
pub fn deliveries(id: PartitionId, count: PartitionCount, record: &Record) -> Vec<Expanded> {
    let connection = record.connection;
    let is_here = connection.partition(count) == id;
    let to = |recipient| vec![Expanded { recipient, record: record.clone() }];
    match record.kind {
        RecordKind::Pushed | RecordKind::CloseRequested | RecordKind::ConnectionRejected if is_here => {
            to(Recipient::Connection(connection))
        }
        RecordKind::ConnectionOpened => {
            let Ok(body) = record.decode::<v1::ConnectionOpened>() else { return Vec::new() };
            let joins = joins(id, count, connection, &body.channels);
            joins.map(|record| Expanded { recipient: Recipient::Edge(body.edge.clone()), record }).collect()
        }
        RecordKind::ConnectionAccepted if is_here => {
            let Ok(body) = record.decode::<v1::ConnectionAccepted>() else { return Vec::new() };
            let mut deliveries = to(Recipient::Connection(connection));
            let recipient = Recipient::Connection(connection);
            let joins = joins(id, count, connection, &body.channels);
            deliveries.extend(joins.map(|record| Expanded { recipient: recipient.clone(), record }));
            deliveries
        }
        RecordKind::ChannelJoined => match record.decode::<v1::ChannelJoined>() {
            Ok(body) if count.of_name(&body.channel) != id => Vec::new(),
            Ok(_) if is_here => to(Recipient::Connection(connection)),
            Ok(body) => to(Recipient::Edge(body.edge)),
            Err(_) => Vec::new(),
        },
        RecordKind::ChannelLeft => match record.decode::<v1::ChannelLeft>() {
            Ok(body) if count.of_name(&body.channel) != id => Vec::new(),
            Ok(_) if is_here => to(Recipient::Connection(connection)),
            Ok(_) => to(Recipient::Everyone),
            Err(_) => Vec::new(),
        },
        RecordKind::Published => match record.decode::<v1::Published>() {
            Ok(body) if owner_of_publish(count, &body) == id => to(Recipient::Everyone),
            _ => Vec::new(),
        },
        _ => Vec::new(),
    }
}

/// Joins of the channels that the partition owns, each once, in order.
fn joins(
    id: PartitionId,
    count: PartitionCount,
    connection: ConnectionId,
    channels: &[String],
) -> impl Iterator<Item = Record> {
    let first = |(n, channel): &(usize, &String)| !channels[..*n].contains(channel);
    let own = channels.iter().enumerate().filter(first).map(|(_, channel)| channel);
    own.filter(move |channel| count.of_name(channel) == id).map(move |channel| joined(connection, channel, ""))
}

/// The partition that a publish belongs to.
pub fn owner_of_publish(count: PartitionCount, body: &v1::Published) -> PartitionId {
    count.of_name(if body.channel.is_empty() { &body.api } else { &body.channel })
}

/// A join as it is delivered to an edge (`edge` empty) or forwarded to the channel's partition.
pub(super) fn joined(connection: ConnectionId, channel: &str, edge: &str) -> Record {
    let body = v1::ChannelJoined { channel: channel.into(), edge: edge.into() };
    Record::new(RecordKind::ChannelJoined, connection, "", &body)
}

/// A leave as it is forwarded to the channel's partition.
pub(super) fn left(connection: ConnectionId, channel: &str) -> Record {
    Record::new(RecordKind::ChannelLeft, connection, "", &v1::ChannelLeft { channel: channel.into() })
}
