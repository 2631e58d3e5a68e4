//! What the runs print: machine, commit and settings first, then a row per figure.

use std::process::Command;

use comfy_table::{ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};
use serde_json::json;

use crate::scenarios::Setup;

/// One figure: the median of its runs, and their spread.
pub(crate) struct Figure {
    /// What was measured.
    pub(crate) scenario: String,
    /// Name and unit.
    pub(crate) name: &'static str,
    /// One value per run.
    pub(crate) runs: Vec<f64>,
    /// What it should be (reference measurements), if there is a target.
    pub(crate) target: &'static str,
}

/// Collects figures and prints them.
pub(crate) struct Report {
    json: bool,
    figures: Vec<Figure>,
    context: serde_json::Value,
}

impl Report {
    pub(crate) fn new(json: bool, setup: &Setup) -> Self {
        let context = json!({
            "machine": machine(),
            "commit": commit(),
            "settings": {
                "fsync": "on", "partitions": 1, "processes": "dev, unless a row says otherwise",
                "payload_bytes": setup.payload, "connections": setup.connections,
                "seconds": setup.seconds, "repeat": setup.repeat,
            },
        });
        if json {
            println!("{context}");
        } else {
            println!("machine   {}", context["machine"].as_str().unwrap_or_default());
            println!("commit    {}", context["commit"].as_str().unwrap_or_default());
            println!("settings  {}\n", context["settings"]);
        }
        Self { json, figures: Vec::new(), context }
    }

    /// Takes a figure; on a terminal it is shown at once, so that long runs show progress.
    pub(crate) fn add(&mut self, scenario: &str, name: &'static str, runs: Vec<f64>, target: &'static str) {
        let figure = Figure { scenario: scenario.to_owned(), name, runs, target };
        if self.json {
            let row = json!({"scenario": figure.scenario, "figure": figure.name, "median": median(&figure.runs), "runs": figure.runs});
            println!("{row}");
        } else {
            eprintln!("  {:<44} {:<34} {:>12}", figure.scenario, figure.name, number(median(&figure.runs)));
        }
        self.figures.push(figure);
    }

    /// The table.
    pub(crate) fn finish(self) {
        if self.json {
            return;
        }
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
        table.set_header(["scenario", "figure", "median", "lowest – highest", "target"]);
        for figure in &self.figures {
            let low = figure.runs.iter().copied().fold(f64::INFINITY, f64::min);
            let high = figure.runs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            table.add_row([
                figure.scenario.clone(),
                figure.name.to_owned(),
                number(median(&figure.runs)),
                format!("{} – {}", number(low), number(high)),
                figure.target.to_owned(),
            ]);
        }
        println!("{table}");
        println!("commit {}", self.context["commit"].as_str().unwrap_or_default());
    }
}

/// The middle value.
pub(crate) fn median(runs: &[f64]) -> f64 {
    let mut sorted = runs.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn number(value: f64) -> String {
    match value.abs() {
        1e4.. => format!("{value:.0}"),
        100.0.. => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
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
    format!("{model}, {cores} cores, {memory} GiB, Linux {}; load generator on the same machine", kernel.trim())
}

fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let dirty = git(&["status", "--porcelain"]).is_some_and(|status| !status.is_empty());
    let commit = git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".to_owned());
    format!("{commit}{}", if dirty { " with uncommitted changes" } else { "" })
}
