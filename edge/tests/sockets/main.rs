//! A shard against real sockets, with a log that applies at once.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)] // tests

mod support;

mod auth;
mod delivery;
mod frames;
mod handshake;
mod lifecycle;
mod limits;
