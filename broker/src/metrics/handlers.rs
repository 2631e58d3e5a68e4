//! What handlers and services do: lag, commits, commands.

use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};
use trunkline_proto::{PartitionId, v1};

/// Events a group has not settled, by group and partition. On the partition's leader.
pub const HANDLER_LAG_RECORDS: &str = "trunkline_handler_lag_records";
/// Commits, by group and outcome.
pub const HANDLER_COMMITS_TOTAL: &str = "trunkline_handler_commits_total";
/// Commands submitted or committed, by kind and outcome.
pub const COMMANDS_TOTAL: &str = "trunkline_commands_total";

/// Describes them to the recorder.
pub fn describe() {
    describe_gauge!(HANDLER_LAG_RECORDS, Unit::Count, "events that a handler group has not settled");
    describe_counter!(HANDLER_COMMITS_TOTAL, Unit::Count, "commits of handler groups by outcome");
    describe_counter!(COMMANDS_TOTAL, Unit::Count, "commands by kind and outcome");
}

/// The lag of a group in a partition.
pub fn set_lag(group: &str, partition: PartitionId, lag: u64) {
    // exact up to 2^53 records
    gauge!(HANDLER_LAG_RECORDS, "group" => group.to_owned(), "partition" => partition.to_string()).set(lag as f64);
}

/// A commit was answered.
pub fn count_commit(group: &str, code: v1::Code) {
    counter!(HANDLER_COMMITS_TOTAL, "group" => group.to_owned(), "outcome" => code_name(code)).increment(1);
}

/// A command was answered.
pub fn count_command(kind: &'static str, code: v1::Code) {
    counter!(COMMANDS_TOTAL, "kind" => kind, "outcome" => code_name(code)).increment(1);
}

/// The name of a code as metrics, trailers and tools show it: `too_large`.
pub fn code_name(code: v1::Code) -> &'static str {
    match code {
        v1::Code::Unspecified => "unspecified",
        v1::Code::Applied => "applied",
        v1::Code::Gone => "gone",
        v1::Code::TooLarge => "too_large",
        v1::Code::Throttled => "throttled",
        v1::Code::NotAuthorized => "not_authorized",
        v1::Code::Unknown => "unknown",
        v1::Code::StaleEpoch => "stale_epoch",
        v1::Code::NotOpen => "not_open",
        v1::Code::Invalid => "invalid",
        v1::Code::KeyReused => "key_reused",
        v1::Code::NoLeader => "no_leader",
        v1::Code::Forwarded => "forwarded",
        v1::Code::Refused => "refused",
    }
}
