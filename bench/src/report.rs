//! What the runs print: machine, commit and settings first, then a row per figure, beside what was measured with it in turns.
//! 100 columns wide.

use std::{process::Command, time::Instant};

use serde_json::{Value, json};

use crate::scenarios::Setup;

/// What a figure is measured of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Subject {
    /// The gateway.
    Trunkline,
    /// The least that could do it (floor.rs, disk.rs).
    Floor,
    /// A server of the same kind, where `--peer` names one.
    Peer,
}

/// One figure: a value per run and subject.
#[derive(Clone, Default, Debug)]
pub(crate) struct Runs {
    ours: Vec<f64>,
    floor: Vec<f64>,
    peer: Vec<f64>,
}

impl Runs {
    pub(crate) fn of(ours: Vec<f64>) -> Self {
        Self { ours, ..Self::default() }
    }

    pub(crate) fn push(&mut self, subject: Subject, value: f64) {
        match subject {
            Subject::Trunkline => self.ours.push(value),
            Subject::Floor => self.floor.push(value),
            Subject::Peer => self.peer.push(value),
        }
    }

    /// The median of the gateway's.
    pub(crate) fn median(&self) -> f64 {
        median(&self.ours).unwrap_or(f64::NAN)
    }
}

/// `N` figures that come out of one run.
pub(crate) fn rows<const N: usize>() -> [Runs; N] {
    [const { Runs { ours: Vec::new(), floor: Vec::new(), peer: Vec::new() } }; N]
}

/// Prints figures as they come.
pub(crate) struct Report {
    json: bool,
    scenario: String,
    started: Instant,
}

impl Report {
    pub(crate) fn new(json: bool, setup: &Setup) -> Self {
        let commit = commit();
        let settings = json!({
            "fsync": "on", "partitions": 1, "pinned": "no",
            "payload_bytes": setup.payload, "connections": setup.connections,
            "seconds": setup.seconds, "repeat": setup.repeat,
        });
        if json {
            println!(
                "{}",
                json!({"machine": machine(), "commit": commit, "settings": settings, "peer": setup.peer.join(" ")})
            );
        } else {
            println!("machine   {}", machine());
            println!("commit    {commit}");
            println!("settings  {}", plain(&settings));
            if !setup.peer.is_empty() {
                println!("peer      {}", setup.peer.join(" "));
            }
            println!("          load generator on the same machine; median of the runs, ± half their range");
            println!("          x: this / floor or peer, measured in turns with it (docs/performance.md)");
        }
        Self { json, scenario: String::new(), started: Instant::now() }
    }

    /// Begins a scenario: the rows that follow are its.
    pub(crate) fn scenario(&mut self, name: impl Into<String>) {
        self.scenario = name.into();
        if !self.json {
            println!("\n{}", self.scenario);
            println!(
                "  {:<34} {:>8} {:>4} {:>8} {:>6} {:>8} {:>6}  target",
                "figure", "median", "±", "floor", "x", "peer", "x"
            );
        }
    }

    /// Several rows of one run.
    pub(crate) fn add_all<const N: usize>(&mut self, names: [&str; N], rows: [Runs; N], targets: [&str; N]) {
        for ((name, runs), target) in names.into_iter().zip(rows).zip(targets) {
            self.add(name, &runs, target);
        }
    }

    /// A row: a figure's name with its unit, and what it should be, if there is a target.
    pub(crate) fn add(&self, name: &str, runs: &Runs, target: &str) {
        let middle = runs.median();
        let ratio = |other: &[f64]| median(other).filter(|other| *other != 0.0).map(|other| middle / other);
        if self.json {
            println!(
                "{}",
                json!({
                    "scenario": self.scenario, "figure": name, "target": target, "median": middle, "runs": runs.ours,
                    "floor": median(&runs.floor), "floor_runs": runs.floor, "per_floor": ratio(&runs.floor),
                    "peer": median(&runs.peer), "peer_runs": runs.peer, "per_peer": ratio(&runs.peer),
                })
            );
            return;
        }
        let other = |value: Option<f64>| value.map_or_else(String::new, number);
        let times = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.2}"));
        let row = format!(
            "  {:<34} {:>8} {:>4} {:>8} {:>6} {:>8} {:>6}  {target}",
            name,
            number(middle),
            spread(&runs.ours),
            other(median(&runs.floor)),
            times(ratio(&runs.floor)),
            other(median(&runs.peer)),
            times(ratio(&runs.peer)),
        );
        println!("{}", row.trim_end());
    }

    /// The last line.
    pub(crate) fn finish(self) {
        if !self.json {
            println!("\ntook {} s", self.started.elapsed().as_secs());
        }
    }
}

/// The middle value.
pub(crate) fn median(runs: &[f64]) -> Option<f64> {
    let mut sorted = runs.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

/// Half the range of the runs, in percent of the median.
fn spread(runs: &[f64]) -> String {
    let low = runs.iter().copied().fold(f64::INFINITY, f64::min);
    let high = runs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    match median(runs) {
        Some(middle) if runs.len() > 1 && middle != 0.0 => format!("{:.0}%", (high - low) / 2.0 / middle.abs() * 100.0),
        _ => String::new(),
    }
}

fn number(value: f64) -> String {
    match value.abs() {
        1e4.. => format!("{value:.0}"),
        100.0.. => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

/// `name value` pairs.
fn plain(settings: &Value) -> String {
    let pairs = settings.as_object().into_iter().flatten().map(|(name, value)| match value {
        Value::String(text) => format!("{name} {text}"),
        value => format!("{name} {value}"),
    });
    pairs.collect::<Vec<_>>().join(", ")
}

fn machine() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("unknown cpu", |rest| rest.trim_start_matches([' ', '\t', ':']));
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory =
        memory.lines().next().and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).unwrap_or(0) >> 20;
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{model}, {cores} cores, {memory} GiB, Linux {}", kernel.trim())
}

/// Of the sources this program was built from, wherever it is run.
fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(["-C", env!("CARGO_MANIFEST_DIR")]).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let dirty = git(&["status", "--porcelain"]).is_some_and(|status| !status.is_empty());
    let commit = git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".to_owned());
    format!("{commit}{}", if dirty { " with uncommitted changes" } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_spreads() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(spread(&[90.0, 100.0, 110.0]), "10%");
        assert_eq!(spread(&[1.0]), "");
    }
}
