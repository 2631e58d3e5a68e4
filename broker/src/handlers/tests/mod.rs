//! Handlers against real partitions on disk.

mod assign;
pub(crate) mod broker;
mod forwarding;
mod subscribe;
