//! The small files beside RocksDB: replaced as a whole, durable before the call returns.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use super::error::OpenError;

/// Replaces `path` by `bytes`: after a crash it holds either the old bytes or the new ones. With `sync` off (negative
/// control of the power-cut test only) neither is certain.
pub fn replace(path: &Path, bytes: &[u8], sync: bool) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    if sync {
        file.sync_all()?;
    }
    fs::rename(&temporary, path)?;
    match path.parent() {
        Some(folder) if sync => File::open(folder)?.sync_all(),
        _ => Ok(()),
    }
}

/// Reads a file; `None` if there is none.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>, OpenError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error(path, &error)),
    }
}

/// An IO error with its path.
pub fn io_error(path: &Path, error: &io::Error) -> OpenError {
    OpenError::Io { path: path.display().to_string(), reason: error.to_string() }
}

/// Damage of a file.
pub fn damaged(path: &Path, reason: impl Into<String>) -> OpenError {
    OpenError::Damaged { place: path.display().to_string(), reason: reason.into() }
}
