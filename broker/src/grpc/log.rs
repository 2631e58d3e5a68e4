//! Reads a partition's log for tools: from the tail where it reaches, from disk where it does not.

use std::time::Duration;

use tokio::sync::mpsc;
use trunkline_proto::{ConnectionId, LogIndex, Offset, PartitionCount, PartitionId, Record, RecordKind, limits, v1};

use crate::{
    core::{LoggedEntry, Refusal},
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
        let first = match node.resolve_start(query.partition, &start).await?.at {
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
            let (entries, through) = match self.read().await {
                Ok(read) => read,
                Err(error) => {
                    let _ = out.send(Err(error)).await;
                    return;
                }
            };
            let at_end = through <= self.index;
            let before = self.sent;
            for entry in entries {
                let responses = self.take(&entry);
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
            self.index = self.index.max(through);
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

    /// The next entries, and how far that is: no further at the end.
    async fn read(&mut self) -> Result<(Vec<LoggedEntry>, LogIndex), ReadError> {
        match self.partition.tail.read(self.index, READ_BYTES) {
            TailRead::Entries(entries) => {
                let through = entries.last().map_or(self.index, |entry| entry.logged.index);
                Ok((entries.iter().map(|entry| entry.logged.clone()).collect(), through))
            }
            TailRead::End => Ok((Vec::new(), self.index)),
            TailRead::Behind => {
                let read = self.node.read_log(self.query.partition, self.index, READ_BYTES).await?;
                Ok((read.entries, read.through))
            }
        }
    }

    fn take(&mut self, entry: &LoggedEntry) -> Vec<v1::ReadResponse> {
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
            records.push(logged(place, entry, offset, &record, batch));
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
        if record.connection.is_none() || !api(record).is_empty() {
            return record.api().to_owned();
        }
        let state = self.partition.state.read();
        state.connection(&record.connection).map(|connection| connection.api.to_owned()).unwrap_or_default()
    }
}

/// The API a record belongs to. A command that is bound to several belongs to that of its connection, which it does not say.
fn api(record: &Record) -> &str {
    if limits::is_name(record.api()) { record.api() } else { "" }
}

/// A record as tools are sent it. Its time is its entry's stamp, from wherever it is read: leaders stamp no entry before the one
/// ahead of it (`append.rs`), so that is the time apply counts it at too.
pub fn logged(
    (partition, count): (PartitionId, PartitionCount),
    entry: &LoggedEntry,
    offset: Offset,
    record: &Record,
    batch: usize,
) -> v1::LoggedRecord {
    let refused = entry.refusal(offset.position()).map_or("", refusal_name);
    v1::LoggedRecord {
        offset: offset.0,
        time: entry.entry.time.0,
        kind: u32::from(record.kind as u8),
        connection: match record.connection.is_none() {
            true => bytes::Bytes::new(),
            false => bytes::Bytes::copy_from_slice(&record.connection.0),
        },
        api: api(record).to_owned(),
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

#[cfg(test)]
mod tests {
    use trunkline_proto::{EntryBuilder, Timestamp};

    use super::*;
    use crate::{
        clock,
        node::{NodeConfig, Role},
        raft::AppliedSink,
        testing::{attach, connection, count, edge, message, opened},
    };

    async fn times(node: &Node) -> Vec<u64> {
        let query = Query {
            partition: PartitionId(0),
            from: None,
            limit: 0,
            follow: false,
            raw: true,
            api: String::new(),
            connection: None,
            until: Offset::MAX,
        };
        let (sender, mut receiver) = mpsc::channel(100);
        Reading::open(node, query).await.unwrap().run(sender).await;
        let mut times = Vec::new();
        while let Some(response) = receiver.recv().await {
            times.extend(response.unwrap().records.into_iter().map(|record| record.time));
        }
        times
    }

    #[tokio::test]
    async fn a_record_has_the_same_time_from_the_tail_and_from_disk() {
        let dir = tempfile::tempdir().unwrap();
        let node = Node::open(NodeConfig::new(dir.path(), "test", count(1))).await.unwrap();
        node.wait_ready().await.unwrap();
        let partition = node.partition(PartitionId(0)).unwrap();
        partition.append.append(attach(0)).await.unwrap();
        // an earlier leader's clock was an hour ahead
        let Role::Leader { term } = *partition.role.borrow() else { panic!("no leader") };
        let ahead = clock::now().0 + 3_600_000_000;
        for (sequence, time) in [(1, ahead), (2, 7)] {
            let mut builder = EntryBuilder::new(Timestamp(time), 0);
            let id = connection(0, sequence as u32);
            builder.push(&edge(sequence, &[opened(id), message(id, b"x")]));
            node.group(PartitionId(0)).propose(term, builder.finish()).await.unwrap().await;
        }
        let appended = partition.append.append(edge(3, &[message(connection(0, 1), b"y")])).await.unwrap();
        assert!(appended.entry.applied.time.0 >= ahead, "time went back");
        assert_eq!(appended.entry.logged.entry.time, appended.entry.applied.time, "stamped as applied");
        let from_tail = times(&node).await;
        assert_eq!((from_tail.len(), from_tail.last()), (6, Some(&appended.entry.applied.time.0)));
        partition.tail.installed(partition.tail.applied());
        assert_eq!(times(&node).await, from_tail);
        node.shutdown().await;
    }
}
