//! The bridge between a broker in miniature (the SDK's own, which speaks the real protocol) and a real HTTP server of functions.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub)] // tests

#[allow(dead_code)]
#[path = "../../../rust/tests/subscription/broker.rs"]
mod broker;
mod callbacks;
mod cases;
mod server;
