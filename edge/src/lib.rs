//! WebSocket termination, uplink, downlink and fan-out.
//!
//! Modules import downwards only, in this order (ARCHITECTURE.md, checked by a tidy test).

pub mod config;
pub mod core;
pub mod metrics;
pub mod shard;
pub mod uplink;
