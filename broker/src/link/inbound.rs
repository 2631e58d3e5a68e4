//! Step 4 of the walk. Frames off one edge's stream for one partition: checked, put into the log in order and pipelined. Before it
//! `edge/src/uplink.rs` (step 3), after it `append.rs` (step 5).
//!
//! What is on its way through the log is bounded; when full, the stream is not read, and QUIC's flow control stops the edge.

use std::sync::Arc;

use ::metrics::counter;
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use trunkline_proto::{
    Batch, PartitionCount, PartitionId, RecordKind, Source, limits,
    link::{Frame, UplinkBatch},
    v1,
};

use super::{
    frames::FrameReader,
    sequencer::{Sequencer, Step},
    sessions::Heard,
    stream::End,
};
use crate::{append, metrics::link as names};

/// Batches of one stream on their way through the log.
pub(super) const BATCHES_MAX: usize = 256;

/// A batch on its way through the log.
#[derive(Debug)]
pub(super) struct InFlight {
    /// Its sequence number.
    pub(super) sequence: u64,
    /// Resolves when it is applied.
    pub(super) pending: append::Pending,
    /// Its share of the stream's bytes, given back when it is answered.
    pub(super) _share: OwnedSemaphorePermit,
}

/// Whose batches a stream carries.
#[derive(Clone, Debug)]
pub(super) struct Owner {
    /// The edge, as its certificate says.
    pub(super) edge: String,
    /// As attached.
    pub(super) incarnation: u64,
    /// The stream's partition.
    pub(super) partition: PartitionId,
    /// Of the cluster.
    pub(super) count: PartitionCount,
}

/// Why a batch cannot go into the log, whatever the state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum BatchError {
    /// Empty, or more records than an entry takes.
    #[error("batch of {0} records")]
    Count(u16),
    /// Not records.
    #[error(transparent)]
    Records(#[from] trunkline_proto::EntryError),
    /// Edges write events only.
    #[error("an edge may not write {0} records")]
    Kind(&'static str),
    /// The connection belongs to another partition, or there is none.
    #[error("a record's connection does not belong to partition {0}")]
    Connection(PartitionId),
    /// A name that is none.
    #[error("a record's API is no name")]
    Api,
    /// Opened by someone else.
    #[error("a connection was opened under another edge or incarnation")]
    Owner,
}

/// Checks a batch from an edge and makes it the log's.
pub(super) fn check(owner: &Owner, batch: UplinkBatch) -> Result<Batch, BatchError> {
    if batch.count == 0 || usize::from(batch.count) > limits::ENTRY_RECORDS_MAX {
        return Err(BatchError::Count(batch.count));
    }
    let source = Source::Edge(v1::EdgeSource {
        edge: owner.edge.clone(),
        incarnation: owner.incarnation,
        sequence: batch.sequence,
    });
    let batch = Batch::checked(source, batch.count, batch.records)?;
    for record in batch.iter() {
        let record = record.map_err(trunkline_proto::EntryError::from)?;
        if !record.kind.is_event() {
            return Err(BatchError::Kind(record.kind.name()));
        }
        if record.connection.is_none() || record.connection.partition(owner.count) != owner.partition {
            return Err(BatchError::Connection(owner.partition));
        }
        if !limits::is_name(record.api()) {
            return Err(BatchError::Api);
        }
        if record.kind == RecordKind::ConnectionOpened {
            let opened: v1::ConnectionOpened = record.decode().map_err(trunkline_proto::EntryError::from)?;
            if opened.edge != owner.edge || opened.incarnation != owner.incarnation {
                return Err(BatchError::Owner);
            }
        }
    }
    Ok(batch)
}

/// The reading half of an attached stream.
#[derive(Debug)]
pub(super) struct Inbound<'a> {
    /// Where frames come from.
    pub(super) reader: &'a mut FrameReader,
    /// Whose they are.
    pub(super) owner: Owner,
    /// The partition's log.
    pub(super) append: append::Handle,
    /// Shared with the writing half.
    pub(super) sequencer: Arc<Mutex<Sequencer>>,
    /// Wakes the writing half when there is something to say that no batch's answer says.
    pub(super) say: Arc<Notify>,
    /// To the writing half, in order; bounded by [`BATCHES_MAX`].
    pub(super) in_flight: mpsc::Sender<InFlight>,
    /// Bytes that may be in flight.
    pub(super) room: Arc<Semaphore>,
    /// How many bytes `room` had at first.
    pub(super) room_bytes: u32,
    /// To be told of every frame.
    pub(super) heard: Arc<Heard>,
}

