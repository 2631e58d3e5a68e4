//! The subscription against a broker made for it: order, parallelism, retries, stale epochs, reconnects, panics.

#![allow(clippy::unwrap_used)] // in a test a panic is the answer

mod broker;
mod cases;
