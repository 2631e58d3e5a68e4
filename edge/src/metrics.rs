//! Names and handles of the edge's metrics. No label is ever made of what a client sends: APIs come from the
//! configuration, outcomes and causes from closed sets.

use std::time::{Duration, Instant};

use metrics::{Counter, Gauge, Histogram, Unit};
use parking_lot::Mutex;
use trunkline_proto::{close::cause_name, v1::CloseCause};

/// Open connections, label `api`.
pub const CONNECTIONS: &str = "trunkline_edge_connections";
/// Upgrade requests that were answered, labels `api` (empty: none matched) and `outcome` ([`HandshakeOutcome`]).
pub const HANDSHAKES: &str = "trunkline_edge_handshakes_total";
/// Messages read from clients, label `api`.
pub const MESSAGES_RECEIVED: &str = "trunkline_edge_messages_received_total";
/// Payload bytes of those messages.
pub const BYTES_RECEIVED: &str = "trunkline_edge_bytes_received_total";
/// Messages handed to sockets, label `api`.
pub const DELIVERIES: &str = "trunkline_edge_deliveries_total";
/// From applied by the leader to written to the socket, by the two machines' clocks.
pub const DELIVERY_SECONDS: &str = "trunkline_edge_delivery_seconds";
/// Connections that ended, labels `api` and `cause`.
pub const CLOSES: &str = "trunkline_edge_closes_total";
/// Bytes of records on their way to brokers and not applied yet.
pub const UPLINK_INFLIGHT_BYTES: &str = "trunkline_edge_uplink_inflight_bytes";
/// Seconds in which sockets were not read on purpose, label `reason` ([`PauseReason`]).
pub const PAUSED_SECONDS: &str = "trunkline_edge_paused_seconds_total";
/// Connections made to brokers, the first included.
pub const LINK_CONNECTS: &str = "trunkline_edge_link_connects_total";
/// Partitions whose stream is attached.
pub const LINK_PARTITIONS: &str = "trunkline_edge_link_partitions";
/// Incarnations lost: each closed every socket of this edge.
pub const INCARNATIONS_LOST: &str = "trunkline_edge_incarnations_lost_total";

/// Keys, tokens or certificates that were read again or fetched, labels `what` (`Reloaded`) and `outcome` (`ok`, or `failed`: the old ones
/// stay).
pub const RELOADS: &str = "trunkline_edge_reloads_total";

/// Tells the recorder what each metric means. Call once, after the recorder is installed.
pub fn describe() {
    metrics::describe_gauge!(CONNECTIONS, Unit::Count, "Open WebSocket connections");
    metrics::describe_counter!(HANDSHAKES, Unit::Count, "Upgrade requests answered, by outcome");
    metrics::describe_counter!(MESSAGES_RECEIVED, Unit::Count, "Messages read from clients");
    metrics::describe_counter!(BYTES_RECEIVED, Unit::Bytes, "Payload bytes read from clients");
    metrics::describe_counter!(DELIVERIES, Unit::Count, "Messages handed to sockets");
    metrics::describe_histogram!(
        DELIVERY_SECONDS,
        Unit::Seconds,
        "From applied by the leader to written to the socket"
    );
    metrics::describe_counter!(CLOSES, Unit::Count, "Connections that ended, by cause");
    metrics::describe_gauge!(UPLINK_INFLIGHT_BYTES, Unit::Bytes, "Records on their way to brokers and not applied yet");
    metrics::describe_counter!(PAUSED_SECONDS, Unit::Seconds, "Time in which sockets were not read, by reason");
    metrics::describe_counter!(LINK_CONNECTS, Unit::Count, "Connections made to brokers");
    metrics::describe_gauge!(LINK_PARTITIONS, Unit::Count, "Partitions whose stream is attached");
    metrics::describe_counter!(RELOADS, Unit::Count, "Keys, tokens or certificates read again or fetched, by outcome");
    metrics::describe_counter!(INCARNATIONS_LOST, Unit::Count, "Times the brokers gave this edge up for lost");
}

