//! What leaves the state machine: verdicts, replies and deliveries. A closed set that drivers carry out on the leader only.

use smallvec::SmallVec;
use trunkline_proto::{ConnectionId, Entry, LogIndex, Offset, PartitionId, Record, Timestamp, v1};

/// An edge as the partition numbers it: the n-th edge name it has ever seen. Small, stable, the same on every replica.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct EdgeIndex(pub u32);

/// What apply made of a record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It took effect here.
    Applied,
    /// It will take effect at that partition: the leader forwards it from the log.
    Forwarded(PartitionId),
    /// It had and will have no effect; readers skip it.
    Refused(Refusal),
}

/// Why a record was refused. The numbers reach disk beside the entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// No such connection, or it is closed or closing.
    Gone,
    /// The edge's batch does not follow its last one.
    OutOfSequence,
    /// The edge's incarnation is lost or replaced, or never attached here.
    Fenced,
    /// The connection id is in use already.
    ConnectionExists,
    /// A commit or assignment of an epoch that is not current.
    StaleEpoch,
    /// A commit computed on another `base`, or an offset in it that is not open. A leader's close of a connection whose edge
    /// is well. A trim past what is still needed.
    NotOpen,
    /// A registration decision by a group that does not decide, or a second one, or one where none is asked for.
    NotPending,
    /// The idempotency key was used: the first use stands at `original` and had this result.
    Repeated {
        /// Where the first use stands.
        original: Offset,
        /// What it came to.
        code: v1::Code,
    },
    /// The idempotency key was used with another body.
    KeyReused,
    /// A forward that does not follow its source's last one.
    ForwardGap,
    /// A limit of the state: attributes, channels of a connection, holes, parked events, forwards that wait, names.
    Limit,
    /// The body does not decode or breaks a rule that holds for every state.
    Malformed,
    /// Part of a batch that was refused as a whole.
    WithBatch,
}

impl Refusal {
    /// What the sender of the record is told.
    pub fn code(&self) -> v1::Code {
        match self {
            Self::Gone => v1::Code::Gone,
            Self::StaleEpoch => v1::Code::StaleEpoch,
            Self::NotOpen => v1::Code::NotOpen,
            Self::Repeated { code, .. } => *code,
            Self::KeyReused => v1::Code::KeyReused,
            Self::Limit => v1::Code::Throttled,
            Self::Malformed => v1::Code::Invalid,
            Self::NotPending
            | Self::OutOfSequence
            | Self::Fenced
            | Self::ConnectionExists
            | Self::ForwardGap
            | Self::WithBatch => v1::Code::Refused,
        }
    }
}

/// What an accepted record came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Done {
    /// It took effect.
    Here,
    /// It waits in the outbox for that partition.
    Forwarded(PartitionId),
}

/// What one applied entry did.
#[derive(Clone, PartialEq, Debug)]
pub struct Applied {
    /// The entry's time, never before the one of the entry before it.
    pub time: Timestamp,
    /// One per batch of the entry, in order.
    pub outcomes: Vec<BatchOutcome>,
    /// Positions of refused records and why, ascending.
    pub refused: Vec<(u16, Refusal)>,
    /// Positions of records that take effect elsewhere, ascending.
    pub forwarded: Vec<(u16, PartitionId)>,
    /// What edges must be sent, in order.
    pub deliveries: Vec<EdgeDelivery>,
    /// Connections that are closed now, and what the state knew of how they came to be.
    pub closed: Vec<(ConnectionId, v1::Opening)>,
}

impl Applied {
    /// Nothing done yet.
    pub(super) fn new(time: Timestamp, batches: usize) -> Self {
        Self {
            time,
            outcomes: Vec::with_capacity(batches),
            refused: Vec::new(),
            forwarded: Vec::new(),
            deliveries: Vec::new(),
            closed: Vec::new(),
        }
    }

    /// Notes the verdict on the record at `position`; positions come in ascending order.
    pub(super) fn note(&mut self, position: u16, verdict: Result<Done, Refusal>) {
        match verdict {
            Ok(Done::Here) => {}
            Ok(Done::Forwarded(target)) => self.forwarded.push((position, target)),
            Err(refusal) => self.refused.push((position, refusal)),
        }
    }

    /// Refuses `count` records from `first` on: the first for `refusal`, the others with it.
    pub(super) fn refuse_batch(&mut self, first: u16, count: u16, refusal: &Refusal) {
        for n in 0..count {
            let reason = if n == 0 { refusal.clone() } else { Refusal::WithBatch };
            self.refused.push((first.saturating_add(n), reason));
        }
    }

    /// Sends `record` to one edge.
    pub(super) fn deliver(&mut self, position: u16, edge: EdgeIndex, record: Record) {
        self.deliver_to(position, Targets::Edges(SmallVec::from_slice(&[edge])), record);
    }

