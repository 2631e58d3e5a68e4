//! What a flow has to say to the log: the commits it makes, and what it leaves behind.

use std::time::Duration;

use trunkline_proto::Offset;

/// What becomes of an event in a commit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Done.
    Acknowledged,
    /// To be delivered again after `delay`.
    Refused {
        /// From when the commit is applied.
        delay: Duration,
        /// Given back untried: the attempt stays.
        released: bool,
    },
    /// Set aside as a dead letter.
    Parked {
        /// Why.
        reason: String,
        /// How often it was delivered.
        attempt: u32,
    },
}

/// An event that stays open at or below a commit's or an assignment's `through`. It may be delivered at once: one that
/// was refused with a delay is known to the state already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hole {
    /// Which.
    pub offset: Offset,
    /// Of its next delivery.
    pub attempt: u32,
}

/// A commit as it must go into the log: everything a `HandlerCommitted` record says beyond group, member and epoch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Proposal {
    /// The settled prefix it is computed on.
    pub base: Offset,
    /// The settled prefix after it.
    pub through: Offset,
    /// In order of offsets.
    pub outcomes: Vec<(Offset, Outcome)>,
    /// Events in (base, through] that stay open.
    pub holes: Vec<Hole>,
}

/// Why a commit is refused before it reaches the log. Nothing happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NotOpen {
    /// Never delivered in this epoch, settled already, or part of a commit that is under way.
    #[error("offset {0} is not in flight to this member")]
    NotInFlight(Offset),
    /// Twice in one commit.
    #[error("offset {0} stands twice in this commit")]
    Twice(Offset),
}

/// What the next member must be told when this one is gone: goes into `HandlerAssigned`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Leftover {
    /// The settled prefix it is computed on.
    pub base: Offset,
    /// Raised over everything that was given.
    pub through: Offset,
    /// What stays open and changed: given and not settled (attempt + 1), or newly at or below `through`.
    pub holes: Vec<Hole>,
}
