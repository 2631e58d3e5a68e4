//! Handlers against real partitions on disk.

pub(crate) mod broker;
mod forwarding;
mod subscribe;
