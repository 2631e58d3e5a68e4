//! The log, the state machine, delivery, and the gRPC and HTTP surfaces.
//!
//! Modules import downwards only, in this order (ARCHITECTURE.md, checked by a tidy test).

pub mod config;
pub mod metrics;
pub mod clock;
pub mod core;
pub mod store;
pub mod raft;
pub mod tail;
pub mod append;
pub mod node;
pub mod commands;
pub mod submit;
pub mod forward;
pub mod delivery;
pub mod handlers;
pub mod link;
pub mod grpc;
pub mod http;
pub mod server;
#[cfg(test)]
mod testing;
