//! Metrics of the log: store, Raft groups and appenders. Names are constants; nothing a client can mint becomes a label.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// Seconds from a batch entering an appender's queue until it is applied.
pub const LOG_APPEND_SECONDS: &str = "trunkline_log_append_seconds";
/// Seconds one synced write took.
pub const LOG_SYNC_SECONDS: &str = "trunkline_log_sync_seconds";
/// Records in one log entry.
pub const LOG_BATCH_RECORDS: &str = "trunkline_log_batch_records";
/// Bytes of log entries written.
pub const LOG_BYTES_TOTAL: &str = "trunkline_log_bytes_total";
/// Bytes of entries that are not trimmed; label `partition`.
pub const LOG_RETAINED_BYTES: &str = "trunkline_log_retained_bytes";
/// 2 leader, 1 follower, 0 closed; label `partition`.
pub const PARTITION_ROLE: &str = "trunkline_partition_role";
/// Raft index applied last; label `partition`.
pub const PARTITION_APPLIED_OFFSET: &str = "trunkline_partition_applied_offset";
/// Entries in the log and not applied yet; label `partition`.
pub const PARTITION_COMMIT_LAG: &str = "trunkline_partition_commit_lag";
/// Terms this broker has seen begin.
pub const RAFT_ELECTIONS_TOTAL: &str = "trunkline_raft_elections_total";
/// Bytes left where the data folder is.
pub const DISK_FREE_BYTES: &str = "trunkline_disk_free_bytes";
/// 1 while the store takes writes, else 0.
pub const STORAGE_HEALTHY: &str = "trunkline_storage_healthy";

/// Tells the exporter what they mean. Call once, after the recorder is installed.
pub fn describe_store() {
    describe_histogram!(
        LOG_APPEND_SECONDS,
        Unit::Seconds,
        "from a batch entering the appender's queue until it is applied"
    );
    describe_histogram!(LOG_SYNC_SECONDS, Unit::Seconds, "one synced write of the log");
    describe_histogram!(LOG_BATCH_RECORDS, Unit::Count, "records in one log entry");
    describe_counter!(LOG_BYTES_TOTAL, Unit::Bytes, "bytes of log entries written");
    describe_gauge!(LOG_RETAINED_BYTES, Unit::Bytes, "entries that are not trimmed");
    describe_gauge!(PARTITION_ROLE, "2 leader, 1 follower, 0 closed");
    describe_gauge!(PARTITION_APPLIED_OFFSET, "raft index of the last applied entry");
    describe_gauge!(PARTITION_COMMIT_LAG, Unit::Count, "entries in the log that are not applied yet");
    describe_counter!(RAFT_ELECTIONS_TOTAL, "terms this broker has seen begin");
    describe_gauge!(DISK_FREE_BYTES, Unit::Bytes, "left where the data folder is");
    describe_gauge!(STORAGE_HEALTHY, "1 while the store takes writes");
}
