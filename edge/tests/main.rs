//! A shard against real sockets, with a log that applies at once.
#![allow(missing_docs)]

mod support;

mod delivery;
mod frames;
mod handshake;
mod lifecycle;
