//! The walk over a batch's records: headers only; a body is decoded only where apply needs it.

use bytes::Bytes;
use prost::Message;
use trunkline_proto::{Batch, LogIndex, Offset, Record, record::RecordRef};

use super::effects::Refusal;

/// A batch at its place in the log.
#[derive(Clone, Copy, Debug)]
pub(super) struct Located<'a> {
    pub index: LogIndex,
    pub first: u16,
    /// Position in the entry of the last record to take effect.
    pub through: u16,
    pub batch: &'a Batch,
}

impl<'a> Located<'a> {
    /// Its records with their offsets. Entries are checked before they get here; the walk ends where that does not hold.
    pub(super) fn records(&self) -> impl Iterator<Item = Logged<'a>> + use<'a> {
        let Self { index, first, batch, .. } = *self;
        let mut start = 0;
        (0..batch.count).map_while(move |n| {
            let record = RecordRef::first(batch.records.get(start..)?).ok()?;
            let logged =
                Logged { offset: Offset::new(index, first.saturating_add(n)), record, bytes: &batch.records, start };
            start += record.length;
            Some(logged)
        })
    }

    /// Those of its records that take effect.
    pub(super) fn taken(&self) -> impl Iterator<Item = Logged<'a>> + use<'a> {
        let through = self.through;
        self.records().take_while(move |logged| logged.position() <= through)
    }
}

/// A record being applied, borrowed from its batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Logged<'a> {
    pub offset: Offset,
    pub record: RecordRef<'a>,
    bytes: &'a Bytes,
    start: usize,
}

impl Logged<'_> {
    /// Its place in the entry.
    pub(super) fn position(&self) -> u16 {
        self.offset.position()
    }

    /// The whole record, sharing the entry's buffer.
    pub(super) fn shared(&self) -> Result<Record, Refusal> {
        Record::split_from(&mut self.whole()).map_err(|_| Refusal::Malformed)
    }

    /// Its body; payloads share the entry's buffer.
    pub(super) fn decode<M: Message + Default>(&self) -> Result<M, Refusal> {
        let body_start = self.record.length - self.record.body.len();
        M::decode(self.whole().slice(body_start..)).map_err(|_| Refusal::Malformed)
    }

    /// Its bytes as they stand in the log.
    pub(super) fn whole(&self) -> Bytes {
        self.bytes.slice(self.start..self.start + self.record.length)
    }
}
