//! `verify DIR`: a stopped broker's folder, read from end to end.

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use trunkline_broker::store::verify::{PartitionReport, Report, verify};

use crate::{
    args::VerifyArgs,
    exit::Failure,
    render::{json::digest, out::Out, table},
};

pub(crate) fn run(args: VerifyArgs) -> Result<(), Failure> {
    // indicatif draws on standard error, and nothing at all unless that is a terminal
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("partition {msg} {bar:40} {pos}/{len} entries, {eta} left") {
        bar.set_style(style);
    }
    let report = verify(&args.dir, |progress| {
        bar.set_message(progress.partition.to_string());
        bar.set_length(progress.last.0);
        bar.set_position(progress.index.0);
    });
    bar.finish_and_clear();
    let report = report.map_err(|error| Failure::Other(anyhow::Error::new(error)))?;
    let mut out = Out::new();
    if args.json {
        report.partitions.iter().try_for_each(|partition| out.json(&object(partition)))?;
        report.damage.iter().try_for_each(|damage| out.json(&json!({ "damage": damage })))?;
    } else {
        print(&mut out, &report)?;
        report.damage.iter().try_for_each(|damage| out.line(damage))?;
    }
    out.flush()?;
    if report.is_sound() { Ok(()) } else { Err(Failure::Other(anyhow::anyhow!("the log is damaged"))) }
}

fn range(report: &PartitionReport) -> (u64, u64) {
    report.range.map_or((0, 0), |(first, last)| (first.0, last.0))
}

fn object(report: &PartitionReport) -> serde_json::Value {
    let (first, last) = range(report);
    json!({
        "partition": report.partition.0, "first": first, "last": last, "records": report.records, "refused": report.refused,
        "bytes": report.bytes, "digest": digest(report.digest), "state_digest": digest(report.state_digest),
        "snapshots": report.snapshots, "damage": report.damage,
    })
}

fn print(out: &mut Out, report: &Report) -> Result<(), Failure> {
    let mut table =
        table::table(&["partition", "entries", "records", "refused", "bytes", "snapshots", "state digest", "damage"]);
    for partition in &report.partitions {
        let (first, last) = range(partition);
        let cells = [
            partition.partition.to_string(),
            format!("{first} to {last}"),
            partition.records.to_string(),
            partition.refused.to_string(),
            partition.bytes.to_string(),
            partition.snapshots.to_string(),
            digest(partition.state_digest),
            partition.damage.clone().unwrap_or_else(|| "none".to_owned()),
        ];
        table::row(&mut table, cells);
    }
    out.line(table)
}
