//! WebSocket termination, uplink, downlink and fan-out.
//!
//! Modules import downwards only, in this order (ARCHITECTURE.md, checked by a tidy test): those of a group never each other but
//! where the group says so.

pub mod config;
pub mod metrics;

pub mod core;

pub mod auth;

pub mod api;
pub mod gate;
pub mod inbox;

pub mod downlink;
pub mod uplink;

pub mod link;

pub mod sink;

// in this order, a file each
pub mod channels;
mod stream;

mod socket;

pub mod shard;

pub mod accept;

pub mod worker;

pub mod http;
pub mod server;
