//! The cluster by seed. `TRUNKLINE_SIM_SEED=7` runs that seed alone and tells what happened; `TRUNKLINE_SIM_SEEDS=5000` runs so many instead
//! of the usual ones.

#![allow(clippy::print_stdout)] // a seed run by hand tells what it did

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

use trunkline_sim::{Invariant, Report, Rules, run};

/// Seeds of every test run.
const SEEDS: u64 = 200;
/// What must have happened over [`SEEDS`]: a world where nothing goes wrong proves nothing.
const MUST_HAPPEN: [&str; 21] = [
    "assignments",
    "clocks set",
    "connection_closed",
    "crashes",
    "cuts",
    "edges behind the trim",
    "edges lost",
    "elections won",
    "incarnations lost",
    "installs",
    "pauses",
    "received",
    "refused: forward gap",
    "refused: gone",
    "refused: out of sequence",
    "refused: repeated",
    "refused: stale epoch",
    "resends",
    "slow consumers",
    "snapshots",
    "trims",
];
/// Seeds among which one must find a rule that is turned off.
const SEEDS_OF_A_CONTROL: u64 = 200;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

/// Names the seed when the world itself panics (an overflow, an index), which no oracle sees.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("again: TRUNKLINE_SIM_SEED={} cargo test --workspace --locked --test simulation", self.0);
        }
    }
}

fn run_or_panic(seed: u64) -> Report {
    let _named = Named(seed);
    run(seed, Rules::default()).unwrap_or_else(|failure| panic!("\n{failure}"))
}

#[test]
fn every_promise_holds() {
    if let Some(seed) = number("TRUNKLINE_SIM_SEED") {
        let report = run_or_panic(seed);
        println!("{report:#?}");
        return;
    }
    let (seeds, next) = (number("TRUNKLINE_SIM_SEEDS").unwrap_or(SEEDS), AtomicU64::new(0));
    let work = || {
        let mut counts: BTreeMap<&'static str, u64> = BTreeMap::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                return counts;
            }
            let report = run_or_panic(seed);
            report.counts.into_iter().for_each(|(what, count)| *counts.entry(what).or_default() += count);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(4);
    let mut counts: BTreeMap<&'static str, u64> = BTreeMap::new();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            let some = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            some.into_iter().for_each(|(what, count)| *counts.entry(what).or_default() += count);
        }
    });
    println!("{counts:#?}");
    for what in MUST_HAPPEN.iter().filter(|_| seeds >= SEEDS) {
        assert!(counts.get(what).is_some_and(|count| *count > 0), "no {what} in {seeds} seeds");
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 0..3 {
        assert_eq!(run_or_panic(seed), run_or_panic(seed));
    }
}

/// Some seed must fail, and none for another reason than this.
fn must_break(rules: Rules, invariant: Invariant) {
    for seed in 0..SEEDS_OF_A_CONTROL {
        if let Err(failure) = run(seed, rules) {
            assert_eq!(failure.violation.invariant, invariant, "{failure}");
            println!("{rules:?}: seed {seed}");
            return;
        }
    }
    panic!("{rules:?} breaks nothing: the simulation would not see it");
}

#[test]
fn acknowledging_before_the_sync_is_found() {
    must_break(Rules { sync_before_ack: false, ..Rules::default() }, Invariant::Durable);
}

#[test]
fn a_lost_edge_that_is_not_fenced_is_found() {
    must_break(Rules { fencing: false, ..Rules::default() }, Invariant::Silent);
}

#[test]
fn a_batch_that_applies_twice_is_found() {
    must_break(Rules { dedup: false, ..Rules::default() }, Invariant::Prefix);
}

#[test]
fn a_commit_of_an_old_epoch_that_applies_is_found() {
    must_break(Rules { epochs: false, ..Rules::default() }, Invariant::Once);
}

#[test]
fn a_forward_that_applies_twice_is_found() {
    must_break(Rules { watermark: false, ..Rules::default() }, Invariant::Once);
}

#[test]
fn a_delivery_that_is_written_twice_is_found() {
    must_break(Rules { seen: false, ..Rules::default() }, Invariant::Delivered);
}

#[test]
fn an_edge_behind_a_trim_that_is_not_told_is_found() {
    must_break(Rules { told: false, ..Rules::default() }, Invariant::Delivered);
}
