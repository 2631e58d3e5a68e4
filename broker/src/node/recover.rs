//! The last resort: a majority of the disks is lost, and one of the others goes on alone with what it has. Offline, on the folder of a broker
//! that is stopped. Its groups get a membership of this broker alone, so that everything in its logs counts as committed; its folder gets
//! another name of its own, and the disks of all former members are retired: whoever comes back with one takes no part.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

use trunkline_proto::{LogIndex, PartitionId};

use crate::{
    raft::{Member, types, witness},
    store::{
        Db, DiskId, Health, Identity, OpenError, Payload, Reader, StoreError, StoredEntry, StoredLogId, StoredVote,
        Write, Writer, identity,
        marks::{self, Mark},
        retired, snapshot,
        verify::{check_covered, check_mark},
    },
};

/// What is left of a partition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kept {
    /// Which.
    pub partition: PartitionId,
    /// The log's last entry: it, and everything before it, counts as committed from then on.
    pub last: StoredLogId,
    /// The last entry that is known to have been committed; this position is written late.
    pub committed: Option<LogIndex>,
    /// Other brokers that are known to have had more, and their last entry: what follows `last` is lost, at least to there.
    pub had_more: BTreeMap<u64, LogIndex>,
}

/// What a recovery keeps and whom it leaves behind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recovery {
    /// Of the folder.
    pub identity: Identity,
    /// By partition.
    pub partitions: Vec<Kept>,
    /// The members but for this one, as its groups know them: their disks are retired.
    pub left_behind: BTreeMap<u64, Member>,
}

/// Why a folder is not recovered. Nothing is changed.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The folder cannot be opened, or what is left of a partition is damaged.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// No group was ever formed here, or this broker was no member of it.
    #[error(
        "broker {broker} is no member of partition {partition}, as its own log goes: it holds nothing to go on with"
    )]
    NoMember {
        /// The broker.
        broker: u64,
        /// Which.
        partition: PartitionId,
    },
    /// There is nobody to leave behind.
    #[error("broker {broker} is the only member already: start it")]
    Alone {
        /// The broker.
        broker: u64,
    },
    /// The folder took no write.
    #[error("writing to the folder: {0}. Do it again")]
    Write(String),
}

impl From<StoreError> for RecoverError {
    fn from(error: StoreError) -> Self {
        Self::Open(error.into())
    }
}

/// A partition's log as found.
struct Log {
    reader: Reader,
    mark: Mark,
    last: StoredLogId,
    vote: u64,
    members: BTreeMap<u64, Member>,
}

/// What [`recover`] would keep. Changes nothing. Blocks.
pub fn survey(dir: &Path) -> Result<Recovery, RecoverError> {
    let folder = identity::open_existing(dir)?;
    let db = Arc::new(Db::open_read_only(dir, folder.identity.partitions)?);
    let logs = find(dir, &db, &folder.identity)?;
    describe(dir, folder.identity.clone(), &logs)
}

/// Makes the broker of this folder its cluster's only member. Blocks. Cut short, it is to be done again before the broker is started.
pub fn recover(dir: &Path) -> Result<Recovery, RecoverError> {
    let mut folder = identity::open_existing(dir)?;
    let db = Arc::new(Db::open(dir, folder.identity.partitions, false)?);
    let logs = find(dir, &db, &folder.identity)?;
    let recovery = describe(dir, folder.identity.clone(), &logs)?;
    // first what keeps the others out, then the name without which no group counts this broker, then the groups
    let mut disks: BTreeSet<DiskId> = retired::read(dir)?;
    disks.extend(logs.iter().flat_map(|log| log.members.values()).map(|member| member.disk));
    disks.insert(folder.disk);
    disks.remove(&DiskId::UNKNOWN);
    retired::write(dir, &disks)?;
    folder.rename_disk(dir)?;
    let marks = logs.iter().map(|log| log.mark).collect();
    let failed = |error: &dyn std::fmt::Display| RecoverError::Write(error.to_string());
    let mut writer =
        Writer::start(Arc::clone(&db), dir.to_owned(), marks, Health::new()).map_err(|error| failed(&error))?;
    let node = folder.identity.node;
    for log in &logs {
        let (partition, write) = (log.reader.partition(), writer.handle());
        // later than every leader that this broker has heard of
        let id = StoredLogId { term: log.vote.max(log.last.term) + 1, index: LogIndex(log.last.index.0 + 1) };
        let link = log.members.get(&node).map(|own| own.link.clone()).unwrap_or_default();
        let alone = types::encode_alone(node, Member { link, disk: folder.disk });
        let vote = StoredVote { term: id.term, node, committed: false };
        write.write_blocking(partition, Write::Vote(vote)).map_err(|error| failed(&error))?;
        let entry = StoredEntry { id, payload: Payload::Membership(alone.into()) };
        write.write_blocking(partition, Write::Entries(vec![entry])).map_err(|error| failed(&error))?;
    }
    writer.stop();
    Ok(recovery)
}

