//! The watch over edges: for every partition this broker leads, the silent are declared lost (`grace.rs` judges) and what they left
//! open is closed, in chunks, until nothing remains.

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
    submit,
    tail::{self, TailRead},
};

/// Connections closed, or edges declared lost, by one batch.
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
        for lost in lost.chunks(CHUNK) {
            if let Err(error) = declare_lost(link, partition, &grace, lost).await {
                tracing::warn!(partition = partition.id.0, %error, "cannot declare edges lost yet");
            }
        }
        if let Err(error) = close_left(link, partition).await {
            tracing::warn!(partition = partition.id.0, %error, "cannot close what lost edges left yet");
        }
    }
}

/// Declares those of `lost` lost that have not been heard since they were judged: in one batch, so that none waits for another's.
async fn declare_lost(
    link: &Link,
    partition: &PartitionHandle,
    grace: &Grace,
    lost: &[Incarnation],
) -> Result<(), AppendError> {
    let now = Instant::now();
    let silent = lost.iter().filter(|edge| grace.is_silent(now, edge, link.sessions.heard(edge)));
    let silent: Vec<&Incarnation> = silent.collect();
    let records: Vec<Record> = silent
        .iter()
        .map(|edge| {
            let body = v1::EdgeLost { edge: edge.edge.clone(), incarnation: edge.number };
            Record::new(RecordKind::EdgeLost, ConnectionId::NONE, "", &body)
        })
        .collect();
    if records.is_empty() {
        return Ok(());
    }
    // not waiting for room in the queue: the evidence would grow old
    let mut pending = partition.append.try_enqueue(Batch::new(Source::Leader, &records))?;
    let appended = submit::resolve(&mut pending).await?;
    for (n, edge) in (0..).zip(silent) {
        // refused: it is lost already, or a newer one has come, whose stream is none of this verdict's business
        if appended.verdict(n) != Verdict::Applied {
            continue;
        }
        tracing::warn!(partition = partition.id.0, edge = %edge.edge, incarnation = edge.number, "edge lost");
        counter!(names::EDGES_LOST_TOTAL).increment(1);
        link.sessions.lost(partition.id, edge);
    }
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

#[cfg(test)]
mod tests {
    use trunkline_proto::PartitionId;

    use super::*;
    use crate::link::tests::support::{Broker, Edge, Options, batch, connection};

    #[tokio::test]
    async fn only_who_is_silent_still_is_declared_lost_and_only_the_lost_are_kicked() {
        let broker = Broker::start(Options::default()).await;
        let link = &broker.link;
        let partition = broker.node.partition(PartitionId(0)).unwrap();
        let [edge, talker, replaced] = ["silent", "talker", "replaced"].map(|name| Edge::connect(&broker, name, 1, 0));
        let (edge, talker, replaced) = tokio::join!(edge, talker, replaced);
        let (mut stream, _) = replaced.attach(0, 0).await;
        let edges = [&edge, &talker, &replaced].map(|edge| Incarnation { edge: edge.name.clone(), number: 1 });
        let (silence, period) = (Duration::from_millis(1500), Duration::from_secs(5));
        tokio::time::sleep(silence).await;
        // a tick finds them all silent for a grace
        let mut grace = Grace::new(Instant::now() - 2 * silence, silence, period);
        let judged = |edges: &[Incarnation]| edges.iter().map(|edge| (edge.clone(), None)).collect();
        grace.handle_tick(Instant::now() - silence, judged(&edges));
        assert_eq!(grace.handle_tick(Instant::now(), judged(&edges)).len(), 3);
        // before that is used one is heard, and one has a newer incarnation that the link does not know yet
        let (mut talking, _) = talker.attach(0, 0).await;
        talking.send(batch(1, &[talker.opened(connection(1), &[])])).await;
        talking.applied(1).await;
        let body = v1::EdgeAttached { edge: "replaced".to_owned(), incarnation: 0, nonce: vec![2; 16].into() };
        let record = Record::new(RecordKind::EdgeAttached, ConnectionId::NONE, "", &body);
        partition.append.append(Batch::new(Source::Leader, &[record])).await.unwrap();

        declare_lost(link, partition, &grace, &edges).await.unwrap();
        let lost = |name: &str| partition.state.read().edge(name).unwrap().lost;
        assert_eq!((lost("silent"), lost("talker"), lost("replaced")), (true, false, false));
        // those who are not lost are not told so: a kick would end both streams
        stream.send(batch(1, &[replaced.opened(connection(2), &[])])).await;
        use trunkline_proto::v1::link::Reason;
        assert_eq!(stream.goodbye().await, Reason::Replaced, "by its batch, which is fenced");
        talking.send(batch(2, &[talker.opened(connection(3), &[])])).await;
        talking.applied(2).await;
        broker.stop().await;
    }
}
