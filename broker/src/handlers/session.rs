//! One `Subscribe` stream from its `Join` to its end: reads what the member asks and hands it to its partitions' streams.

use std::{future::Future, sync::Arc, time::Duration};

use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt};
use trunkline_proto::v1::{self, subscribe_request::Request as Asked, subscribe_response::Response};

use super::{
    member::{Member, Outgoing, Request, SessionEnd, Terms},
    registry::Registry,
};
use crate::access::Caller;

/// How long a stream may take to send its `Join`.
const JOIN_TIMEOUT: Duration = Duration::from_secs(10);
/// How often is looked whether brokers have come, gone or moved.
const BROKERS_EVERY: Duration = Duration::from_secs(1);

/// Serves one stream. Ends when the member leaves, breaks the protocol, is replaced, or is `revoked`: whether or not it reads that.
pub async fn serve<S, E>(
    registry: Arc<Registry>,
    broker: u64,
    requests: S,
    outgoing: mpsc::Sender<Outgoing>,
    caller: Caller,
    revoked: impl Future<Output = ()> + Send,
) where
    S: Stream<Item = Result<v1::SubscribeRequest, E>> + Send,
{
    tokio::pin!(requests);
    let told = brokers(&registry, broker);
    // the queue is empty still
    let _ = outgoing.try_send(Ok(v1::SubscribeResponse { response: Some(Response::Brokers(told.clone())) }));
    let first = tokio::select! {
        first = tokio::time::timeout(JOIN_TIMEOUT, requests.next()) => first,
        () = registry.shutdown().cancelled() => {
            let _ = outgoing.try_send(Err(SessionEnd::Shutdown));
            return;
        }
    };
    let terms = match first {
        Ok(Some(Ok(v1::SubscribeRequest { request: Some(Asked::Join(join)) }))) => match caller.may_join(&join) {
            Ok(()) => Terms::check(join),
            Err(denied) => {
                let _ = outgoing.send(Err(SessionEnd::Forbidden(denied.to_string()))).await;
                return;
            }
        },
        Ok(Some(Ok(_))) => Err("the first request of a stream is `join`".to_owned()),
        Ok(Some(Err(_)) | None) => return,
        Err(_) => Err(format!("no `join` within {JOIN_TIMEOUT:?}")),
    };
    let terms = match terms {
        Ok(terms) => terms,
        Err(reason) => {
            let _ = outgoing.send(Err(SessionEnd::Invalid(reason))).await;
            return;
        }
    };
    let member = Arc::new(Member::new(terms, caller, outgoing));
    let partitions = u32::from(registry.node().partition_count().get());
    if !member.send(Response::Joined(v1::Joined { partitions, broker })).await {
        return;
    }
    registry.join(&member);
    tracing::info!(group = member.terms.group, member = member.terms.member, "member joined");
    let tell = tell_brokers(&registry, &member, told);
    let end = tokio::select! {
        end = read(&registry, &member, requests) => end,
        () = tell => None,
        () = revoked => None,
    };
    match end {
        Some(end) => {
            tracing::warn!(group = member.terms.group, member = member.terms.member, reason = %end, "stream ended");
            member.end(end);
        }
        None => member.gone.cancel(),
    }
    registry.leave(&member);
    tracing::info!(group = member.terms.group, member = member.terms.member, "member left");
}

/// Every broker whose address is known.
fn brokers(registry: &Registry, broker: u64) -> v1::Brokers {
    let members = registry.node().peers().members();
    let known = members.into_iter().filter(|member| !member.grpc.is_empty());
    v1::Brokers {
        broker,
        brokers: known.map(|member| v1::BrokerAddress { id: member.id, grpc: member.grpc }).collect(),
    }
}

/// Tells the member when they change; ends when it is gone.
async fn tell_brokers(registry: &Registry, member: &Member, mut told: v1::Brokers) {
    loop {
        tokio::time::sleep(BROKERS_EVERY).await;
        let now = brokers(registry, told.broker);
        if now != told {
            told = now;
            if !member.send(Response::Brokers(told.clone())).await {
                return;
            }
        }
    }
}

async fn read<S, E>(
    registry: &Registry,
    member: &Arc<Member>,
    mut requests: std::pin::Pin<&mut S>,
) -> Option<SessionEnd>
where
    S: Stream<Item = Result<v1::SubscribeRequest, E>>,
{
    loop {
        let request = tokio::select! {
            () = member.gone.cancelled() => return None,
            () = member.outgoing().closed() => return None,
            () = registry.shutdown().cancelled() => return Some(SessionEnd::Shutdown),
            request = requests.next() => request,
        };
        let Some(Ok(request)) = request else { return None };
        let invalid = |reason: &str| Some(SessionEnd::Invalid(reason.to_owned()));
        let handled = match request.request {
            Some(Asked::Commit(commit)) => take_commit(member, commit).await,
            Some(Asked::Extend(extend)) => take_extend(member, extend).await,
            Some(Asked::Credit(credit)) => {
                member.credit.adjust(credit.amount);
                true
            }
            Some(Asked::Join(_)) => return invalid("a stream joins once"),
            None => return invalid("the request is empty, or one this version does not know"),
        };
        if !handled {
            return None;
        }
    }
}

/// False when the member is gone.
async fn take_commit(member: &Member, commit: v1::Commit) -> bool {
    let Some(route) = member.route(commit.partition, commit.epoch) else {
        return member.send(Response::Committed(stale(&commit))).await;
    };
    tokio::select! {
        sent = route.send(Request::Commit(commit)) => match sent {
            Ok(()) => true,
            // the stream ended while this waited
            Err(mpsc::error::SendError(Request::Commit(commit))) => member.send(Response::Committed(stale(&commit))).await,
            Err(_) => true,
        },
        () = member.gone.cancelled() => false,
    }
}

async fn take_extend(member: &Member, extend: v1::Extend) -> bool {
    let Some(route) = member.route(extend.partition, extend.epoch) else { return true };
    tokio::select! {
        _ = route.send(Request::Extend(extend)) => true,
        () = member.gone.cancelled() => false,
    }
}

/// The answer to a commit for a partition that is not the member's in that epoch.
pub(super) fn stale(commit: &v1::Commit) -> v1::CommitResult {
    let message = format!("partition {} is not this member's in epoch {}", commit.partition, commit.epoch);
    v1::CommitResult {
        id: commit.id,
        partition: commit.partition,
        status: Some(v1::Status { code: v1::Code::StaleEpoch.into(), message }),
        ..Default::default()
    }
}
