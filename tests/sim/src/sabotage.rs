//! The negative controls: each undoes one rule of the state machine by what is put in front of it. The same entry and state are
//! undone alike on every replica.

use trunkline_broker::core::Partition;
use trunkline_proto::{Batch, Entry, Offset, PartitionId, Record, RecordKind, Source, v1};
use xxhash_rust::xxh3::xxh3_64;

use crate::Rules;

/// The entry as the state machine is to see it.
pub(crate) fn rewrite(rules: Rules, state: &Partition, mut entry: Entry) -> Entry {
    for batch in &mut entry.batches {
        match &mut batch.source {
            Source::Edge(source) if !rules.dedup => {
                // one entry may hold several batches of an edge: only what would be refused is touched
                if let Some(edge) = state.edge(&source.edge)
                    && source.sequence <= edge.last_sequence
                {
                    source.sequence = edge.last_sequence + 1;
                }
            }
            Source::Forward(source) if !rules.watermark => {
                let watermark = state.watermark(PartitionId(source.partition as u16));
                source.predecessor = watermark.0;
                source.offset = source.offset.max(watermark.0 + 1);
            }
            Source::Commit if !rules.epochs => *batch = in_force(state, batch),
            _ => {}
        }
    }
    entry
}

/// A commit that would be refused, made one that settles nothing and whose commands apply.
fn in_force(state: &Partition, batch: &Batch) -> Batch {
    let records: Vec<Record> = batch.iter().map_while(Result::ok).collect();
    let Some(head) = records.first().and_then(|head| head.decode::<v1::HandlerCommitted>().ok()) else {
        return batch.clone();
    };
    let Some(group) = state.group(&head.group) else { return batch.clone() };
    if head.epoch == group.epoch && Offset(head.base) == group.through {
        return batch.clone();
    }
    let through = group.through.0;
    let forced = v1::HandlerCommitted {
        epoch: group.epoch,
        base: through,
        through,
        outcomes: Vec::new(),
        holes: Vec::new(),
        ..head
    };
    let mut forced = vec![Record::new(RecordKind::HandlerCommitted, Default::default(), "", &forced)];
    forced.extend_from_slice(&records[1..]);
    Batch::new(Source::Commit, &forced)
}

/// Undoes what the state machine does about lost edges: those that have nothing open here count as well again.
pub(crate) fn forget_losses(rules: Rules, state: &mut Partition) {
    if rules.fencing {
        return;
    }
    let lost: Vec<(String, u64, u64)> = state
        .edges()
        .filter(|(_, edge)| edge.lost && edge.connections == 0)
        .map(|(_, edge)| (edge.name.to_owned(), edge.incarnation, edge.last_sequence))
        .collect();
    for (name, incarnation, sequence) in lost {
        let mut bytes = state.encode();
        let mut pattern = name.into_bytes();
        pattern.extend(incarnation.to_le_bytes());
        pattern.extend(sequence.to_le_bytes());
        pattern.push(1);
        let at = bytes.windows(pattern.len()).position(|window| window == pattern);
        if let Some(at) = at {
            bytes[at + pattern.len() - 1] = 0;
            let end = bytes.len() - 8;
            let checksum = xxh3_64(&bytes[..end]);
            bytes[end..].copy_from_slice(&checksum.to_le_bytes());
            if let Ok(changed) = Partition::decode(&bytes) {
                *state = changed;
            }
        }
    }
}
