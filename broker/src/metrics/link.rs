//! Metrics of the edge link and of delivery. `edge` is a certificate's name: operators mint it, clients cannot.

use ::metrics::{describe_counter, describe_gauge};

/// Records the slowest delivery cursor of an edge is behind, by edge.
pub const DELIVERY_LAG_RECORDS: &str = "trunkline_delivery_lag_records";
/// Deliveries handed to edges, records.
pub const DELIVERIES_TOTAL: &str = "trunkline_deliveries_total";
/// Bytes of frames written to edges.
pub const LINK_BYTES_SENT_TOTAL: &str = "trunkline_link_sent_bytes_total";
/// Bytes of batches read from edges.
pub const LINK_BYTES_RECEIVED_TOTAL: &str = "trunkline_link_received_bytes_total";
/// QUIC connections that came to nothing, by reason: handshake, identity, hello, busy.
pub const LINK_REFUSED_TOTAL: &str = "trunkline_link_refused_total";
/// Frames that broke the protocol; the stream was closed.
pub const LINK_INVALID_TOTAL: &str = "trunkline_link_invalid_frames_total";
/// Edges whose control stream is up.
pub const LINK_EDGES: &str = "trunkline_link_edges";
/// Edges declared lost by this broker.
pub const EDGES_LOST_TOTAL: &str = "trunkline_edges_lost_total";
/// Unlogged publishes that were dropped because an edge's queue was full.
pub const UNLOGGED_DROPPED_TOTAL: &str = "trunkline_unlogged_dropped_total";

pub(super) fn describe() {
    describe_gauge!(DELIVERY_LAG_RECORDS, "Records the slowest delivery cursor of an edge is behind");
    describe_counter!(DELIVERIES_TOTAL, "Records handed to edges");
    describe_counter!(LINK_BYTES_SENT_TOTAL, "Bytes of frames written to edges");
    describe_counter!(LINK_BYTES_RECEIVED_TOTAL, "Bytes of batches read from edges");
    describe_counter!(LINK_REFUSED_TOTAL, "Link connections refused, by reason");
    describe_counter!(LINK_INVALID_TOTAL, "Link frames that broke the protocol");
    describe_gauge!(LINK_EDGES, "Edges whose control stream is up");
    describe_counter!(EDGES_LOST_TOTAL, "Edges declared lost by this broker");
    describe_counter!(UNLOGGED_DROPPED_TOTAL, "Unlogged publishes dropped because an edge's queue was full");
}
