//! Who there is, and what they say to each other. A message may be lost, come late, twice or after a later one; what the product
//! sends over one ordered stream carries a number here ([`Body::Down`]) and the stream breaks where one is missing.

use trunkline_proto::{Batch, Offset, PartitionId, Record, link::Frame, link::UplinkBatch, v1};

use crate::raft;

/// A process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Node {
    Broker(u8),
    Edge(u8),
    /// Of the handler group.
    Member(u8),
    /// Submits commands.
    Backend,
}

/// What one says to another.
#[derive(Clone, Debug)]
pub(crate) enum Body {
    Raft(PartitionId, raft::Message),
    /// An edge process asks for an incarnation.
    Grant {
        edge: u8,
        nonce: u64,
    },
    Granted {
        nonce: u64,
        incarnation: u64,
    },
    /// The edge is alive.
    Ping {
        edge: u8,
        incarnation: u64,
    },
    Attach {
        partition: PartitionId,
        edge: u8,
        incarnation: u64,
        stream: u64,
        after: Offset,
    },
    Batch {
        partition: PartitionId,
        edge: u8,
        stream: u64,
        batch: UplinkBatch,
    },
    /// The n-th frame of a stream.
    Down {
        partition: PartitionId,
        stream: u64,
        n: u64,
        frame: Frame,
    },
    /// The handler member is alive.
    MemberPing {
        member: u8,
    },
    Events {
        partition: PartitionId,
        epoch: u64,
        events: Vec<(Offset, u32, Record)>,
    },
    Commit {
        commit: v1::Commit,
    },
    Submit {
        partition: PartitionId,
        id: u64,
        batch: Batch,
    },
    Submitted {
        id: u64,
    },
    Forward {
        to: PartitionId,
        from: PartitionId,
        ticket: u64,
        batch: Batch,
    },
    /// Without a watermark: not the leader.
    Forwarded {
        to: PartitionId,
        from: PartitionId,
        ticket: u64,
        watermark: Option<Offset>,
    },
}
