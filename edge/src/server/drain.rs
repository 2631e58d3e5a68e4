//! The orderly end of an edge: no new sockets, 1012 to those that are open, spread over the window, their close records
//! acknowledged; within [`DRAIN_SECONDS_MAX`] whatever happens.

use std::{sync::Arc, time::Duration};

use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use trunkline_proto::v1::CloseCause;

use super::{Left, shards::Threads};
use crate::{api::Api, config::DRAIN_SECONDS_MAX, downlink::Downlink, uplink};

/// For the link to say goodbye and the threads to end.
const END_TIMEOUT: Duration = Duration::from_secs(1);
/// For everything before that.
pub(super) const DRAIN_TIMEOUT: Duration =
    Duration::from_secs(DRAIN_SECONDS_MAX).saturating_sub(Duration::from_secs(2));
/// For sockets to close when there is nobody to tell.
const ABANDON_TIMEOUT: Duration = Duration::from_secs(2);
/// So often it is looked whether the last connection is over.
const LOOK_PERIOD: Duration = Duration::from_millis(10);

/// What is drained.
pub(super) struct Drain<'a> {
    pub(super) apis: &'a [Arc<Api>],
    pub(super) downlink: &'a Downlink,
    pub(super) uplink: &'a uplink::Handle,
    pub(super) window: Duration,
    /// At most so long, usually [`DRAIN_TIMEOUT`].
    pub(super) timeout: Duration,
}

impl Drain<'_> {
    /// Drains; says what was left behind, if anything.
    pub(super) async fn run(self, threads: Threads, stop: CancellationToken) -> Result<(), Left> {
        tracing::info!(connections = self.connections(), window = ?self.window, "edge drains");
        let drained = timeout(self.timeout, self.drain(&threads)).await;
        let left = Left { connections: self.connections(), bytes: self.uplink.inflight_bytes() };
        end(threads, stop).await;
        match drained {
            Ok(()) => Ok(()),
            Err(_) => Err(left),
        }
    }

    async fn drain(&self, threads: &Threads) {
        self.downlink.stop_accepting().await;
        self.downlink.close_all(CloseCause::EdgeDrained, self.window, true).await;
        // until then what is delivered still reaches those that are open
        self.closed().await;
        self.downlink.release();
        // the first one also runs the link
        threads.wait_until_running(1).await;
        self.uplink.flushed().await;
    }

    /// Ends at once: the brokers take no more records of this incarnation, or a shard is gone with its sockets.
    pub(super) async fn abandon(self, threads: Threads, stop: CancellationToken) {
        self.uplink.close();
        let closed = async {
            self.downlink.stop_accepting().await;
            self.downlink.close_all(CloseCause::EdgeLost, Duration::ZERO, false).await;
            self.closed().await;
        };
        if timeout(ABANDON_TIMEOUT, closed).await.is_err() {
            tracing::warn!(connections = self.connections(), "sockets were slow to close");
        }
        self.downlink.release();
        end(threads, stop).await;
    }

    async fn closed(&self) {
        while self.connections() > 0 {
            sleep(LOOK_PERIOD).await;
        }
    }

    fn connections(&self) -> u64 {
        self.apis.iter().map(|api| api.connections()).sum()
    }
}

async fn end(threads: Threads, stop: CancellationToken) {
    stop.cancel();
    if timeout(END_TIMEOUT, threads.wait_until_running(0)).await.is_err() {
        tracing::warn!("threads were slow to end");
    }
}
