//! Reads a partition's log for tools: from the tail where it reaches, from disk where it does not.

use std::time::Duration;

use tokio::sync::mpsc;
use trunkline_proto::{ConnectionId, LogIndex, Offset, PartitionCount, PartitionId, Record, RecordKind, Timestamp, v1};

use crate::{
    core::{LoggedEntry, Refusal},
    handlers::registry::resolve_start,
    node::{Node, PartitionHandle, ReadError},
    tail::TailRead,
};

/// Records in one message.
const RECORDS_MAX: usize = 256;
/// Bytes of records in one message, unless a single one is larger.
const BYTES_MAX: usize = 256 << 10;
/// Read at once, about.
const READ_BYTES: usize = 512 << 10;
/// A reader whose filter matches nothing is told how far it is at least this often.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// What a reader asks for.
#[derive(Clone, Debug)]
pub struct Query {
    /// Which log.
    pub partition: PartitionId,
    /// First record; none: the earliest.
    pub from: Option<v1::Start>,
    /// Most records; 0: no limit.
    pub limit: usize,
    /// Go on at the end.
    pub follow: bool,
    /// With refused records.
    pub raw: bool,
    /// Of this API; empty: all. Commands name no API: those for a connection count as its API's while it is open.
    pub api: String,
    /// Of this connection.
    pub connection: Option<ConnectionId>,
    /// Last record; [`Offset::MAX`]: the end.
    pub until: Offset,
}

/// The name of a refusal as tools show it.
pub fn refusal_name(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::Gone => "gone",
        Refusal::OutOfSequence => "out_of_sequence",
        Refusal::Fenced => "fenced",
        Refusal::ConnectionExists => "connection_exists",
        Refusal::StaleEpoch => "stale_epoch",
        Refusal::NotOpen => "not_open",
        Refusal::NotPending => "not_pending",
        Refusal::Repeated { .. } => "repeated",
        Refusal::KeyReused => "key_reused",
        Refusal::ForwardGap => "forward_gap",
        Refusal::Limit => "limit",
        Refusal::Malformed => "malformed",
        Refusal::WithBatch => "with_batch",
    }
}

/// A read under way.
#[derive(Debug)]
pub struct Reading {
    node: Node,
    partition: PartitionHandle,
    query: Query,
    first: Offset,
    index: LogIndex,
    sent: usize,
}

impl Reading {
    /// Finds the place to begin.
    ///
    /// # Errors
    /// The place is trimmed, or beyond the end.
    pub async fn open(node: &Node, query: Query) -> Result<Self, ReadError> {
        let missing = || ReadError::Store(format!("this broker holds no replica of partition {}", query.partition));
        let partition = node.partition(query.partition).ok_or_else(missing)?.clone();
        let (earliest, end) = (node.earliest(query.partition), partition.tail.applied());
        let start = query.from.unwrap_or(v1::Start { at: Some(v1::start::At::Earliest(true)) });
        let first = match resolve_start(node, query.partition, &start).await?.at {
            Some(v1::start::At::Latest(true)) => Offset::new(LogIndex(end.0 + 1), 0),
            Some(v1::start::At::Offset(offset)) => Offset(offset),
            _ => earliest,
        };
        if first.index().0.max(1) < earliest.index().0 {
            return Err(ReadError::Trimmed { earliest });
        }
        if first.index().0 > end.0 + 1 {
            return Err(ReadError::Future { end: Offset::end_of(end) });
        }
        let index = LogIndex(first.index().0.max(earliest.index().0).max(1) - 1);
        Ok(Self { node: node.clone(), partition, query, first, index, sent: 0 })
    }

    /// Sends until the end, the limit, or nobody listens. Call from a task of its own.
    pub async fn run(mut self, out: mpsc::Sender<Result<v1::ReadResponse, ReadError>>) {
        let mut told = tokio::time::Instant::now();
        loop {
            let entries = match self.read().await {
                Ok(entries) => entries,
                Err(error) => {
                    let _ = out.send(Err(error)).await;
                    return;
                }
            };
            let at_end = entries.is_empty();
            let before = self.sent;
            for (entry, time) in entries {
                let responses = self.take(&entry, time);
                let done = self.is_done();
                for response in responses {
                    if out.send(Ok(response)).await.is_err() {
                        return;
                    }
                }
                if done {
                    return;
                }
            }
            if self.sent > before {
                told = tokio::time::Instant::now();
            } else if told.elapsed() > PROGRESS_EVERY || at_end && !self.query.follow {
                told = tokio::time::Instant::now();
                let end = Offset::end_of(self.index).0;
                if out.send(Ok(v1::ReadResponse { records: Vec::new(), end })).await.is_err() {
                    return;
                }
            }
            if at_end && !self.query.follow {
                return;
            }
            if at_end {
                tokio::select! {
                    () = self.partition.tail.wait_past(self.index) => {}
                    () = out.closed() => return,
                }
            }
        }
    }

