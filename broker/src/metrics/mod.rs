//! The process's metrics: one recorder, installed once, with fixed buckets. Names are constants beside their descriptions;
//! labels hold nothing a client can mint.

pub mod handlers;
pub mod http;
pub mod link;
pub mod store;
pub mod tcp;

use std::time::Duration;

pub use metrics_exporter_prometheus::PrometheusHandle;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// How often histograms are drained into their buckets. Without it they grow until the next scrape.
const UPKEEP: Duration = Duration::from_secs(5);

/// Bounds of every `*_seconds` histogram: a sync takes 0.2 ms, a slow one seconds.
const SECONDS: [f64; 16] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Bounds of every `*_records` histogram.
const RECORDS: [f64; 12] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 4096.0];
/// Bounds of every `*_bytes` histogram.
const BYTES: [f64; 9] = [256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262_144.0, 1_048_576.0, 4_194_304.0, 16_777_216.0];

/// Why there are no metrics.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A bucket list is refused: a bug.
    #[error("metrics buckets: {0}")]
    Buckets(#[from] BuildError),
    /// Something else in this process has installed a recorder.
    #[error("another metrics recorder is installed")]
    Taken,
}

static HANDLE: Mutex<Option<PrometheusHandle>> = Mutex::new(None);

/// Installs the process's recorder, once; later calls give the same handle. What was counted before the first is lost.
pub fn install() -> Result<PrometheusHandle, InstallError> {
    // held throughout: broker and edge of one process may come here at the same moment
    let mut installed = HANDLE.lock();
    if let Some(handle) = &*installed {
        return Ok(handle.clone());
    }
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)?
        .set_buckets_for_metric(Matcher::Suffix("_records".to_owned()), &RECORDS)?
        .set_buckets_for_metric(Matcher::Suffix("_bytes".to_owned()), &BYTES)?
        .build_recorder();
    let handle = recorder.handle();
    ::metrics::set_global_recorder(recorder).map_err(|_| InstallError::Taken)?;
    *installed = Some(handle.clone());
    store::describe_store();
    handlers::describe();
    http::describe();
    link::describe();
    tcp::describe();
    Ok(handle)
}

/// Keeps the histograms small, beside the servers, until `stop`.
pub async fn upkeep(handle: PrometheusHandle, stop: CancellationToken) {
    let mut tick = tokio::time::interval(UPKEEP);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        handle.run_upkeep();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn installing_from_many_threads_at_once_gives_all_the_same_recorder() {
        let threads: Vec<_> = (0..16).map(|_| std::thread::spawn(|| install().map(|_| ()))).collect();
        assert!(threads.into_iter().all(|thread| thread.join().unwrap().is_ok()));
    }

    #[test]
    fn installing_twice_gives_one_recorder() {
        let first = install().unwrap();
        ::metrics::counter!("trunkline_test_total").increment(1);
        let second = install().unwrap();
        assert!(first.render().contains("trunkline_test_total"));
        assert!(second.render().contains("trunkline_test_total"));
    }
}