/// How an upgrade request was answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HandshakeOutcome {
    /// 101.
    Accepted,
    /// By the handler: the status it named.
    Rejected,
    /// No decision in time: 504.
    TimedOut,
    /// The request was wrong: 400, 404, 405, 426, 431, or Origin or credentials refused: 401, 403.
    Refused,
    /// No place, no broker, or the edge drains: 503.
    Unavailable,
    /// The client went away first.
    Abandoned,
    /// Too many of one address: 429.
    RateLimited,
}

impl HandshakeOutcome {
    /// Every outcome.
    pub const ALL: [Self; 7] = [
        Self::Accepted,
        Self::Rejected,
        Self::TimedOut,
        Self::Refused,
        Self::Unavailable,
        Self::Abandoned,
        Self::RateLimited,
    ];

    /// The label's value.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Rejected => "rejected",
            Self::TimedOut => "timed_out",
            Self::Refused => "refused",
            Self::Unavailable => "unavailable",
            Self::Abandoned => "abandoned",
            Self::RateLimited => "rate_limited",
        }
    }
}

/// Highest number of a [`CloseCause`].
const CAUSE_MAX: i32 = CloseCause::TokenExpired as i32;

/// Metrics of one API. Made once, after the recorder is installed; cheap to use from every shard.
#[derive(Clone)]
pub struct ApiMetrics {
    /// [`CONNECTIONS`].
    pub connections: Gauge,
    /// [`MESSAGES_RECEIVED`].
    pub messages_received: Counter,
    /// [`DELIVERIES`].
    pub deliveries: Counter,
    handshakes: [Counter; HandshakeOutcome::ALL.len()],
    closes: Vec<Counter>,
}

impl ApiMetrics {
    /// Handles for the API of this configured name; empty for requests that no API answers.
    pub fn new(api: &str) -> Self {
        let api = api.to_owned();
        let closes = (0..=CAUSE_MAX)
            .map(|number| cause_name(CloseCause::try_from(number).unwrap_or_default()))
            .map(|cause| metrics::counter!(CLOSES, "api" => api.clone(), "cause" => cause))
            .collect();
        Self {
            connections: metrics::gauge!(CONNECTIONS, "api" => api.clone()),
            messages_received: metrics::counter!(MESSAGES_RECEIVED, "api" => api.clone()),
            deliveries: metrics::counter!(DELIVERIES, "api" => api.clone()),
            handshakes: HandshakeOutcome::ALL
                .map(|outcome| metrics::counter!(HANDSHAKES, "api" => api.clone(), "outcome" => outcome.name())),
            closes,
        }
    }

    /// Counts an answered upgrade request.
    pub fn handshake(&self, outcome: HandshakeOutcome) {
        self.handshakes[outcome as usize].increment(1);
    }

    /// Counts a connection that ended.
    pub fn closed(&self, cause: CloseCause) {
        if let Some(counter) = self.closes.get(cause as usize) {
            counter.increment(1);
        }
    }
}

/// Metrics of a shard's sockets that name no API.
#[derive(Clone)]
pub struct SocketMetrics {
    /// [`BYTES_RECEIVED`].
    pub bytes_received: Counter,
    /// [`DELIVERY_SECONDS`].
    pub delivery_seconds: Histogram,
}

impl SocketMetrics {
    /// Made once per shard, after the recorder is installed.
    #[allow(clippy::new_without_default)] // registers with the recorder: not a plain value
    pub fn new() -> Self {
        Self {
            bytes_received: metrics::counter!(BYTES_RECEIVED),
            delivery_seconds: metrics::histogram!(DELIVERY_SECONDS),
        }
    }
}

/// Why sockets are not read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PauseReason {
    /// The uplink's budget is full: no socket is read.
    UplinkFull,
    /// Some API's handler group is further behind than its `max_handler_lag`, in some partition: those sockets are not read.
    HandlerLag,
}

impl PauseReason {
    /// The label's value.
    pub fn name(self) -> &'static str {
        match self {
            Self::UplinkFull => "uplink_full",
            Self::HandlerLag => "handler_lag",
        }
    }
}

