//! Small files that are read again when they have changed: keys, tokens, certificates.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// A file that is found changed at so many looks in a row is read all the same: somebody writes it all the time.
const RESTLESS_MAX: u32 = 5;

/// Largest of them.
pub const FILE_BYTES_MAX: u64 = 1 << 20;

/// Reads one of them. Not what is no regular file: reading it might never end.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("is no regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX { Err(io::Error::other("larger than 1 MiB")) } else { Ok(bytes) }
}

/// What changes with a file's content, with its rights, or when another file takes its place: device, inode, length, and when content and
/// inode were last changed. None: it cannot be asked.
type Stamp = Option<[i128; 5]>;

fn stamp(path: &Path) -> Stamp {
    let metadata = fs::metadata(path).ok()?;
    let nanos = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    let (modified, changed) =
        (nanos(metadata.mtime(), metadata.mtime_nsec()), nanos(metadata.ctime(), metadata.ctime_nsec()));
    Some([metadata.dev().into(), metadata.ino().into(), metadata.len().into(), modified, changed])
}

/// Notices when some of several files have changed and are at rest again.
#[derive(Debug)]
pub struct Watched {
    paths: Vec<PathBuf>,
    /// When last looked at.
    seen: Vec<Stamp>,
    /// When last read.
    read: Vec<Stamp>,
    /// Looks in a row that found a change.
    restless: u32,
}

impl Watched {
    /// To be made before the files are read for the first time: a change in between is noticed.
    pub fn new(paths: Vec<PathBuf>) -> Self {
        let seen: Vec<Stamp> = paths.iter().map(|path| stamp(path)).collect();
        Self { paths, read: seen.clone(), seen, restless: 0 }
    }

    /// Whether there is any file.
    pub fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }

    /// Looks at them: true if they are to be read now, once for each change. Call it every few seconds: while a file was changed since the last
    /// call it is still being written, and half of it must not count.
    pub fn have_changed(&mut self) -> bool {
        let stamps = self.paths.iter().map(|path| stamp(path)).collect();
        self.observe(stamps)
    }

    fn observe(&mut self, stamps: Vec<Stamp>) -> bool {
        self.restless = if stamps == self.seen { 0 } else { self.restless + 1 };
        self.seen = stamps;
        if self.seen == self.read || (1..RESTLESS_MAX).contains(&self.restless) {
            return false;
        }
        self.restless = 0;
        self.read.clone_from(&self.seen);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_read_once_when_it_is_at_rest() {
        let mut watched =
            Watched { paths: Vec::new(), seen: vec![Some([0; 5])], read: vec![Some([0; 5])], restless: 0 };
        let mut observe = |stamp: Option<i128>| watched.observe(vec![stamp.map(|at| [at; 5])]);
        assert!(!observe(Some(0)));
        assert!(!observe(Some(1)), "it may be half written");
        assert!(!observe(Some(2)), "still");
        assert!(observe(Some(2)));
        assert!(!observe(Some(2)));
        assert!(!observe(None));
        assert!(observe(None), "gone is a change: somebody is told once");
        assert!(!observe(None));
        assert!(!observe(Some(2)));
        assert!(observe(Some(2)), "and so is its coming back");
        assert!(!observe(Some(3)));
        assert!(!observe(Some(2)), "as it was read: nothing to do");
        assert!(!observe(Some(2)));
        let read = (10..30).filter(|at| observe(Some(*at))).count();
        assert_eq!(read, 4, "one that is never at rest is read at every fifth look");
    }

    #[test]
    fn files_are_told_apart_by_more_than_their_length() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        fs::write(&path, "one").unwrap();
        let mut watched = Watched::new(vec![path.clone()]);
        assert!(!watched.have_changed());
        let other = folder.path().join("other");
        fs::write(&other, "two").unwrap();
        fs::rename(&other, &path).unwrap();
        assert!(!watched.have_changed());
        assert!(watched.have_changed());
        assert_eq!(read(&path).unwrap(), b"two");
        assert!(read(folder.path()).unwrap_err().to_string().contains("no regular file"));
        fs::write(&path, vec![b'x'; FILE_BYTES_MAX as usize + 1]).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("1 MiB"));
    }
}
