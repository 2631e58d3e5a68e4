//! Calls HTTP functions with the events of connections: a handler of Trunkline, built on [`trunkline_sdk`], for each API that has
//! functions.
//!
//! The dialects (`dialect/`) are pure: an event becomes the bytes of a request, the bytes of an answer become a decision.
//! `failure.rs` is the one table of what a failed call means, `http.rs` the only file that knows sockets, `bridge.rs` the handler.

mod bridge;
mod call;
mod consent;
mod dialect;
mod failure;
mod http;
mod kept;
mod known;
mod measure;
mod route;
mod run;
mod settings;
mod signature;
mod unanswered;
mod welcomes;

pub use self::{
    bridge::Bridge,
    http::{Caller, CallerError},
    known::Known,
    measure::{FUNCTION_CALL_SECONDS, FUNCTION_CALLS_TOTAL, FUNCTION_FAILURES_TOTAL},
    route::RouteSelection,
    run::{BridgeError, Brokers, run_until},
    settings::{
        ApiSettings, BACKOFF_MAX, CONCURRENCY_MAX, Dialect, FunctionUrl, OnFailure, RESPONSE_BYTES_MAX, RETRIES_MAX,
        ROUTES_MAX, SettingsError, TIMEOUT_MAX,
    },
    signature::Secret,
};
