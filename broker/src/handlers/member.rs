//! One member of a handler group: one `Subscribe` stream. It owns the credit, the way out, and knows which of its partitions'
//! streams takes a commit.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use trunkline_proto::{PartitionId, limits, v1};

use super::flow::{Free, Wanted};
use crate::access::Caller;

/// Responses that wait for the network, for each member. When full its streams stop sending, nobody else's.
pub const OUTGOING_MAX: usize = 32;
/// Commits and extends that wait for one partition's stream. When full the member's requests are not read.
pub const REQUESTS_MAX: usize = 64;
/// Most APIs in a filter.
pub const APIS_MAX: usize = 64;

/// Why the broker ends a `Subscribe` stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionEnd {
    /// The member broke the protocol.
    #[error("{0}")]
    Invalid(String),
    /// The member's token is for other groups or APIs.
    #[error("{0}")]
    Forbidden(String),
    /// Another stream joined under the same name.
    #[error("another stream joined the group as this member")]
    Replaced,
    /// It read nothing for too long while it had to be told something.
    #[error("the member does not read its stream")]
    Stalled,
    /// This broker stops.
    #[error("the broker is shutting down")]
    Shutdown,
}

/// What goes out on a `Subscribe` stream.
pub type Outgoing = Result<v1::SubscribeResponse, SessionEnd>;

/// What a member asks of one partition's stream.
#[derive(Debug)]
pub enum Request {
    /// Settle events and apply commands.
    Commit(v1::Commit),
    /// Still at work.
    Extend(v1::Extend),
}

/// A checked `Join`.
#[derive(Clone, PartialEq, Debug)]
pub struct Terms {
    /// The group.
    pub group: String,
    /// The member's name in it.
    pub member: String,
    /// Filter; empty: all.
    pub apis: Vec<String>,
    /// Filter on event kinds; empty: all.
    pub kinds: Vec<u32>,
    /// Where a group begins that does not exist yet.
    pub start: v1::Start,
    /// Events that may be in flight from this broker.
    pub credit: u32,
    /// Deliveries after which an event is parked; 0: never.
    pub max_attempts: u32,
}

impl Terms {
    /// Checks a `Join`. Says what is wrong with it.
    pub fn check(join: v1::Join) -> Result<Self, String> {
        for (what, name) in [("group", &join.group), ("member", &join.member)] {
            if !limits::is_name(name) {
                return Err(format!("{what} names are 1 to 64 of [A-Za-z0-9._-]"));
            }
        }
        if join.apis.len() > APIS_MAX || !join.apis.iter().all(|api| limits::is_name(api)) {
            return Err(format!("apis are at most {APIS_MAX} names of 1 to 64 of [A-Za-z0-9._-]"));
        }
        if join.kinds.len() > 3 || !join.kinds.iter().all(|kind| (1..=3).contains(kind)) {
            return Err("kinds are 1 (opened), 2 (message) and 3 (closed)".to_owned());
        }
        if !(1..=limits::CREDIT_MAX).contains(&join.credit) {
            return Err(format!("credit is 1 to {}; this is {}", limits::CREDIT_MAX, join.credit));
        }
        let at = join.start.and_then(|start| start.at);
        let at = match at {
            None | Some(v1::start::At::Earliest(false) | v1::start::At::Latest(false)) => v1::start::At::Latest(true),
            Some(at) => at,
        };
        Ok(Self {
            group: join.group,
            member: join.member,
            apis: join.apis,
            kinds: join.kinds,
            start: v1::Start { at: Some(at) },
            credit: join.credit,
            max_attempts: join.max_attempts,
        })
    }
}

/// Events in flight to a member over all partitions of this broker, and how many may be.
#[derive(Debug)]
pub struct Credit {
    /// (limit, used)
    counts: Mutex<(u32, u32)>,
    freed: Notify,
}

impl Credit {
    fn new(limit: u32) -> Self {
        Self { counts: Mutex::new((limit, 0)), freed: Notify::new() }
    }

    /// What is free; nothing is taken.
    pub fn free(&self) -> Free {
        let (limit, used) = *self.counts.lock();
        Free::new(limit as usize, limit.saturating_sub(used) as usize)
    }

    /// Takes one credit if there is one, and says what was free before that.
    pub fn take(&self) -> Option<Free> {
        let (limit, used) = &mut *self.counts.lock();
        let free = limit.checked_sub(*used).filter(|free| *free > 0)?;
        *used += 1;
        Some(Free::new(*limit as usize, free as usize))
    }

