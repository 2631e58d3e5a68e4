//! What brokers know of what each other has acknowledged. A data folder that was put back to an older copy looks sound to its own broker,
//! marks and all; only the others can tell. So each remembers, of every peer, the furthest it is known to have come: a leader by the
//! acknowledgements it gets, the others by what the peer tells them about once a second; and tells it in its hello. Whoever hears that
//! it has acknowledged more than it holds closes all its partitions for good: it neither votes nor acknowledges until it is rebuilt.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message as _;
use trunkline_proto::{PartitionCount, PartitionId, v1::peer as pb};

use super::{
    frames::WireError,
    log_store::Log,
    peers::{Own, Peers},
    types::LogId,
    wire,
};
use crate::store::{
    DiskId, Health, OpenError, Write, WriterHandle, files,
    retired::{self, RETIRED_MAX},
};

/// How often a broker tells the others how far it is.
const TELL: Duration = Duration::from_secs(1);
/// What is known is written to disk at most every so many of these.
const SAVE_EVERY: u32 = 5;
/// How long a peer may take to hear it.
const PATIENCE: Duration = Duration::from_secs(1);
const FILE: &str = "peers";
const MAGIC: &[u8; 8] = b"TLPEERS1";

/// How far a replica has come, in the order of time: a vote never goes back, and under one vote a log only grows once it ends with an
/// entry of that vote's leader. Before that the leader may rightly cut it off, or put a snapshot in its place.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
struct Progress {
    /// Term of its vote.
    vote: u64,
    /// Term of its last entry.
    term: u64,
    /// One more than its last index; 0: none.
    end: u64,
}

impl Progress {
    fn of(vote: u64, last: Option<LogId>) -> Self {
        let (term, end) = last.map_or((0, 0), |last| (last.committed_leader_id().term, last.index + 1));
        Self { vote, term, end }
    }

    /// The vote is looked at last: a log that is cut off meanwhile was so under a vote of then or later.
    fn at(log: &Log) -> Self {
        let last = log.last();
        Self::of(log.term(), last)
    }

    fn from_wire(told: &pb::Progress) -> Self {
        Self { vote: told.vote, term: told.term, end: told.end }
    }

    fn to_wire(self, partition: PartitionId) -> pb::Progress {
        pb::Progress { partition: u32::from(partition.0), vote: self.vote, term: self.term, end: self.end }
    }

    /// Whether a replica that is here has lost something of what it had when it was at `told`.
    fn lacks(self, told: Self) -> bool {
        let follows = told.term == told.vote;
        self.vote < told.vote || self.vote == told.vote && follows && (self.term, self.end) < (told.term, told.end)
    }
}

/// Of one other broker.
#[derive(Clone, PartialEq, Debug, Default)]
struct Known {
    disk: DiskId,
    /// The last process that has been told all of this, and gone on.
    process: u64,
    partitions: BTreeMap<PartitionId, Progress>,
}

/// What this broker knows of the others, and what of its own it is compared with.
pub struct Witness {
    known: Mutex<BTreeMap<u64, Known>>,
    is_saved: AtomicBool,
    path: PathBuf,
    count: PartitionCount,
    /// Its partitions, but for those that are closed already; nothing once the broker stops.
    logs: Mutex<BTreeMap<PartitionId, Log>>,
    writer: WriterHandle,
    health: Health,
    /// Why this broker takes no part any more.
    closed: OnceLock<Arc<str>>,
    /// Disks that the cluster was recovered without.
    retired: BTreeSet<DiskId>,
}

impl std::fmt::Debug for Witness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Witness").field("known", &self.known).finish_non_exhaustive()
    }
}

impl Witness {
    /// With what the data folder `dir` remembers. Blocks.
    pub fn open(
        dir: &Path,
        count: PartitionCount,
        logs: impl IntoIterator<Item = (PartitionId, Log)>,
        writer: WriterHandle,
        health: Health,
    ) -> Result<Self, OpenError> {
        let retired = retired::read(dir)?;
        let path = dir.join(FILE);
        let known = load(&path).unwrap_or_else(|reason| {
            tracing::error!(path = %path.display(), reason, "what is known of other brokers is lost: it is learnt anew");
            BTreeMap::new()
        });
        let (known, is_saved) = (Mutex::new(known), AtomicBool::new(true));
        let logs = Mutex::new(logs.into_iter().collect());
        Ok(Self { known, is_saved, path, count, logs, writer, health, closed: OnceLock::new(), retired })
    }