    fn is_done(&self) -> bool {
        (self.query.limit > 0 && self.sent >= self.query.limit) || Offset::end_of(self.index) >= self.query.until
    }

    /// The next entries; none at the end.
    async fn read(&mut self) -> Result<Vec<(LoggedEntry, Timestamp)>, ReadError> {
        match self.partition.tail.read(self.index, READ_BYTES) {
            TailRead::Entries(entries) => {
                Ok(entries.iter().map(|entry| (entry.logged.clone(), entry.applied.time)).collect())
            }
            TailRead::End => Ok(Vec::new()),
            TailRead::Behind => {
                let entries = self.node.read_log(self.query.partition, self.index, READ_BYTES).await?;
                Ok(entries.into_iter().map(|entry| (entry.clone(), entry.entry.time)).collect())
            }
        }
    }

    fn take(&mut self, entry: &LoggedEntry, time: Timestamp) -> Vec<v1::ReadResponse> {
        let mut responses = Vec::new();
        let (mut records, mut bytes) = (Vec::new(), 0);
        let place = (self.query.partition, self.node.partition_count());
        for (offset, record, batch) in entry.raw_records() {
            let wanted = offset >= self.first && offset <= self.query.until && self.wants(entry, offset, &record);
            if !wanted || (self.query.limit > 0 && self.sent >= self.query.limit) {
                continue;
            }
            let size = record.bytes().len();
            if !records.is_empty() && (records.len() == RECORDS_MAX || bytes + size > BYTES_MAX) {
                responses.push(v1::ReadResponse { records: std::mem::take(&mut records), end: offset.0 - 1 });
                bytes = 0;
            }
            bytes += size;
            records.push(logged(place, entry, time, offset, &record, batch));
            self.sent += 1;
        }
        self.index = entry.index;
        if !records.is_empty() {
            responses.push(v1::ReadResponse { records, end: Offset::end_of(entry.index).0 });
        }
        responses
    }

    fn wants(&self, entry: &LoggedEntry, offset: Offset, record: &Record) -> bool {
        let query = &self.query;
        (query.raw || !entry.is_refused(offset.position()))
            && query.connection.is_none_or(|connection| record.connection == connection)
            && (query.api.is_empty() || self.api(record) == query.api)
    }

    fn api(&self, record: &Record) -> String {
        if !record.api().is_empty() || record.connection.is_none() {
            return record.api().to_owned();
        }
        let state = self.partition.state.read();
        state.connection(&record.connection).map(|connection| connection.api.to_owned()).unwrap_or_default()
    }
}

/// A record as tools are sent it.
pub fn logged(
    (partition, count): (PartitionId, PartitionCount),
    entry: &LoggedEntry,
    time: Timestamp,
    offset: Offset,
    record: &Record,
    batch: usize,
) -> v1::LoggedRecord {
    let refused = entry.refused.binary_search_by_key(&offset.position(), |(position, _)| *position).ok();
    let refused = refused.and_then(|at| entry.refused.get(at)).map_or("", |(_, refusal)| refusal_name(refusal));
    v1::LoggedRecord {
        offset: offset.0,
        time: time.0,
        kind: u32::from(record.kind as u8),
        connection: match record.connection.is_none() {
            true => bytes::Bytes::new(),
            false => bytes::Bytes::copy_from_slice(&record.connection.0),
        },
        api: record.api().to_owned(),
        body: record.body(),
        refused: refused.to_owned(),
        forwarded: refused.is_empty() && is_forwarded(partition, count, record),
        source: entry.entry.batches.get(batch).map_or("", |batch| batch.source.name()).to_owned(),
    }
}

/// Whether another partition decides about it. Joins and leaves are decided where the connection is, or arrive here by a forward.
fn is_forwarded(partition: PartitionId, count: PartitionCount, record: &Record) -> bool {
    let decides = match record.kind {
        RecordKind::ChannelJoined | RecordKind::ChannelLeft => return false,
        RecordKind::Published => match record.decode::<v1::Published>() {
            Ok(published) if !published.channel.is_empty() => count.of_name(&published.channel),
            Ok(published) => count.of_name(&published.api),
            Err(_) => return false,
        },
        kind if kind.is_command() => record.connection.partition(count),
        _ => return false,
    };
    decides != partition
}
