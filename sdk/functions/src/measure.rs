//! What the bridge counts. Labels are names an operator chose.

use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_histogram, histogram};

use crate::failure::Failure;

/// Attempts to call a function, by API, function and outcome.
pub const FUNCTION_CALLS_TOTAL: &str = "trunkline_function_calls_total";
/// How long an attempt took, by API.
pub const FUNCTION_CALL_SECONDS: &str = "trunkline_function_call_seconds";
/// Events whose call failed for good, by API and what became of them.
pub const FUNCTION_FAILURES_TOTAL: &str = "trunkline_function_failures_total";

/// Describes them to the recorder.
pub(crate) fn describe() {
    describe_counter!(FUNCTION_CALLS_TOTAL, Unit::Count, "attempts to call a function by outcome");
    describe_histogram!(FUNCTION_CALL_SECONDS, Unit::Seconds, "from an attempt to call a function to its whole answer");
    describe_counter!(
        FUNCTION_FAILURES_TOTAL,
        Unit::Count,
        "events whose call failed for good, by what became of them"
    );
}

/// An attempt has ended.
pub(crate) fn count_call(api: &str, function: &'static str, failure: Option<&Failure>) {
    let outcome = failure.map_or("ok", Failure::name);
    counter!(FUNCTION_CALLS_TOTAL, "api" => api.to_owned(), "function" => function, "outcome" => outcome).increment(1);
}

/// A call took so long.
pub(crate) fn record_call(api: &str, took: Duration) {
    histogram!(FUNCTION_CALL_SECONDS, "api" => api.to_owned()).record(took.as_secs_f64());
}

/// An event's call has failed for good.
pub(crate) fn count_failure(api: &str, then: &'static str) {
    counter!(FUNCTION_FAILURES_TOTAL, "api" => api.to_owned(), "then" => then).increment(1);
}
