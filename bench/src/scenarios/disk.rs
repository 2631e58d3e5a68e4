//! What the disk takes: the floors of everything that is durable.

use std::{
    fs::File,
    io::Write as _,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use rocksdb::{DB, Options, WriteBatch, WriteOptions};

use super::{Setup, histogram, milliseconds};
use crate::report::{Report, Subject, rows};

/// Bytes of a stored event: 128 of payload and what a record has around it.
const EVENT_BYTES: usize = 160;
/// Events a sync.
const BATCHES: [usize; 4] = [1, 32, 256, 1024];
/// How long each batch size is written, at most: a disk's caches fill, its figures do not settle.
const TIME_MAX: Duration = Duration::from_secs(1);
/// Lone syncs that a median is taken of.
const SYNCS: u32 = 200;

/// Appending with one sync a batch: to a plain file (the floor), and by RocksDB's `WriteBatch` with `sync`.
pub(crate) fn disk(setup: &Setup, report: &mut Report) -> anyhow::Result<()> {
    report.scenario("disk, events of 160 bytes: RocksDB beside append + fdatasync to one file (floor)");
    let time = setup.load().min(TIME_MAX);
    for batch in BATCHES {
        let mut measured = rows::<2>();
        for _ in 0..setup.repeat {
            let folder = setup.folder()?;
            for (subject, (rate, p50)) in [
                (Subject::Trunkline, rocks(folder.path(), batch, time)?),
                (Subject::Floor, file(folder.path(), batch, time)?),
            ] {
                measured[0].push(subject, rate);
                measured[1].push(subject, p50);
            }
        }
        let [rates, syncs] = measured;
        report.add(&format!("events/s, {batch} a sync"), &rates, "");
        report.add(&format!("sync of {batch}, p50 ms"), &syncs, "");
    }
    Ok(())
}

/// Median of a lone append and fdatasync.
pub(crate) fn sync_milliseconds(setup: &Setup) -> anyhow::Result<f64> {
    let folder = setup.folder()?;
    let mut file = File::create(folder.path().join("sync"))?;
    let mut times = histogram()?;
    for _ in 0..SYNCS {
        times.saturating_record(timed(|| append(&mut file, &[7; EVENT_BYTES]))?);
        // as a lone message finds the disk: idle
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(milliseconds(&times, 0.5))
}

fn file(folder: &Path, batch: usize, time: Duration) -> anyhow::Result<(f64, f64)> {
    let mut file = File::create(folder.join("floor"))?;
    let bytes = noise(batch * EVENT_BYTES);
    repeat(batch, time, |_| append(&mut file, &bytes))
}

fn append(file: &mut File, bytes: &[u8]) -> anyhow::Result<()> {
    file.write_all(bytes)?;
    Ok(file.sync_data()?)
}

/// Keys ascend, as in a log; one value an event.
fn rocks(folder: &Path, batch: usize, time: Duration) -> anyhow::Result<(f64, f64)> {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_use_direct_io_for_flush_and_compaction(true);
    let db = DB::open(&options, folder.join("rocks")).context("RocksDB")?;
    let value = noise(EVENT_BYTES);
    repeat(batch, time, |n| {
        let mut writes = WriteBatch::with_capacity_bytes(batch * (EVENT_BYTES + 16));
        (0..batch as u64).for_each(|event| writes.put((n * batch as u64 + event).to_be_bytes(), &value));
        let mut write = WriteOptions::default();
        write.set_sync(true);
        Ok(db.write_opt(writes, &write)?)
    })
}

/// Events a second, and a batch's median in milliseconds.
fn repeat(
    batch: usize,
    time: Duration,
    mut write: impl FnMut(u64) -> anyhow::Result<()>,
) -> anyhow::Result<(f64, f64)> {
    let (mut times, started, mut n) = (histogram()?, Instant::now(), 0);
    while started.elapsed() < time {
        times.saturating_record(timed(|| write(n))?);
        n += 1;
    }
    Ok(((n as usize * batch) as f64 / started.elapsed().as_secs_f64(), milliseconds(&times, 0.5)))
}

fn timed(work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<u64> {
    let started = Instant::now();
    work()?;
    Ok(started.elapsed().as_nanos() as u64)
}

/// Bytes that do not compress.
pub(crate) fn noise(bytes: usize) -> Vec<u8> {
    let mut random = crate::fill::Random::new(bytes as u64);
    let mut noise: Vec<u8> = (0..bytes.div_ceil(8)).flat_map(|_| random.next().to_le_bytes()).collect();
    noise.truncate(bytes);
    noise
}