    /// A peer has acknowledged its log up to `last`.
    pub(super) fn acknowledged(&self, peer: u64, disk: DiskId, partition: PartitionId, last: LogId) {
        // it had this vote at least: it took an entry of that term
        let progress = Progress::of(last.committed_leader_id().term, Some(last));
        self.note(peer, disk, [(partition, progress)]);
    }

    /// A peer says how far it is.
    pub(super) fn told(&self, peer: u64, disk: DiskId, told: &[pb::Progress]) {
        let told = told.iter().filter_map(|told| {
            let partition = PartitionId(u16::try_from(told.partition).ok()?);
            (partition.0 < self.count.get()).then(|| (partition, Progress::from_wire(told)))
        });
        self.note(peer, disk, told);
    }

    fn note(&self, peer: u64, disk: DiskId, news: impl IntoIterator<Item = (PartitionId, Progress)>) {
        if disk == DiskId::UNKNOWN {
            return;
        }
        let mut known = self.known.lock();
        let known = known.entry(peer).or_default();
        if known.disk != disk {
            *known = Known { disk, ..Known::default() };
        }
        for (partition, progress) in news {
            let best = known.partitions.entry(partition).or_default();
            if progress > *best {
                *best = progress;
                self.is_saved.store(false, Ordering::Relaxed);
            }
        }
    }

    /// What is known of a broker, for a hello to it.
    pub(super) fn about(&self, peer: u64) -> Option<pb::Known> {
        let known = self.known.lock();
        let known = known.get(&peer)?;
        let progress = known.partitions.iter().map(|(partition, progress)| progress.to_wire(*partition));
        let disk = Bytes::copy_from_slice(&known.disk.0);
        Some(pb::Known { disk, process: known.process, progress: progress.collect() })
    }

    /// A peer has been told what is known of it, and goes on.
    pub(super) fn accepted(&self, peer: u64, disk: DiskId, process: u64) {
        let mut known = self.known.lock();
        let known = known.entry(peer).or_default();
        if known.disk != disk {
            *known = Known { disk, ..Known::default() };
        }
        if std::mem::replace(&mut known.process, process) != process {
            self.is_saved.store(false, Ordering::Relaxed);
        }
    }

    /// Why this broker lacks what it acknowledged and is closed, if it is: it asks for no vote and gives none, and neither sends nor takes
    /// entries. Its peers stay within reach, for what is asked of it goes to them.
    pub(super) fn closed(&self) -> Option<&str> {
        self.closed.get().map(AsRef::as_ref)
    }

    /// Compares what a peer's hello says of this broker with what it holds. If that is less, everything here is closed for good, before
    /// anything of a group is exchanged with that peer.
    pub(super) async fn check(&self, own: &Own, hello: &pb::Hello) -> Result<(), WireError> {
        if hello.retired.iter().any(|disk| disk[..] == own.disk.0) {
            let reason = format!(
                "the cluster was recovered without this data folder, as broker {} knows: what it holds is of the time before. If that was a \
                 mistake, stop that broker and start this one again",
                hello.node
            );
            // nothing on the disk says so: it can be taken back
            self.close(reason.into());
            return Ok(());
        }
        let Some(told) = hello.known.as_ref() else { return Ok(()) };
        // of a folder that is gone; or of this very process, which forgets nothing
        if wire::disk(&told.disk)? != own.disk || told.process == own.process {
            return Ok(());
        }
        let lost = told.progress.iter().find_map(|told| {
            let partition = PartitionId(u16::try_from(told.partition).ok()?);
            let log = self.logs.lock().get(&partition)?.clone();
            let (holds, had) = (Progress::at(&log), Progress::from_wire(told));
            holds.lacks(had).then_some((partition, holds, had))
        });
        let Some((partition, holds, had)) = lost else { return Ok(()) };
        let reason = format!(
            "this data folder is an older copy, or its disk does not keep what it says it keeps: broker {} knows that it had \
             acknowledged entry {} of partition {partition} (term {}, vote of term {}), and it ends at {} (term {}, vote of term {})",
            hello.node,
            had.end.saturating_sub(1),
            had.term,
            had.vote,
            holds.end.saturating_sub(1),
            holds.term,
            holds.vote,
        );
        let reason: Arc<str> = reason.into();
        for partition in self.close(Arc::clone(&reason)) {
            self.writer.submit(partition, Write::Doubted(Arc::clone(&reason)), None).await;
        }
        Ok(())
    }

