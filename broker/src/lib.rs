//! The log, the state machine, delivery, and the gRPC and HTTP surfaces.
//!
//! Modules import downwards only, in the order of the ranks in ARCHITECTURE.md (a tidy test checks it).

pub mod access;
pub mod append;
pub mod calls;
pub mod clock;
pub mod commands;
pub mod config;
pub mod controls;
pub mod core;
pub mod delivery;
pub mod forward;
pub mod grpc;
pub mod handlers;
pub mod http;
pub mod link;
pub mod metrics;
pub mod node;
pub mod quic;
pub mod raft;
pub mod release;
pub mod reset;
pub mod retention;
pub mod server;
pub mod store;
pub mod submit;
pub mod tail;
pub mod tcp;
#[cfg(test)]
mod testing;
