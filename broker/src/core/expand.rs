//! Which deliveries a record makes, without any state: for cursors that catch up from the log. It names at least what apply
//! named when the record was applied (more joins, and publishes for every edge); an edge drops what it does not need.

use trunkline_proto::{ConnectionId, Offset, PartitionCount, PartitionId, Record, RecordKind, Source, v1};

use super::effects::{LoggedEntry, Refusal};

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

/// The deliveries of an entry of partition `id` of `count`, in order, each with the offset of its record.
pub fn entry(
    id: PartitionId,
    count: PartitionCount,
    entry: &LoggedEntry,
) -> impl Iterator<Item = (Offset, Expanded)> + use<'_> {
    entry.raw_records().flat_map(move |(offset, record, batch)| {
        let expanded = match entry.refusal(offset.position()) {
            None => deliveries(id, count, &record),
            Some(refusal) => entry
                .entry
                .batches
                .get(batch)
                .and_then(|batch| refused(&batch.source, &record, refusal))
                .into_iter()
                .collect(),
        };
        expanded.into_iter().map(move |expanded| (offset, expanded))
    })
}

/// The delivery of a refused record: an opening that its edge waits for is answered.
fn refused(source: &Source, record: &Record, refusal: &Refusal) -> Option<Expanded> {
    let Source::Edge(source) = source else { return None };
    if record.kind != RecordKind::ConnectionOpened {
        return None;
    }
    let record = turned_away(record.connection, record.api(), refusal)?;
    Some(Expanded { recipient: Recipient::Edge(source.edge.clone()), record })
}

/// What the edge of a refused opening is told. Nothing if the whole batch was refused: the edge sends it again, or is lost.
pub(super) fn turned_away(connection: ConnectionId, api: &str, refusal: &Refusal) -> Option<Record> {
    let (status, body) = match refusal {
        Refusal::Limit => (503, "the partition has no room for this connection"),
        Refusal::ConnectionExists => (409, "the connection's id is in use"),
        // the client asked for nothing wrong: its edge, or what configures it, did
        Refusal::Malformed => (500, "the connection cannot be opened as its edge describes it"),
        _ => return None,
    };
    let body = v1::ConnectionRejected { status, body: body.into() };
    Some(Record::new(RecordKind::ConnectionRejected, connection, api, &body))
}

/// The deliveries of an applied (not refused) record of partition `id` of `count`.
fn deliveries(id: PartitionId, count: PartitionCount, record: &Record) -> Vec<Expanded> {
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
