//! Metrics of the TCP listeners.

use ::metrics::describe_counter;

/// Connections that were closed before they were served, by listener (`grpc`, `http`) and reason: `all` and `address` (as many as there
/// may be), `handshake`, `silent`, `preface`.
pub const REFUSED_TOTAL: &str = "trunkline_tcp_refused_total";
/// Files that had changed and were read again, by what they hold (`tokens`, `push`, `aws`, `certificate`) and outcome (`ok`, or `failed`:
/// all stays as it was).
pub const RELOADS_TOTAL: &str = "trunkline_reloads_total";

pub(super) fn describe() {
    describe_counter!(RELOADS_TOTAL, "Files read again after they had changed, by what they hold and outcome");
    describe_counter!(REFUSED_TOTAL, "Connections closed before they were served, by listener and reason");
}
