//! How the connections of a partition share a member's credit. Pure.
//!
//! A handler works on one event of a connection after the other; what a connection has in flight besides only saves the way there and
//! back. So a connection may hold as many credits as are free besides, and no more: with `n` connections that want all they can get,
//! each has one part in `n + 1`. However many clients send faster than their events are handled, credits stay free for those that have
//! none in flight, and the last of them ([`RESERVE`]) for new connections, whose clients wait for an answer.
//! docs/adr/0004-order-within-a-connection.md has the reasons.

/// Most events of one connection in flight, however many credits are free: at ten milliseconds from delivery to commit a connection
/// alone still gets more than ten thousand events a second.
pub const CONNECTION_EVENTS_MAX: usize = 128;
/// Most bytes of records of one connection in flight, unless a single one has more.
pub const CONNECTION_BYTES_MAX: usize = 4 << 20;
/// One of so many credits a connection may hold however few are free.
const FEW: usize = 64;
/// One of so many credits is for new connections alone.
const RESERVE: usize = 8;

/// Credits of a member that nobody holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Free {
    credits: usize,
    few: usize,
    reserved: usize,
}

impl Free {
    /// So many of `limit`.
    pub const fn new(limit: usize, credits: usize) -> Self {
        Self { credits, few: limit / FEW, reserved: limit / RESERVE }
    }

    /// Whether only the reserve is left.
    pub fn is_short(self) -> bool {
        self.credits <= self.reserved
    }

    /// Whether there is such a one.
    pub fn has(self, wanted: Wanted) -> bool {
        match wanted {
            Wanted::Any => self.credits > 0,
            Wanted::Common => !self.is_short(),
        }
    }

    pub(super) fn allows(self, rank: Rank) -> bool {
        let others = self.credits.saturating_sub(self.reserved);
        match rank {
            Rank::Opens => self.credits > 0,
            Rank::Holds(held) => others > 0 && (others > held || held < self.few),
        }
    }
}

/// A credit that is waited for. Not a number of them: the reserve changes with the limit, also while somebody waits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Wanted {
    /// Whichever it is: for a new connection.
    Any,
    /// One that is not of the reserve.
    Common,
}

/// Who comes first to a free credit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Rank {
    /// A new connection.
    Opens,
    /// One that holds so many credits: the fewer the earlier.
    Holds(usize),
}

impl Rank {
    /// Of a connection that has nothing in flight.
    pub(super) fn is_first(self) -> bool {
        matches!(self, Self::Opens | Self::Holds(0))
    }

    /// What an event of a connection that holds none waits for.
    pub(super) fn wanted(self) -> Wanted {
        if self == Self::Opens { Wanted::Any } else { Wanted::Common }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_that_want_everything_leave_credits_for_others() {
        for (limit, connections, each) in
            [(1024, 1, 128), (1024, 8, 99), (1024, 32, 27), (16, 1, 7), (4, 1, 2), (10_000, 3, 128)]
        {
            let mut held = vec![0; connections];
            let free = |held: &[usize]| Free::new(limit, limit - held.iter().sum::<usize>());
            while let Some(next) = (0..connections).min_by_key(|n| held[*n])
                && held[next] < CONNECTION_EVENTS_MAX
                && free(&held).allows(Rank::Holds(held[next]))
            {
                held[next] += 1;
            }
            assert_eq!(held[connections - 1], each, "{connections} of {limit}");
            assert!(free(&held).allows(Rank::Holds(0)) && !free(&held).is_short());
        }
    }

    #[test]
    fn a_few_credits_are_anyones_while_there_are_any() {
        let low = Free::new(1024, 129);
        assert!(low.allows(Rank::Holds(15)) && !low.allows(Rank::Holds(16)));
    }

    #[test]
    fn last_credits_are_for_new_connections_and_one_is_enough_for_everything() {
        let last = Free::new(1024, 128);
        assert!(last.allows(Rank::Opens) && !last.allows(Rank::Holds(0)));
        assert!(!Free::new(1024, 0).allows(Rank::Opens));
        assert!(Free::new(1, 1).allows(Rank::Holds(0)), "a member with one credit gets messages");
    }
}
