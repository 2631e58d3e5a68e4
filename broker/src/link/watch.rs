//! The watch over edges: for every partition this broker leads, the silent are declared lost (`grace.rs` judges) and what they left
//! open is closed, in chunks, until nothing remains (DESIGN.md 6).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ::metrics::{counter, gauge};
use tokio::time::Instant;
use trunkline_proto::{
    Batch, CloseCode, ConnectionId, LogIndex, Record, RecordKind, Source,
    v1::{self, CloseCause},
};

use super::{
    Link,
    grace::{Grace, Incarnation},
    sessions::ticker,
    view,
};
use crate::{
    append::AppendError,
    core::Verdict,
    metrics::link as names,
    node::{PartitionHandle, Role},
    tail::{self, TailRead},
};

/// Connections closed by one batch.
const CHUNK: usize = 1000;
/// Silence is judged so often, or four times a grace if that is more often.
const PERIOD_MAX: Duration = Duration::from_millis(250);
/// Bytes of the tail that are counted for a lag; beyond them it is estimated.
const LAG_BYTES: usize = 256 << 10;
/// Lags are published so often.
const LAG_PERIOD: Duration = Duration::from_secs(1);

/// Watches every partition until shutdown.
pub async fn watch(link: Arc<Link>) {
    let watches = tokio_util::task::TaskTracker::new();
    for id in link.node.partition_count().iter() {
        if let Some(partition) = link.node.partition(id) {
            watches.spawn(watch_partition(link.clone(), partition.clone()));
        }
    }
    watches.spawn(publish_lags(link));
    watches.close();
    watches.wait().await;
}

async fn watch_partition(link: Arc<Link>, partition: PartitionHandle) {
    let mut role = partition.role.clone();
    loop {
        // a broker that has just begun to lead gives every edge in the state a fresh grace
        let leads = role.wait_for(|role| matches!(role, Role::Leader { .. }));
        tokio::select! {
            leads = leads => if leads.is_err() { return },
            () = link.shutdown.cancelled() => return,
        }
        lead(&link, &partition).await;
        if link.shutdown.is_cancelled() || matches!(*partition.role.borrow(), Role::Closed) {
            return;
        }
    }
}

/// Watches one partition for as long as this broker leads it.
async fn lead(link: &Link, partition: &PartitionHandle) {
    let period = PERIOD_MAX.min(link.settings.grace / 4);
    let mut grace = Grace::new(Instant::now(), link.settings.grace, period);
    let mut ticks = ticker(period);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = link.shutdown.cancelled() => return,
        }
        if !matches!(*partition.role.borrow(), Role::Leader { .. }) {
            return;
        }
        let edges = view::live_edges(&partition.state.read());
        let heard = edges.into_iter().map(|edge| {
            let heard = link.sessions.heard(&edge);
            (edge, heard)
        });
        let lost = grace.handle_tick(Instant::now(), heard.collect());
        // appending takes its time under load, which is no silence of anybody's: the next tick judges that as late
        for edge in lost {
            if let Err(error) = declare_lost(link, partition, &edge).await {
                tracing::warn!(partition = partition.id.0, edge = %edge.edge, %error, "cannot declare an edge lost yet");
            }
        }
        if let Err(error) = close_left(link, partition).await {
            tracing::warn!(partition = partition.id.0, %error, "cannot close what lost edges left yet");
        }
    }
}

async fn declare_lost(link: &Link, partition: &PartitionHandle, lost: &Incarnation) -> Result<(), AppendError> {
    let body = v1::EdgeLost { edge: lost.edge.clone(), incarnation: lost.number };
    let record = Record::new(RecordKind::EdgeLost, ConnectionId::NONE, "", &body);
    partition.append.append(Batch::new(Source::Leader, &[record])).await?;
    tracing::warn!(partition = partition.id.0, edge = %lost.edge, incarnation = lost.number, "edge lost");
    counter!(names::EDGES_LOST_TOTAL).increment(1);
    link.sessions.lost(partition.id, lost);
    Ok(())
}

/// Closes what lost and replaced incarnations left open.
async fn close_left(link: &Link, partition: &PartitionHandle) -> Result<(), AppendError> {
    loop {
        let left = partition.state.read().obligations(CHUNK);
        if left.is_empty() || link.shutdown.is_cancelled() {
            return Ok(());
        }
        let body = v1::ConnectionClosed {
            code: u32::from(CloseCode::ABNORMAL.0),
            reason: String::new(),
            cause: CloseCause::EdgeLost.into(),
        };
        let records: Vec<Record> = left
            .iter()
            .map(|(connection, api)| Record::new(RecordKind::ConnectionClosed, *connection, api, &body))
            .collect();
        let appended = partition.append.append(Batch::new(Source::Leader, &records)).await?;
        // those that were closed meanwhile are refused; if all are, the next tick looks again
        if (0..appended.outcome().count).all(|n| appended.verdict(n) != Verdict::Applied) {
            return Ok(());
        }
    }
}

/// Publishes how far each edge's slowest cursor is behind, and forgets who is long gone.
async fn publish_lags(link: Arc<Link>) {
    let mut ticks = ticker(LAG_PERIOD);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = link.shutdown.cancelled() => return,
        }
        for (edge, lag) in lags(&link) {
            gauge!(names::DELIVERY_LAG_RECORDS, "edge" => edge).set(lag as f64);
        }
        link.sessions.prune(4 * link.settings.grace);
    }
}

/// By edge, how many records its slowest cursor has to go.
pub(super) fn lags(link: &Link) -> BTreeMap<String, u64> {
    let mut lags = BTreeMap::new();
    for (partition, edge, given) in link.sessions.cursors() {
        let lag = link.node.partition(partition).map_or(0, |partition| lag(&partition.tail, given.index()));
        let slowest: &mut u64 = lags.entry(edge).or_default();
        *slowest = lag.max(*slowest);
    }
    lags
}

/// Records after an entry: exact where few remain, else estimated by those that come next; behind the tail at least one an entry.
fn lag(tail: &tail::Handle, after: LogIndex) -> u64 {
    let entries_left = tail.applied().0.saturating_sub(after.0);
    match tail.read(after, LAG_BYTES) {
        TailRead::End => 0,
        TailRead::Behind => entries_left,
        TailRead::Entries(entries) => {
            let records: u64 = entries.iter().map(|entry| entry.logged.entry.records() as u64).sum();
            let (seen, last) = (entries.len() as u64, entries.last().map_or(after, |entry| entry.logged.index));
            if last >= tail.applied() { records } else { (records * entries_left).div_ceil(seen.max(1)) }
        }
    }
}
