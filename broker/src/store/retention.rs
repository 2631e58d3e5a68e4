//! Physical deletion of what retention has taken. Two steps, in this order, so that a crash between them leaves a sound folder:
//! first everything up to the trim point is deleted, durably, by range tombstones; then the files that held nothing else are
//! dropped at once rather than by compaction. Readers look at nothing below the trim point from before the first step.

use trunkline_proto::{LogIndex, PartitionId};

use super::{
    db::Db,
    error::StoreError,
    keys,
    reader::Reader,
    snapshot,
    write::Write,
    writer::{Closed, Handle},
};

/// Deletes entries and refused records up to `through` and the snapshots before it, if there is anything to delete. A snapshot at
/// `through` or after it must exist. Blocks.
pub fn delete(writer: &Handle, reader: &Reader, through: LogIndex) -> Result<(), StoreError> {
    if !remains(reader, through)? {
        return Ok(());
    }
    mark_deleted(writer, reader.partition(), through).map_err(|Closed(reason)| StoreError::Rocks(reason))?;
    free(reader.db(), reader.partition(), through)
}

/// Whether there is anything to delete.
fn remains(reader: &Reader, through: LogIndex) -> Result<bool, StoreError> {
    if reader.first_on_disk()?.is_some_and(|first| first <= through) {
        return Ok(true);
    }
    Ok(snapshot::oldest(reader, LogIndex(0))?.is_some_and(|oldest| oldest.last.index < through))
}

/// The first step: durable when it returns.
pub(super) fn mark_deleted(writer: &Handle, partition: PartitionId, through: LogIndex) -> Result<(), Closed> {
    writer.write_blocking(partition, Write::Trim(through))
}

/// The second step: files that lie wholly below. Those of level 0 and those that reach beyond are left to compaction.
pub(super) fn free(db: &Db, partition: PartitionId, through: LogIndex) -> Result<(), StoreError> {
    let (first, last) = (keys::log_key(LogIndex(0)), keys::log_key(through));
    Ok(db.rocks().delete_file_in_range_cf(db.log(partition)?, first, last)?)
}