impl Inbound<'_> {
    /// Reads until the stream ends; says why.
    pub(super) async fn run(&mut self) -> End {
        loop {
            let frame = match self.reader.next().await {
                Ok(Some(frame)) => frame,
                Ok(None) => return End::Finished,
                Err(error) if error.is_invalid() => return End::Invalid(error.to_string()),
                Err(_) => return End::Gone,
            };
            self.heard.now();
            match frame {
                Frame::Batch(batch) => {
                    if let Err(end) = self.take(batch).await {
                        return end;
                    }
                }
                // the cursor's own position says how far the edge is behind
                Frame::Seen { .. } | Frame::Ping => {}
                _ => return End::Invalid("this frame is not an edge's to send here".to_owned()),
            }
        }
    }

    async fn take(&mut self, batch: UplinkBatch) -> Result<(), End> {
        let sequence = batch.sequence;
        counter!(names::LINK_BYTES_RECEIVED_TOTAL).increment(batch.records.len() as u64);
        let step = self.sequencer.lock().handle_batch(sequence);
        if step != Step::Append {
            self.say.notify_one();
            return Ok(());
        }
        let batch = check(&self.owner, batch).map_err(|error| End::Invalid(error.to_string()))?;
        let bytes = u32::try_from(batch.weight()).unwrap_or(u32::MAX).min(self.room_bytes);
        // the semaphore is never closed; an error would mean that the stream is over
        let share = self.room.clone().acquire_many_owned(bytes).await.map_err(|_| End::Gone)?;
        let pending = self.append.enqueue(batch).await.map_err(End::from)?;
        self.in_flight.send(InFlight { sequence, pending, _share: share }).await.map_err(|_| End::Gone)
    }
}

#[cfg(test)]
mod tests {
    use trunkline_proto::{ConnectionId, Record};

    use super::*;

    fn owner() -> Owner {
        Owner {
            edge: "a".to_owned(),
            incarnation: 3,
            partition: PartitionId(1),
            count: PartitionCount::new(4).unwrap(),
        }
    }

    /// A connection of partition `n` of 4.
    fn connection(n: u8) -> ConnectionId {
        let mut id = [7; 16];
        id[..2].copy_from_slice(&[0, n]);
        ConnectionId(id)
    }

    fn opened(edge: &str, incarnation: u64) -> Record {
        let body = v1::ConnectionOpened { edge: edge.to_owned(), incarnation, ..Default::default() };
        Record::new(RecordKind::ConnectionOpened, connection(1), "chat", &body)
    }

    fn checked(records: &[Record]) -> Result<Batch, BatchError> {
        let batch = Batch::new(Source::Leader, records);
        check(&owner(), UplinkBatch { sequence: 1, count: batch.count, records: batch.records })
    }

    #[test]
    fn events_of_this_edge_and_partition_pass() {
        let message = Record::new(RecordKind::MessageReceived, connection(5), "chat", &v1::MessageReceived::default());
        let batch = checked(&[opened("a", 3), message]).unwrap();
        assert_eq!(batch.count, 2);
        assert!(matches!(batch.source, Source::Edge(source) if source.edge == "a" && source.sequence == 1));
    }

    #[test]
    fn everything_else_is_refused_before_the_log() {
        let message = |connection, api| {
            Record::new(RecordKind::MessageReceived, connection, api, &v1::MessageReceived::default())
        };
        let pushed = Record::new(RecordKind::Pushed, connection(1), "chat", &v1::Pushed::default());
        assert_eq!(checked(&[pushed]), Err(BatchError::Kind("pushed")));
        assert_eq!(checked(&[message(connection(2), "chat")]), Err(BatchError::Connection(PartitionId(1))));
        assert_eq!(checked(&[message(ConnectionId::NONE, "chat")]), Err(BatchError::Connection(PartitionId(1))));
        assert_eq!(checked(&[message(connection(1), "")]), Err(BatchError::Api));
        assert_eq!(checked(&[opened("b", 3)]), Err(BatchError::Owner));
        assert_eq!(checked(&[opened("a", 2)]), Err(BatchError::Owner));
        assert_eq!(checked(&[]), Err(BatchError::Count(0)));
        let garbage = UplinkBatch { sequence: 1, count: 1, records: bytes::Bytes::from_static(b"\xff\xff\xff\xff!") };
        assert!(matches!(check(&owner(), garbage), Err(BatchError::Records(_))));
        let lying = Batch::new(Source::Leader, &[opened("a", 3)]).records;
        let lying = UplinkBatch { sequence: 1, count: 2, records: lying };
        assert!(matches!(check(&owner(), lying), Err(BatchError::Records(_))));
    }
}
