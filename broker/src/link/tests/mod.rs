//! The link end to end: a real node, real QUIC, and an edge that speaks the protocol by hand.

mod delivery;
mod hostile;
mod stalled;
pub(crate) mod support;
mod uplink;
