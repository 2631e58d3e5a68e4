//! WebSocket termination, uplink, downlink and fan-out.
//!
//! Modules import downwards only, in this order (ARCHITECTURE.md, checked by a tidy test).

pub mod config;
pub mod core;
pub mod api;
pub mod inbox;
pub mod uplink;
pub mod sink;
pub mod shard;
pub mod accept;