fn find(dir: &Path, db: &Arc<Db>, identity: &Identity) -> Result<Vec<Log>, RecoverError> {
    let marks = marks::read(dir, identity.partitions)?;
    let mut logs = Vec::new();
    for (partition, mark) in identity.partitions.iter().zip(marks) {
        let reader = Reader::new(Arc::clone(db), partition);
        check_mark(&reader, mark)?;
        check_covered(&reader)?;
        let (last, members) = members(&reader)?;
        let Some(last) = last.filter(|_| members.contains_key(&identity.node)) else {
            return Err(RecoverError::NoMember { broker: identity.node, partition });
        };
        let vote = reader.vote()?.map_or(0, |vote| vote.term);
        let mark = Mark { end: reader.end()?, term: vote };
        logs.push(Log { reader, mark, last, vote, members });
    }
    Ok(logs)
}

/// The log's end, and the last membership in it.
fn members(reader: &Reader) -> Result<(Option<StoredLogId>, BTreeMap<u64, Member>), StoreError> {
    let decoded = |at: LogIndex, bytes: &[u8]| {
        types::decode_members(bytes).map_err(|error| StoreError::at(reader.partition(), at, error.to_string()))
    };
    let (mut last, mut members) = (reader.last()?.max(reader.purged()?), BTreeMap::new());
    if let Some(manifest) = snapshot::newest(reader, LogIndex(u64::MAX))? {
        members = decoded(manifest.last.index, &manifest.membership.1)?;
        last = last.max(Some(manifest.last));
    }
    let from = snapshot::newest(reader, LogIndex(u64::MAX))?.map_or(LogIndex(0), |manifest| manifest.last.index);
    let Some(first) = reader.first()? else { return Ok((last, members)) };
    let mut scan = reader.scan(first.index.max(from), LogIndex(u64::MAX))?;
    while let Some(entry) = scan.next_entry()? {
        if let Payload::Membership(bytes) = &entry.payload {
            members = decoded(entry.id.index, bytes)?;
        }
    }
    Ok((last, members))
}

fn describe(dir: &Path, identity: Identity, logs: &[Log]) -> Result<Recovery, RecoverError> {
    let mut left_behind = BTreeMap::new();
    for (id, member) in logs.iter().flat_map(|log| &log.members).filter(|(id, _)| **id != identity.node) {
        left_behind.insert(*id, member.clone());
    }
    if left_behind.is_empty() {
        return Err(RecoverError::Alone { broker: identity.node });
    }
    // a file that cannot be read tells nothing: then no loss is known
    let remembered = witness::remembered(dir).unwrap_or_default();
    let mut partitions = Vec::new();
    for log in logs {
        let (partition, held) = (log.reader.partition(), (log.last.term, log.last.index.0 + 1));
        let had_more = remembered.iter().filter_map(|(id, (disk, ends))| {
            let is_member = log.members.get(id).is_some_and(|member| member.disk == *disk);
            let (term, end) = *ends.get(&partition).filter(|end| is_member && **end > held)?;
            Some((*id, LogIndex(end.saturating_sub(1)))).filter(|_| term >= held.0)
        });
        let had_more = had_more.filter(|(_, last)| *last > log.last.index).collect();
        let committed = log.reader.committed()?.map(|committed| committed.index);
        partitions.push(Kept { partition, last: log.last, committed, had_more });
    }
    Ok(Recovery { identity, partitions, left_behind })
}
