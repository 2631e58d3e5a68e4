//! Logs that were recorded, and what apply made of each entry: the same for ever, or replicas of two versions part, and a replay makes
//! another state than the one that was acknowledged from.
//!
//! `log.bin` is logs of `u32 LE entries`, each of `u32 LE length` and its bytes; `digests.txt` has a line an entry: log, index, the rolling
//! digest (entries and verdicts) and the digest of the state after it. With TRUNKLINE_RECORD=digests in the environment the second is written
//! anew, with TRUNKLINE_RECORD=log both.

use std::{fmt::Write as _, path::PathBuf};

use bytes::Bytes;
use proptest::{prelude::*, strategy::ValueTree as _, test_runner::TestRunner};
use trunkline_proto::{Batch, Entry, LogIndex, PartitionCount, PartitionId};

use super::{
    super::Partition,
    properties::{Model, Reached, entry, written},
};

const ENTRIES: usize = 80;

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/core/tests/recorded").join(name)
}

fn fresh() -> Partition {
    Partition::new(PartitionId(0), PartitionCount::new(2).unwrap())
}

fn parse(mut bytes: &[u8]) -> Vec<Vec<Bytes>> {
    fn number(bytes: &mut &[u8]) -> usize {
        let (number, rest) = bytes.split_first_chunk::<4>().unwrap();
        *bytes = rest;
        u32::from_le_bytes(*number) as usize
    }
    let mut logs = Vec::new();
    while !bytes.is_empty() {
        let entries = (0..number(&mut bytes)).map(|_| {
            let length = number(&mut bytes);
            let (entry, rest) = bytes.split_at(length);
            bytes = rest;
            Bytes::copy_from_slice(entry)
        });
        logs.push(entries.collect());
    }
    logs
}

/// Random logs, as few as reach everything.
fn record() -> Vec<Vec<Bytes>> {
    let mut runner = TestRunner::deterministic();
    let (mut logs, mut reached) = (Vec::new(), Reached::default());
    for _ in 0..200 {
        let attempts = prop::collection::vec(entry(), ENTRIES).new_tree(&mut runner).unwrap().current();
        let (mut state, mut model, mut time) = (fresh(), Model::default(), 1_000_000_000i64);
        let (mut log, before) = (Vec::new(), reached.clone());
        for (index, (attempts, passed)) in (1..).zip(&attempts) {
            time += passed;
            let bytes = written(&state, &model, attempts, time);
            let entry = Entry::parse(&bytes).unwrap();
            let applied = state.apply(LogIndex(index), &entry);
            model.note(LogIndex(index), &entry, &applied, &state);
            reached.note(&entry, &applied);
            log.push(bytes);
        }
        if reached != before {
            logs.push(log);
        }
    }
    logs
}

fn encode(logs: &[Vec<Bytes>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for log in logs {
        bytes.extend((log.len() as u32).to_le_bytes());
        for entry in log {
            bytes.extend((entry.len() as u32).to_le_bytes());
            bytes.extend_from_slice(entry);
        }
    }
    bytes
}

/// What apply makes of each entry, and of which kinds of records it is.
fn replay(logs: &[Vec<Bytes>]) -> (Vec<(String, String)>, Reached) {
    let (mut lines, mut reached) = (Vec::new(), Reached::default());
    for (n, log) in logs.iter().enumerate() {
        let mut state = fresh();
        for (index, bytes) in (1..).zip(log) {
            let entry = Entry::parse(bytes).unwrap();
            let applied = state.apply(LogIndex(index), &entry);
            reached.note(&entry, &applied);
            let kinds: Vec<_> = entry.batches.iter().flat_map(Batch::iter).map(|record| record.unwrap().kind).collect();
            let line = format!("{n} {index} {:016x} {:016x}", state.digest(), state.state_digest());
            lines.push((line, format!("{kinds:?}")));
        }
    }
    (lines, reached)
}

#[test]
fn what_was_applied_once_is_applied_so_for_ever() {
    let wish = std::env::var("TRUNKLINE_RECORD").unwrap_or_default();
    let logs = if wish == "log" { record() } else { parse(&std::fs::read(file("log.bin")).unwrap()) };
    let (lines, reached) = replay(&logs);
    if wish == "log" {
        std::fs::write(file("log.bin"), encode(&logs)).unwrap();
    }
    if ["log", "digests"].contains(&wish.as_str()) {
        let mut text = String::new();
        lines.iter().for_each(|(line, _)| writeln!(text, "{line}").unwrap());
        return std::fs::write(file("digests.txt"), text).unwrap();
    }
    let digests = std::fs::read_to_string(file("digests.txt")).unwrap();
    for (recorded, (line, kinds)) in digests.lines().zip(&lines) {
        assert!(
            recorded == line,
            "apply changed: of a recorded entry with {kinds} it makes\n    {line}\nand made\n    {recorded}\n\
             Logs that exist are replayed, and replicas of the version before apply the same entries. Raise APPLY_VERSION \
             (core/partition.rs) and do what is new only from there on. If nothing that writes such logs has been released, or only the \
             encoding of the state changed and older ones are still read: record anew, with TRUNKLINE_RECORD=digests in the environment \
             of this test"
        );
    }
    assert_eq!(digests.lines().count(), lines.len());
    // a new kind of record or refusal: with TRUNKLINE_RECORD=log
    reached.check();
}
