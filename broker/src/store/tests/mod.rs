mod folder;
mod golden;
mod power;
mod writer;

use std::{path::Path, sync::Arc};

use trunkline_proto::{Batch, Entry, EntryBuilder, LogIndex, PartitionId, Timestamp};

use super::{
    Db, Health, Identity, Payload, Reader, StoredEntry, StoredLogId, Writer,
    identity::{self, Folder},
    marks::{self, Mark},
    write::Write,
};
use crate::testing;

/// An open store without Raft over it.
struct Store {
    writer: Writer,
    db: Arc<Db>,
    health: Health,
    _folder: Folder,
}

fn identity(partitions: u16) -> Identity {
    Identity { cluster: "test".into(), node: 1, partitions: testing::count(partitions) }
}

fn open(dir: &Path, partitions: u16) -> Result<Store, super::OpenError> {
    let identity = identity(partitions);
    let folder = identity::open(dir, &identity)?;
    let marks = marks::read(dir, identity.partitions)?;
    let db = Arc::new(Db::open(dir, identity.partitions, folder.fresh)?);
    let mut current = Vec::new();
    for (partition, mark) in identity.partitions.iter().zip(marks) {
        let reader = Reader::new(Arc::clone(&db), partition);
        super::verify::check_mark(&reader, mark)?;
        super::verify::check_covered(&reader)?;
        current.push(Mark { end: reader.end()?, term: mark.term });
    }
    let health = Health::new();
    let writer = Writer::start(Arc::clone(&db), dir.to_owned(), current, health.clone()).unwrap();
    Ok(Store { writer, db, health, _folder: folder })
}

impl Store {
    fn reader(&self, partition: u16) -> Reader {
        Reader::new(Arc::clone(&self.db), PartitionId(partition))
    }

    fn append(&self, partition: u16, indexes: std::ops::Range<u64>) {
        let entries = indexes.map(entry).collect();
        self.writer.handle().write_blocking(PartitionId(partition), Write::Entries(entries)).unwrap();
    }
}

fn batch() -> Batch {
    testing::edge(1, &[testing::opened(testing::connection(0, 1)), testing::message(testing::connection(0, 1), b"hi")])
}

fn entry(index: u64) -> StoredEntry {
    let mut builder = EntryBuilder::new(Timestamp(1000 + index), 256);
    builder.push(&batch());
    let payload = Payload::Entry(builder.finish());
    StoredEntry { id: StoredLogId { term: 1, index: LogIndex(index) }, payload }
}

fn parse(entry: &StoredEntry) -> Entry {
    match &entry.payload {
        Payload::Entry(bytes) => Entry::parse(bytes).unwrap(),
        other => panic!("{other:?}"),
    }
}
