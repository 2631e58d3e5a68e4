//! Events that were passed over and are asked for again: kept while there is room, else read a second time.

use std::collections::BTreeMap;

use bytes::Bytes;
use trunkline_proto::{Offset, Record};

use super::cursor::{READ_BYTES, Scanned};

/// Most bytes of records that are kept.
const KEPT_BYTES: usize = 256 << 10;
/// Where a reader has gone back by pieces, the first is so large.
const PIECE_BYTES: usize = 16 << 10;
/// So many events of a piece must have been asked for, or the next one is a single entry.
const HITS: usize = 4;

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Again {
    kept: BTreeMap<Offset, Scanned>,
    kept_bytes: usize,
    /// The last piece that was read, in order of offsets, and its bytes.
    piece: (Vec<Scanned>, usize),
    /// How many of it were asked for.
    hits: usize,
}

impl Again {
    /// Keeps a copy, if there is room: what is kept may stay for long, and shares no entry's buffer.
    pub(super) fn keep(&mut self, event: Scanned) {
        let size = event.record.bytes().len();
        if self.kept_bytes + size > KEPT_BYTES {
            return;
        }
        // a record that was read is one
        let Ok(record) = Record::split_from(&mut Bytes::copy_from_slice(event.record.bytes())) else { return };
        self.kept_bytes += size;
        self.kept.insert(event.offset, Scanned { record, ..event });
    }

    /// The event, if it is here.
    pub(super) fn take(&mut self, offset: Offset) -> Option<Scanned> {
        if let Some(event) = self.kept.remove(&offset) {
            self.kept_bytes -= event.record.bytes().len();
            return Some(event);
        }
        let (events, _) = &self.piece;
        let at = events.binary_search_by_key(&offset, |event| event.offset).ok()?;
        self.hits += 1;
        events.get(at).cloned()
    }

    /// How many bytes to read from an event that is not here: more where those after it are asked for too.
    pub(super) fn read_ahead(&self) -> usize {
        if self.hits < HITS { 1 } else { (self.piece.1 * 4).clamp(PIECE_BYTES, READ_BYTES) }
    }

    /// This piece takes the last one's place.
    pub(super) fn was_read(&mut self, events: Vec<Scanned>, bytes: usize) {
        self.piece = (events, bytes);
        self.hits = 0;
    }
}
