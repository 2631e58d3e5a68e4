//! How a connection came to be, asked for later: events tell it once, and whoever begins in the middle of a connection's life, or after
//! its end, asks. Open connections are in the state; how closed ones came to be is kept beside the log for as long as that.

use trunkline_proto::{ConnectionId, LogIndex, Offset, PartitionId, RecordKind, v1};

use super::{Node, PartitionHandle, ReadError, history::no_replica};
use crate::{core::LoggedEntry, tail::TailRead};

impl Node {
    /// How the connection came to be, as this broker's replica knows it. `event`: of one of its events, where a closed one is looked for
    /// from. `None`: there is no such connection, or retention has taken its end too.
    pub async fn opening(&self, id: ConnectionId, event: Offset) -> Result<Option<v1::Opening>, ReadError> {
        let partition = id.partition(self.partition_count());
        let handle = self.partition(partition).ok_or_else(|| no_replica(partition))?;
        let open = handle.state.read().opening(&id);
        let opening = match open {
            Some(opening) => Some(opening),
            None => self.opening_of_closed(partition, id, event).await?,
        };
        let Some(opening) = opening else { return Ok(None) };
        // the tail may still hold what is trimmed
        if Offset(opening.offset) < self.earliest(partition) {
            return Ok(Some(opening));
        }
        match self.opened(handle, Offset(opening.offset)).await {
            Ok(Some(opened)) => Ok(Some(v1::Opening { opened: Some(opened), trimmed: false, ..opening })),
            Ok(None) | Err(ReadError::Trimmed { .. }) => Ok(Some(opening)),
            Err(error) => Err(error),
        }
    }

    async fn opening_of_closed(
        &self,
        partition: PartitionId,
        id: ConnectionId,
        event: Offset,
    ) -> Result<Option<v1::Opening>, ReadError> {
        let (first, applied) = (self.earliest(partition).index(), self.applied(partition)?);
        let first = first.max(event.index());
        self.blocking(partition, move |reader, unwritten| {
            // before the disk: it leaves this list only once it is there
            match unwritten.closed(&id) {
                Some(opening) => Ok(Some(opening)),
                None => reader.closed(id, first, applied),
            }
        })
        .await
    }

    /// The record at `offset`, from the tail or from disk.
    async fn opened(
        &self,
        partition: &PartitionHandle,
        offset: Offset,
    ) -> Result<Option<v1::ConnectionOpened>, ReadError> {
        let before = LogIndex(offset.index().0.saturating_sub(1));
        if let TailRead::Entries(entries) = partition.tail.read(before, 1)
            && let Some(entry) = entries.first().filter(|entry| entry.logged.index == offset.index())
        {
            return Ok(find(&entry.logged, offset));
        }
        let read = self.read_log(partition.id, before, 1).await?;
        let entry = read.entries.first().filter(|entry| entry.index == offset.index());
        Ok(entry.and_then(|entry| find(entry, offset)))
    }
}

fn find(entry: &LoggedEntry, offset: Offset) -> Option<v1::ConnectionOpened> {
    let (_, record) = entry.records().find(|(at, _)| *at == offset)?;
    (record.kind == RecordKind::ConnectionOpened).then(|| record.decode().ok()).flatten()
}
