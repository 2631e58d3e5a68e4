//! What handlers talk to: who of a group gets which partition, what it may be given, and what its commits come to.

pub mod flow;