    /// Whether the cluster was recovered without this disk: its broker is not spoken to.
    pub(super) fn is_retired(&self, disk: DiskId) -> bool {
        self.retired.contains(&disk)
    }

    /// Disks that the cluster was recovered without, for a hello.
    pub(super) fn retired(&self) -> Vec<Bytes> {
        self.retired.iter().take(RETIRED_MAX).map(|disk| Bytes::copy_from_slice(&disk.0)).collect()
    }

    /// Closes every partition, before anything waits: whoever waits for this may give up. A folder is older as a whole: what else it has
    /// lost nobody may know. Gives the partitions, whose logs are to say so themselves at the next start, should the peer that knew be away
    /// then.
    fn close(&self, reason: Arc<str>) -> Vec<PartitionId> {
        let reason = self.closed.get_or_init(|| reason);
        let partitions: Vec<_> = self.logs.lock().keys().copied().collect();
        partitions.iter().for_each(|partition| self.health.damage(*partition, reason));
        partitions
    }

    /// How far this broker is, if all of it is on disk.
    fn own(&self) -> BTreeMap<PartitionId, (Log, Progress)> {
        let logs = self.logs.lock();
        let own = logs.iter().map(|(id, log)| (*id, (log.clone(), Progress::at(log))));
        own.collect()
    }

    /// Lets go of the logs, and saves what is known: the broker stops.
    pub(super) fn release(&self) {
        self.logs.lock().clear();
        if let Err(error) = self.save() {
            tracing::warn!(%error, "what is known of other brokers is not saved");
        }
    }

    /// One more than the last entry of a partition that a peer is known to have acknowledged.
    #[cfg(test)]
    pub(crate) fn end_of(&self, peer: u64, partition: PartitionId) -> u64 {
        let known = self.known.lock();
        known.get(&peer).and_then(|known| known.partitions.get(&partition)).map_or(0, |progress| progress.end)
    }

    fn save(&self) -> std::io::Result<()> {
        if self.is_saved.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        let known = self.known.lock().clone();
        let saved = files::replace(&self.path, &encode(&known), true);
        if saved.is_err() {
            self.is_saved.store(false, Ordering::Relaxed);
        }
        saved
    }
}

/// Tells the others how far this broker is, and keeps what they tell, until dropped.
pub async fn run(peers: Peers) {
    let mut ticks = tokio::time::interval(TELL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut sampled, mut told, mut count) = (BTreeMap::new(), BTreeMap::new(), 0_u32);
    loop {
        ticks.tick().await;
        let witness = &peers.own().witness;
        // a second ago this was in memory. It is told if it is on disk by now, and was not cut off again meanwhile
        let settled: Vec<pb::Progress> = std::mem::replace(&mut sampled, witness.own())
            .into_iter()
            .filter(|(_, (log, was))| log.is_written(was.end) && !Progress::at(log).lacks(*was))
            .map(|(partition, (_, was))| was.to_wire(partition))
            .collect();
        for member in peers.members() {
            let Some(process) = peers.process(member.id) else { continue };
            let news = (process, settled.clone());
            if told.get(&member.id) == Some(&news) {
                continue;
            }
            if peers.tell(member.id, settled.clone(), PATIENCE).await.is_ok() {
                told.insert(member.id, news);
            }
        }
        count = count.wrapping_add(1);
        if count.is_multiple_of(SAVE_EVERY) {
            let peers = peers.clone();
            let saved = tokio::task::spawn_blocking(move || peers.own().witness.save()).await;
            if let Ok(Err(error)) = saved {
                tracing::warn!(%error, "what is known of other brokers is not saved");
            }
        }
    }
}