/// Counts into [`PAUSED_SECONDS`] how long something lasts, also while it does.
pub(crate) struct PauseClock {
    counter: Counter,
    state: Mutex<PauseState>,
}

#[derive(Default)]
struct PauseState {
    /// Time before this is counted.
    since: Option<Instant>,
    /// All so far; the counter shows whole seconds of it.
    counted: Duration,
}

impl PauseClock {
    pub(crate) fn new(reason: PauseReason) -> Self {
        let counter = metrics::counter!(PAUSED_SECONDS, "reason" => reason.name());
        Self { counter, state: Mutex::default() }
    }

    /// It lasts from now on, or still.
    pub(crate) fn begin(&self, now: Instant) {
        self.state.lock().since.get_or_insert(now);
    }

    /// It is over, or was.
    pub(crate) fn end(&self, now: Instant) {
        let mut state = self.state.lock();
        self.count_in(&mut state, now);
        state.since = None;
    }

    /// Shows what has passed so far.
    pub(crate) fn count(&self, now: Instant) {
        self.count_in(&mut self.state.lock(), now);
    }

    fn count_in(&self, state: &mut PauseState, now: Instant) {
        let Some(since) = &mut state.since else { return };
        state.counted += now.saturating_duration_since(*since);
        *since = now;
        self.counter.absolute(state.counted.as_secs());
    }
}

impl std::fmt::Debug for PauseClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PauseClock").finish_non_exhaustive()
    }
}

/// [`UPLINK_INFLIGHT_BYTES`].
pub(crate) struct InflightBytes(Gauge);

impl InflightBytes {
    pub(crate) fn new() -> Self {
        Self(metrics::gauge!(UPLINK_INFLIGHT_BYTES))
    }

    pub(crate) fn set(&self, bytes: usize) {
        self.0.set(bytes as f64);
    }
}

impl std::fmt::Debug for InflightBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InflightBytes").finish_non_exhaustive()
    }
}

/// What is read again while the edge runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reloaded {
    /// The files of an API's `auth`.
    Auth,
    /// A set of keys, by its URL.
    Jwks,
    /// The listeners' certificate and key.
    Certificate,
}

/// Counts into [`RELOADS`].
pub(crate) fn reloaded(what: Reloaded, is_ok: bool) {
    let what = match what {
        Reloaded::Auth => "auth",
        Reloaded::Jwks => "jwks",
        Reloaded::Certificate => "certificate",
    };
    metrics::counter!(RELOADS, "what" => what, "outcome" => if is_ok { "ok" } else { "failed" }).increment(1);
}

/// Metrics of the link.
pub(crate) struct LinkMetrics {
    pub(crate) connects: Counter,
    pub(crate) partitions: Gauge,
    pub(crate) incarnations_lost: Counter,
}

impl LinkMetrics {
    pub(crate) fn new() -> Self {
        Self {
            connects: metrics::counter!(LINK_CONNECTS),
            partitions: metrics::gauge!(LINK_PARTITIONS),
            incarnations_lost: metrics::counter!(INCARNATIONS_LOST),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_counted_while_it_lasts_and_once() {
        let clock = PauseClock::new(PauseReason::UplinkFull);
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let counted = || clock.state.lock().counted.as_millis();
        clock.count(at(500));
        assert_eq!(counted(), 0, "nothing has begun");
        clock.begin(at(1000));
        clock.begin(at(1400));
        clock.count(at(1900));
        assert_eq!(counted(), 900);
        clock.end(at(2200));
        clock.end(at(5000));
        assert_eq!(counted(), 1200);
        clock.begin(at(6000));
        clock.end(at(6800));
        assert_eq!(counted(), 2000);
    }

    #[test]
    fn every_cause_and_outcome_has_a_counter() {
        let metrics = ApiMetrics::new("chat");
        assert_eq!(metrics.closes.len(), 16);
        assert!(CloseCause::try_from(CAUSE_MAX + 1).is_err(), "a new cause must raise CAUSE_MAX");
        metrics.closed(CloseCause::TokenExpired);
        for outcome in HandshakeOutcome::ALL {
            metrics.handshake(outcome);
        }
    }
}
