//! What handlers talk to: who of a group gets which partition, what it may be given, and what its commits come to.
//!
//! [`session`] reads one `Subscribe` stream. [`registry`] assigns partitions to members and runs one `stream` for each assignment, which
//! reads with a [`cursor`], decides with a pure [`flow`], and takes commits to the log with [`commit`].

mod again;
pub mod commit;
pub mod cursor;
pub mod flow;
pub mod member;
pub mod registry;
pub mod session;
mod stream;
#[cfg(test)]
pub(crate) mod tests;

pub use member::Outgoing;
pub use registry::Registry;
