//! Forwards to partitions that other brokers lead: one call at a time for each target, with everything that waits for it, so that they
//! come in order.

use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use tokio::sync::oneshot;
use trunkline_proto::{Batch, Offset, PartitionId, Source, v1, v1::peer as pb};

use super::watermark;
use crate::{
    append::{AppendError, Pending},
    node::{CallKind, Node},
    submit,
};

/// How long another broker may take to apply forwards.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of forwards in one call, unless a single one is larger.
pub(super) const CALL_BYTES_MAX: usize = 2 << 20;

/// What a forward came to: the target's watermark.
pub(super) type Answer = oneshot::Receiver<Result<Offset, String>>;

/// Sends forwards to broker `id`; each gets its answer.
pub(super) fn send(
    node: &Node,
    id: u64,
    (source, target): (PartitionId, PartitionId),
    batches: Vec<(Offset, Batch)>,
) -> Vec<(Offset, Answer)> {
    let mut call = pb::ForwardCall { source: u32::from(source.0), target: u32::from(target.0), forwards: Vec::new() };
    let (mut senders, mut answers) = (Vec::new(), Vec::new());
    for (offset, batch) in batches {
        let predecessor = match &batch.source {
            Source::Forward(forward) => forward.predecessor,
            _ => 0,
        };
        let count = u32::from(batch.count);
        call.forwards.push(pb::Forward { offset: offset.0, predecessor, count, records: batch.records });
        let (sender, answer) = oneshot::channel();
        senders.push(sender);
        answers.push((offset, answer));
    }
    let node = node.clone();
    tokio::spawn(async move {
        let results = ask(&node, id, &call).await;
        let mut results = results.unwrap_or_else(|error| vec![Err(error)]).into_iter();
        for sender in senders {
            // whoever has lost the leadership does not wait any more
            let _ = sender.send(results.next().unwrap_or_else(|| Err("not answered".to_owned())));
        }
    });
    answers
}

async fn ask(node: &Node, id: u64, call: &pb::ForwardCall) -> Result<Vec<Result<Offset, String>>, String> {
    let body = call.encode_to_vec().into();
    let answer = node.peers().call(id, CallKind::Forward, body, PATIENCE).await.map_err(|error| error.to_string())?;
    let answer = pb::ForwardAnswer::decode(answer).map_err(|error| error.to_string())?;
    let result = |result: pb::ForwardResult| match result.error.is_empty() {
        true => Ok(Offset(result.watermark)),
        false => Err(result.error),
    };
    Ok(answer.results.into_iter().map(result).collect())
}

/// Answers the call of another broker: appends its forwards to a partition that this one leads.
pub async fn answer(node: &Node, call: Bytes) -> Bytes {
    let results = match pb::ForwardCall::decode(call) {
        Ok(call) => append(node, call).await,
        Err(error) => vec![Err(error.to_string())],
    };
    let results = results.into_iter().map(|result| match result {
        Ok(watermark) => pb::ForwardResult { watermark: watermark.0, error: String::new() },
        Err(error) => pb::ForwardResult { watermark: 0, error },
    });
    pb::ForwardAnswer { results: results.collect() }.encode_to_vec().into()
}

async fn append(node: &Node, call: pb::ForwardCall) -> Vec<Result<Offset, String>> {
    let partition = u16::try_from(call.target).ok().and_then(|target| node.partition(PartitionId(target)));
    let Some(partition) = partition else { return vec![Err(format!("there is no partition {}", call.target))] };
    let mut pending: Vec<Result<Pending, String>> = Vec::with_capacity(call.forwards.len());
    let mut failed: Option<String> = None;
    for forward in call.forwards {
        let (partition_number, offset, predecessor) = (call.source, forward.offset, forward.predecessor);
        let source = v1::ForwardSource { partition: partition_number, offset, predecessor };
        let count = u16::try_from(forward.count).unwrap_or(u16::MAX);
        // what follows one that failed would be refused as a gap
        let queued = match &failed {
            Some(reason) => Err(reason.clone()),
            None => Batch::checked(Source::Forward(source), count, forward.records)
                .map_err(|error| error.to_string())
                .and_then(|batch| partition.append.try_enqueue(batch).map_err(|error: AppendError| error.to_string())),
        };
        if let Err(reason) = &queued {
            failed = Some(reason.clone());
        }
        pending.push(queued);
    }
    let mut results = Vec::with_capacity(pending.len());
    for queued in pending {
        results.push(match queued {
            Ok(mut pending) => watermark(submit::resolve(&mut pending).await),
            Err(reason) => Err(reason),
        });
    }
    results
}