    /// Gives `credits` back.
    pub fn release(&self, credits: usize) {
        if credits > 0 {
            let used = &mut self.counts.lock().1;
            *used = used.saturating_sub(u32::try_from(credits).unwrap_or(u32::MAX));
            self.freed.notify_waiters();
        }
    }

    /// Raises or lowers the total, which stays within 0 and [`limits::CREDIT_MAX`].
    pub fn adjust(&self, amount: i32) {
        let limit = &mut self.counts.lock().0;
        *limit = limit.saturating_add_signed(amount).min(limits::CREDIT_MAX);
        self.freed.notify_waiters();
    }

    /// Waits until such a credit is free. Cancel safe.
    pub async fn freed(&self, wanted: Wanted) {
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if self.free().has(wanted) {
                return;
            }
            freed.await;
        }
    }
}

#[derive(Debug)]
struct Route {
    epoch: u64,
    requests: mpsc::Sender<Request>,
}

/// See the module's head.
#[derive(Debug)]
pub struct Member {
    /// What it joined with.
    pub terms: Terms,
    /// Whose stream it is, and what its commands may be for.
    pub caller: Caller,
    /// Tells this stream from an older one of the same name.
    pub serial: u64,
    /// What may be in flight.
    pub credit: Credit,
    /// Cancelled when the stream has ended or must end.
    pub gone: CancellationToken,
    outgoing: mpsc::Sender<Outgoing>,
    routes: Mutex<BTreeMap<PartitionId, Route>>,
}

impl Member {
    /// A member whose responses go to `outgoing`.
    pub fn new(terms: Terms, caller: Caller, outgoing: mpsc::Sender<Outgoing>) -> Self {
        static SERIAL: AtomicU64 = AtomicU64::new(1);
        Self {
            serial: SERIAL.fetch_add(1, Ordering::Relaxed),
            credit: Credit::new(terms.credit),
            gone: CancellationToken::new(),
            routes: Mutex::new(BTreeMap::new()),
            terms,
            caller,
            outgoing,
        }
    }

    /// The way out, for streams that reserve a place before they decide what to send.
    pub fn outgoing(&self) -> &mpsc::Sender<Outgoing> {
        &self.outgoing
    }

    /// Sends one response; waits while the way out is full. False when the member is gone.
    pub async fn send(&self, response: v1::subscribe_response::Response) -> bool {
        let response = v1::SubscribeResponse { response: Some(response) };
        tokio::select! {
            sent = self.outgoing.send(Ok(response)) => sent.is_ok(),
            () = self.gone.cancelled() => false,
        }
    }

    /// Ends the stream for `reason`.
    pub fn end(&self, reason: SessionEnd) {
        // a full way out means that nobody reads: then the end of the stream says enough
        let _ = self.outgoing.try_send(Err(reason));
        self.gone.cancel();
    }

    /// Commits for `partition` and `epoch` go to the receiver from now on.
    pub fn open_route(&self, partition: PartitionId, epoch: u64) -> mpsc::Receiver<Request> {
        let (requests, receiver) = mpsc::channel(REQUESTS_MAX);
        self.routes.lock().insert(partition, Route { epoch, requests });
        receiver
    }

    /// And no longer.
    pub fn close_route(&self, partition: PartitionId, epoch: u64) {
        let mut routes = self.routes.lock();
        if routes.get(&partition).is_some_and(|route| route.epoch == epoch) {
            routes.remove(&partition);
        }
    }

    /// Where requests for `partition` go, if it is assigned to this member in `epoch`.
    pub fn route(&self, partition: u32, epoch: u64) -> Option<mpsc::Sender<Request>> {
        let partition = PartitionId(u16::try_from(partition).ok()?);
        let routes = self.routes.lock();
        routes.get(&partition).filter(|route| route.epoch == epoch).map(|route| route.requests.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn who_waits_for_a_credit_gets_one_of_a_limit_that_is_lowered_meanwhile() {
        let credit = Credit::new(1024);
        while credit.take().is_some() {}
        let common = credit.freed(Wanted::Common);
        tokio::pin!(common);
        assert!(timeout(Duration::ZERO, common.as_mut()).await.is_err());
        credit.adjust(-960);
        credit.release(1024 - 64 + 8);
        assert!(timeout(Duration::ZERO, common.as_mut()).await.is_err(), "the reserve of 64");
        assert!(timeout(Duration::ZERO, credit.freed(Wanted::Any)).await.is_ok());
        credit.release(1);
        timeout(Duration::from_secs(10), common).await.expect("one that is nobody's");
    }
}
