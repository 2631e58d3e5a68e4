//! `cluster status`, `add`, `remove`, `transfer`: brokers, partitions, edges.

use std::{convert::Infallible, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};
use trunkline_proto::{Offset, v1::DescribeResponse};

use super::Remote;
use crate::{
    args::{ClusterArgs, ClusterVerb},
    exit::Failure,
    render::{cluster, json, out::Out},
};

/// How often a new member's progress is looked at.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

pub(crate) async fn run(args: ClusterArgs) -> Result<(), Failure> {
    match args.verb {
        ClusterVerb::Init(args) => super::init::run(&args),
        ClusterVerb::Recover(args) => super::recover::run(&args),
        ClusterVerb::Status { remote } => status(&Remote::new(&remote)?).await,
        ClusterVerb::Add { id, link, patience, remote } => {
            let remote = Remote::new(&remote)?;
            let added = tokio::select! {
                added = remote.client.add_member(id, link, patience.get()) => added,
                never = progress(&remote, id) => match never {},
            };
            remote.check(added)?;
            done(&remote, format_args!("broker {id} is a member and votes in every partition"))?;
            remark(&remote).await;
            Ok(())
        }
        ClusterVerb::Remove { id, remote } => {
            let remote = Remote::new(&remote)?;
            remote.check(remote.client.remove_member(id).await)?;
            done(&remote, format_args!("broker {id} is no member any more"))?;
            remark(&remote).await;
            Ok(())
        }
        ClusterVerb::Transfer { partition, to, remote } => {
            let remote = Remote::new(&remote)?;
            remote.check(remote.client.transfer_leader(partition, to).await)?;
            done(&remote, format_args!("broker {to} leads partition {partition}"))
        }
    }
}

/// Says on standard error what the number of voters is worth now, if it is an odd one out.
async fn remark(remote: &Remote) {
    // it was done: what cannot be asked is no failure of that
    if let Ok(description) = remote.client.describe().await
        && let Some(remark) = cluster::even(&description)
    {
        eprintln!("note: {remark}");
    }
}

/// Shows how much of the log a new member has, until it is dropped. On standard error, and only if that is a terminal.
async fn progress(remote: &Remote, id: u64) -> Infallible {
    let bar = ProgressBar::no_length();
    if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {human_pos}/{human_len} entries, {eta} left") {
        bar.set_style(style);
    }
    let _cleared = Cleared(&bar);
    loop {
        tokio::time::sleep(PROGRESS_EVERY).await;
        if bar.is_hidden() {
            continue;
        }
        let Ok(description) = remote.client.describe().await else { continue };
        let (has, of) = caught_up(&description, id);
        bar.set_message(format!("broker {id}"));
        bar.set_length(of);
        bar.set_position(has);
    }
}

/// Takes the bar away, however it ends.
struct Cleared<'a>(&'a ProgressBar);

impl Drop for Cleared<'_> {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Entries that a member has, and that there are, over all partitions.
fn caught_up(description: &DescribeResponse, id: u64) -> (u64, u64) {
    let mut sums = (0, 0);
    for partition in &description.partitions {
        let index = |offset: u64| Offset(offset).index().0;
        let of = index(partition.applied).saturating_sub(index(partition.earliest));
        let replica = partition.replicas.iter().find(|replica| replica.broker == id && replica.reachable);
        let lag = replica.map_or(of, |replica| replica.lag.min(of));
        sums = (sums.0 + of - lag, sums.1 + of);
    }
    sums
}

fn done(remote: &Remote, what: std::fmt::Arguments<'_>) -> Result<(), Failure> {
    let mut out = Out::new();
    if remote.json {
        out.json(&serde_json::json!({ "done": true }))?;
    } else {
        out.line(what)?;
    }
    out.flush()
}

async fn status(remote: &Remote) -> Result<(), Failure> {
    let description = remote.check(remote.client.describe().await)?;
    let mut out = Out::new();
    if remote.json {
        out.json(&json::cluster(&description))?;
    } else {
        cluster::print(&mut out, &description)?;
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use trunkline_proto::v1::{Partition, Replica};

    use super::*;

    #[test]
    fn progress_counts_what_is_there_and_no_replica_has_nothing() {
        let replica = |broker, lag| Replica { broker, lag, reachable: true, ..Default::default() };
        let partition = |replicas| Partition { applied: 100 << 16, earliest: 40 << 16, replicas, ..Default::default() };
        let partitions = vec![
            partition(vec![replica(1, 0), replica(4, 10)]),
            partition(vec![replica(1, 0)]),
            // more than is retained: it is sent a snapshot first
            partition(vec![replica(4, 100)]),
        ];
        let description = DescribeResponse { partitions, ..Default::default() };
        assert_eq!(caught_up(&description, 4), (50, 180));
    }
}
