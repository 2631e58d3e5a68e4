//! The wall clock, behind one function so that everything else takes time as an argument.

use std::time::{SystemTime, UNIX_EPOCH};

use trunkline_proto::Timestamp;

/// Wall-clock time in microseconds since the epoch; 0 on a machine whose clock stands before 1970. Leaders stamp
/// `max(last stamp, state, this)`, so a clock that jumps back never takes the log's time with it.
pub fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since_epoch.as_micros()).unwrap_or(u64::MAX))
}