/// Of each other broker, what the data folder of a stopped one remembers: its disk, and by partition the term of the last entry that it is
/// known to have had, and one more than its index.
pub fn remembered(dir: &Path) -> Result<BTreeMap<u64, (DiskId, Ends)>, String> {
    let known = load(&dir.join(FILE))?.into_iter().map(|(id, known)| {
        let ends = known.partitions.into_iter().map(|(partition, progress)| (partition, (progress.term, progress.end)));
        (id, (known.disk, ends.collect()))
    });
    Ok(known.collect())
}

/// Term of the last entry, and one more than its index.
pub type Ends = BTreeMap<PartitionId, (u64, u64)>;

/// `TLPEERS1`, a `KnownPeers`, u32 LE crc32 of all before it.
fn encode(known: &BTreeMap<u64, Known>) -> Vec<u8> {
    let peers = known.iter().map(|(id, known)| pb::KnownPeer {
        id: *id,
        known: Some(pb::Known {
            disk: Bytes::copy_from_slice(&known.disk.0),
            process: known.process,
            progress: known.partitions.iter().map(|(partition, progress)| progress.to_wire(*partition)).collect(),
        }),
    });
    let mut bytes = MAGIC.to_vec();
    bytes.extend(pb::KnownPeers { peers: peers.collect() }.encode_to_vec());
    bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
    bytes
}

fn load(path: &Path) -> Result<BTreeMap<u64, Known>, String> {
    match files::read(path).map_err(|error| error.to_string())? {
        Some(bytes) => decode(&bytes),
        None => Ok(BTreeMap::new()),
    }
}

fn decode(bytes: &[u8]) -> Result<BTreeMap<u64, Known>, String> {
    let (body, crc) = bytes.split_last_chunk::<4>().ok_or("it is too short")?;
    if u32::from_le_bytes(*crc) != crc32fast::hash(body) {
        return Err("its checksum does not match".to_owned());
    }
    let body = body.strip_prefix(MAGIC).ok_or("it begins otherwise")?;
    let peers = pb::KnownPeers::decode(body).map_err(|error| error.to_string())?;
    let mut known = BTreeMap::new();
    for peer in peers.peers {
        let told = peer.known.unwrap_or_default();
        let progress = told
            .progress
            .iter()
            .filter_map(|told| Some((PartitionId(u16::try_from(told.partition).ok()?), Progress::from_wire(told))));
        let disk = wire::disk(&told.disk).map_err(|error| error.to_string())?;
        known.insert(peer.id, Known { disk, process: told.process, partitions: progress.collect() });
    }
    Ok(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(vote: u64, term: u64, end: u64) -> Progress {
        Progress { vote, term, end }
    }

    #[test]
    fn who_holds_less_than_it_had_lacks_something() {
        let had = at(5, 5, 100);
        assert!(!had.lacks(had) && !at(5, 5, 101).lacks(had));
        assert!(at(5, 5, 99).lacks(had) && at(5, 4, 200).lacks(had));
        assert!(at(4, 4, 100).lacks(had) && at(4, 4, 300).lacks(had), "a vote that is forgotten");
        assert!(!at(6, 4, 50).lacks(had), "a later leader may have cut it off");
        let voted = at(5, 4, 100);
        assert!(
            !at(5, 4, 90).lacks(voted) && !at(5, 5, 91).lacks(voted),
            "the leader it voted for may have cut it off"
        );
        assert!(at(4, 4, 100).lacks(voted), "a vote that is forgotten");
        assert!(at(0, 0, 0).lacks(had) && !at(0, 0, 0).lacks(at(0, 0, 0)));
    }

    #[test]
    fn what_is_saved_is_found_again_or_missed() {
        let known: BTreeMap<_, _> = (1..=3)
            .map(|id| {
                let partitions = [(PartitionId(0), at(id, 1, 7)), (PartitionId(9), at(id, 2, 1 << 40))];
                (id, Known { disk: DiskId([id as u8; 16]), process: id << 50, partitions: partitions.into() })
            })
            .collect();
        let bytes = encode(&known);
        assert_eq!(decode(&bytes), Ok(known));
        for at in 0..bytes.len() {
            let mut spoilt = bytes.clone();
            spoilt[at] ^= 1;
            assert!(decode(&spoilt).is_err(), "byte {at}");
            assert!(decode(&bytes[..at]).is_err());
        }
    }
}
