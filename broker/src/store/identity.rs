//! Whose data folder this is, and that only one process has it open.

use std::{
    fmt,
    fs::{self, File, TryLockError},
    path::Path,
};

use trunkline_proto::PartitionCount;

use super::{
    error::OpenError,
    files::{self, damaged, io_error},
    marks,
};

/// Format of everything in the folder. Another one is refused.
pub const FORMAT: u32 = 1;
const FILE: &str = "identity";
const LOCK: &str = "lock";
/// Folder of RocksDB.
pub const DB: &str = "db";

/// Names a data folder: made with it, at random. A broker whose disk was wiped has another one, and is another voter.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct DiskId(pub [u8; 16]);

impl DiskId {
    /// Of a member that was written before there were disk ids.
    pub const UNKNOWN: Self = Self([0; 16]);

    fn random() -> Self {
        Self(rand::random())
    }

    fn parse(hex: &str) -> Option<Self> {
        let hex = Some(hex).filter(|hex| hex.len() == 32 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
        Some(Self(u128::from_str_radix(hex, 16).ok()?.to_be_bytes()))
    }
}

impl fmt::Display for DiskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for DiskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a folder is tied to when it is made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Name of the cluster: one line, not empty.
    pub cluster: String,
    /// Raft id of the broker; never given to another folder.
    pub node: u64,
    /// Fixed when the cluster is made.
    pub partitions: PartitionCount,
}

impl Identity {
    fn describe(&self) -> String {
        format!("broker {} of cluster {:?} with {} partitions", self.node, self.cluster, self.partitions.get())
    }

    fn encode(&self, disk: DiskId) -> String {
        let body = format!(
            "trunkline broker data\nformat {FORMAT}\ncluster {}\nnode {}\npartitions {}\ndisk {disk}\n",
            self.cluster,
            self.node,
            self.partitions.get()
        );
        format!("{body}checksum {:08x}\n", crc32fast::hash(body.as_bytes()))
    }
}

/// A folder held by this process. Dropping it lets go of the lock.
#[derive(Debug)]
pub struct Folder {
    /// As written in it.
    pub identity: Identity,
    /// Its own name.
    pub disk: DiskId,
    /// Nothing was ever acknowledged from it, so that a missing database is no loss.
    pub fresh: bool,
    _lock: File,
}

impl Folder {
    /// Gives the folder another name of its own: it is another voter from now on. Durable when it returns.
    pub fn rename_disk(&mut self, dir: &Path) -> Result<(), OpenError> {
        self.disk = write(dir, &self.identity)?;
        Ok(())
    }
}

/// Opens a broker's folder, making it if there is none or it is empty.
pub fn open(dir: &Path, expected: &Identity) -> Result<Folder, OpenError> {
    if expected.cluster.is_empty() || expected.cluster.chars().any(char::is_control) {
        return Err(OpenError::Identity {
            path: dir.display().to_string(),
            found: "nobody".into(),
            expected: "of a cluster without a usable name".into(),
        });
    }
    fs::create_dir_all(dir).map_err(|error| io_error(dir, &error))?;
    let lock = lock(dir)?;
    let (identity, disk) = match read(dir)? {
        Some((identity, disk)) => (identity, disk),
        None => (expected.clone(), Some(create(dir, expected)?)),
    };
    if identity != *expected {
        return Err(OpenError::Identity {
            path: dir.display().to_string(),
            found: identity.describe(),
            expected: expected.describe(),
        });
    }
    // marks come before the identity and the database after it: a crash in between leaves a folder that starts anew
    let fresh = marks::read(dir, identity.partitions)?.iter().all(marks::Mark::is_empty);
    if !fresh && !dir.join(DB).exists() {
        return Err(damaged(&dir.join(DB), "the log is gone, but its marks say that it held acknowledged data"));
    }
    // a folder from before there were disk ids
    let disk = disk.map_or_else(|| write(dir, &identity), Ok)?;
    Ok(Folder { identity, disk, fresh, _lock: lock })
}

/// Opens the folder of a stopped broker, whoever it belongs to.
pub fn open_existing(dir: &Path) -> Result<Folder, OpenError> {
    if !dir.join(FILE).exists() {
        return Err(damaged(&dir.join(FILE), "there is no such file: this is no broker's data folder"));
    }
    let lock = lock(dir)?;
    let (identity, disk) = read(dir)?.ok_or_else(|| damaged(&dir.join(FILE), "it vanished"))?;
    Ok(Folder { identity, disk: disk.unwrap_or(DiskId::UNKNOWN), fresh: false, _lock: lock })
}

fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join(LOCK);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|error| io_error(&path, &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked { path: dir.display().to_string() }),
        Err(TryLockError::Error(error)) => Err(io_error(&path, &error)),
    }
}

fn write(dir: &Path, identity: &Identity) -> Result<DiskId, OpenError> {
    let (path, disk) = (dir.join(FILE), DiskId::random());
    files::replace(&path, identity.encode(disk).as_bytes(), true).map_err(|error| io_error(&path, &error))?;
    Ok(disk)
}

fn create(dir: &Path, identity: &Identity) -> Result<DiskId, OpenError> {
    let path = dir.join(FILE);
    if dir.join(DB).exists() {
        return Err(damaged(&path, "it is missing, but there is a log: whose it is cannot be told"));
    }
    marks::write(dir, &vec![marks::Mark::default(); usize::from(identity.partitions.get())], true)
        .map_err(|error| io_error(dir, &error))?;
    let disk = write(dir, identity)?;
    // the folder's own name must survive as well
    if let Some(parent) = fs::canonicalize(dir).ok().as_deref().and_then(Path::parent) {
        File::open(parent).and_then(|parent| parent.sync_all()).map_err(|error| io_error(parent, &error))?;
    }
    Ok(disk)
}

fn read(dir: &Path) -> Result<Option<(Identity, Option<DiskId>)>, OpenError> {
    let path = dir.join(FILE);
    let Some(bytes) = files::read(&path)? else { return Ok(None) };
    let text = String::from_utf8(bytes).map_err(|_| damaged(&path, "it is not UTF-8"))?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.ok_or_else(|| damaged(&path, format!("it has no line {name:?}")))
    };
    let number =
        |name: &str| field(name)?.parse::<u64>().map_err(|_| damaged(&path, format!("line {name:?} holds no number")));
    // the format comes first: what follows, the checksum too, may differ in another one
    let format = u32::try_from(number("format")?).unwrap_or(u32::MAX);
    if format != FORMAT {
        return Err(OpenError::Format { path: dir.display().to_string(), found: format, supported: FORMAT });
    }
    let body = text.rfind("checksum ").and_then(|at| text.get(..at)).unwrap_or_default();
    if field("checksum")? != format!("{:08x}", crc32fast::hash(body.as_bytes())) {
        return Err(damaged(&path, "its checksum does not match"));
    }
    let partitions = u16::try_from(number("partitions")?).ok().and_then(PartitionCount::new);
    let disk = match field("disk") {
        Ok(disk) => Some(DiskId::parse(disk).ok_or_else(|| damaged(&path, "its disk id is none"))?),
        Err(_) => None,
    };
    let identity = Identity {
        cluster: field("cluster")?.to_owned(),
        node: number("node")?,
        partitions: partitions.ok_or_else(|| damaged(&path, "partition count is out of range"))?,
    };
    Ok(Some((identity, disk)))
}
