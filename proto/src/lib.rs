//! Wire and disk types: ids and positions, records, log entries, link frames and the gRPC services.
//! No IO, no clock, no tokio: every other crate builds on this one and it builds on none.

pub mod address;
pub mod close;
pub mod entry;
pub mod ids;
pub mod json;
pub mod limits;
pub mod link;
pub mod peer;
pub mod record;
pub mod secret;
#[cfg(test)]
mod tests;
pub mod text;
pub mod token;
pub mod units;

pub use close::CloseCode;
pub use entry::{Batch, Entry, EntryBuilder, EntryError, Source};
pub use ids::{ConnectionId, LogIndex, Offset, PartitionCount, PartitionId, Timestamp};
pub use record::{Record, RecordError, RecordKind};

/// Messages and services generated from `proto/trunkline/v1/*.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("trunkline.v1");

    /// Control frames of the edge link.
    pub mod link {
        tonic::include_proto!("trunkline.v1.link");
    }

    /// Messages between brokers.
    pub mod peer {
        tonic::include_proto!("trunkline.v1.peer");
    }
}

/// The compiled descriptors of every proto file, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor.bin"));
