//! The subscription against a broker made for it: order, parallelism, retries, stale epochs, reconnects, panics.

mod broker;
mod cases;