    /// Sends `record` to `targets`.
    pub(super) fn deliver_to(&mut self, position: u16, targets: Targets, record: Record) {
        self.deliveries.push(EdgeDelivery { position, targets, record });
    }

    /// The verdict on the record at `position`.
    pub fn verdict(&self, position: u16) -> Verdict {
        if let Ok(at) = self.refused.binary_search_by_key(&position, |(position, _)| *position) {
            return Verdict::Refused(self.refused[at].1.clone());
        }
        match self.forwarded.binary_search_by_key(&position, |(position, _)| *position) {
            Ok(at) => Verdict::Forwarded(self.forwarded[at].1),
            Err(_) => Verdict::Applied,
        }
    }
}

/// What became of one batch.
#[derive(Clone, PartialEq, Debug)]
pub struct BatchOutcome {
    /// Position of its first record.
    pub first: u16,
    /// How many records it holds.
    pub count: u16,
    /// What its sender is told.
    pub reply: Reply,
}

/// What a batch's sender is told beyond the verdicts of its records.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply {
    /// Nothing more.
    None,
    /// Edge batch: the last sequence applied for this edge after it. If that is not the batch's own, it was refused: resend
    /// from `last_sequence + 1`.
    Edge {
        /// Last applied.
        last_sequence: u64,
    },
    /// Edge batch of an incarnation that is lost (`replaced_by == incarnation`) or replaced by a higher one.
    Fenced {
        /// The incarnation this partition knows.
        current: u64,
    },
    /// EdgeAttached.
    Attached {
        /// Granted or confirmed.
        incarnation: u64,
        /// Last applied sequence of that incarnation.
        last_sequence: u64,
    },
    /// HandlerAssigned or GroupReset: the group as it is now.
    Group {
        /// Its epoch.
        epoch: u64,
        /// Settled up to here, except the holes.
        through: Offset,
    },
    /// Forward: the last source offset accepted from that partition.
    Watermark {
        /// The next forward's predecessor must be this.
        offset: Offset,
    },
}

/// Who gets a delivery.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Targets {
    /// These edges, ascending.
    Edges(SmallVec<[EdgeIndex; 2]>),
    /// Every edge attached to the partition.
    All,
}

impl Targets {
    /// Whether `edge` is among them.
    pub fn contains(&self, edge: EdgeIndex) -> bool {
        match self {
            Self::All => true,
            Self::Edges(edges) => edges.contains(&edge),
        }
    }
}

/// A record for edges: Pushed, Published, CloseRequested, ConnectionAccepted, ConnectionRejected, ChannelJoined, ChannelLeft.
#[derive(Clone, PartialEq, Debug)]
pub struct EdgeDelivery {
    /// Position of the record that caused it; several deliveries may share it.
    pub position: u16,
    /// Who gets it.
    pub targets: Targets,
    /// What they get: the log's own bytes, or a ChannelJoined/ChannelLeft made from an opened or accepted record.
    pub record: Record,
}

/// An entry with its verdicts, from the tail or from disk: what every reader of the log sees.
#[derive(Clone, PartialEq, Debug)]
pub struct LoggedEntry {
    /// Its place in the log.
    pub index: LogIndex,
    /// Parsed, sharing the stored bytes.
    pub entry: Entry,
    /// Positions of refused records and why, ascending.
    pub refused: Vec<(u16, Refusal)>,
}

impl LoggedEntry {
    /// Its records that were not refused, with their offsets.
    pub fn records(&self) -> impl Iterator<Item = (Offset, Record)> {
        self.raw_records()
            .filter(|(offset, _, _)| !self.is_refused(offset.position()))
            .map(|(offset, record, _)| (offset, record))
    }

    /// All its records with their offsets and the number of their batch.
    pub fn raw_records(&self) -> impl Iterator<Item = (Offset, Record, usize)> {
        // parsed entries hold well-formed records only
        let records = self
            .entry
            .batches
            .iter()
            .enumerate()
            .flat_map(|(batch, records)| records.iter().map_while(Result::ok).map(move |record| (record, batch)));
        records.enumerate().map(|(position, (record, batch))| (Offset::new(self.index, position as u16), record, batch))
    }

    /// Whether the record at `position` was refused.
    pub fn is_refused(&self, position: u16) -> bool {
        self.refusal(position).is_some()
    }

    /// Why the record at `position` was refused, if it was.
    pub fn refusal(&self, position: u16) -> Option<&Refusal> {
        let at = self.refused.binary_search_by_key(&position, |(position, _)| *position).ok()?;
        self.refused.get(at).map(|(_, refusal)| refusal)
    }
}

/// An entry that has just been applied: what the tail keeps and appenders get back.
#[derive(Clone, PartialEq, Debug)]
pub struct AppliedEntry {
    /// The entry with its verdicts (`logged.refused` equals `applied.refused`).
    pub logged: LoggedEntry,
    /// What it did.
    pub applied: Applied,
}
