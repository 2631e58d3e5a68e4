//! What to do with an edge's batch, by its sequence number, and what to tell the edge. Pure; one per attached stream.
//!
//! Apply decides in the end: this only keeps what cannot be accepted out of the log, and turns the log's answers into
//! few frames.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)] // no clock, no hash order

/// What to do with a batch that was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Put it into the log.
    Append,
    /// It is in the log, or on its way there: the answer to the first one serves it.
    Duplicate,
    /// It does not follow: say so, unless that has been said.
    Gap,
}

/// Follows the sequence numbers of one stream.
#[derive(Debug)]
pub struct Sequencer {
    /// The next batch to put into the log.
    expected: u64,
    /// The last one known to be applied.
    applied: u64,
    /// What the edge has been told last.
    told: u64,
    /// The edge has been told to resend and has not begun to.
    resending: bool,
    /// To be told.
    resend: bool,
}

impl Sequencer {
    /// For a stream attached at `last_sequence`, of which the edge has been told.
    pub fn new(last_sequence: u64) -> Self {
        Self {
            expected: last_sequence.saturating_add(1),
            applied: last_sequence,
            told: last_sequence,
            resending: false,
            resend: false,
        }
    }

    /// A batch was read.
    pub fn handle_batch(&mut self, sequence: u64) -> Step {
        if sequence == self.expected {
            self.expected = sequence.saturating_add(1);
            self.resending = false;
            return Step::Append;
        }
        if sequence < self.expected {
            if sequence <= self.applied {
                // the edge has not heard that it is applied: say it again
                self.told = self.told.min(sequence.saturating_sub(1));
            }
            self.resending = false;
            return Step::Duplicate;
        }
        self.resend |= !self.resending;
        Step::Gap
    }

    /// The log has answered a batch: `last` is the last one applied after it.
    pub fn handle_applied(&mut self, sequence: u64, last: u64) {
        self.applied = self.applied.max(last);
        if last < sequence {
            // refused: what followed it is refused as well, and the edge begins again after `last`
            self.expected = last.saturating_add(1);
            self.resend |= !self.resending;
        } else {
            self.expected = self.expected.max(last.saturating_add(1));
        }
    }

    /// What the edge is to be told now: `Applied`, the newest only.
    pub fn take_applied(&mut self) -> Option<u64> {
        (self.applied > self.told).then(|| {
            self.told = self.applied;
            self.applied
        })
    }

    /// What the edge is to be told now: `Resend` after this sequence. Once per gap.
    pub fn take_resend(&mut self) -> Option<u64> {
        std::mem::take(&mut self.resend).then(|| {
            self.resending = true;
            self.told = self.told.max(self.applied);
            self.applied
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_order_is_appended_and_answers_are_coalesced() {
        let mut stream = Sequencer::new(4);
        assert_eq!(stream.take_applied(), None);
        for sequence in 5..=8 {
            assert_eq!(stream.handle_batch(sequence), Step::Append);
        }
        stream.handle_applied(5, 5);
        stream.handle_applied(6, 6);
        stream.handle_applied(7, 7);
        assert_eq!(stream.take_applied(), Some(7));
        assert_eq!(stream.take_applied(), None);
        assert_eq!(stream.take_resend(), None);
    }

    #[test]
    fn a_resend_of_what_is_applied_is_answered_again() {
        let mut stream = Sequencer::new(4);
        stream.handle_batch(5);
        stream.handle_applied(5, 5);
        assert_eq!(stream.take_applied(), Some(5));
        assert_eq!(stream.handle_batch(5), Step::Duplicate);
        assert_eq!(stream.take_applied(), Some(5));
        // of what is on its way, the first one's answer serves
        stream.handle_batch(6);
        assert_eq!(stream.handle_batch(6), Step::Duplicate);
        assert_eq!(stream.take_applied(), None);
        stream.handle_applied(6, 6);
        assert_eq!(stream.take_applied(), Some(6));
    }

    #[test]
    fn a_gap_is_told_once_until_the_edge_resends() {
        let mut stream = Sequencer::new(0);
        stream.handle_batch(1);
        stream.handle_applied(1, 1);
        assert_eq!(stream.handle_batch(4), Step::Gap);
        assert_eq!(stream.take_resend(), Some(1));
        assert_eq!(stream.handle_batch(5), Step::Gap);
        assert_eq!(stream.take_resend(), None);
        assert_eq!(stream.handle_batch(2), Step::Append);
        assert_eq!(stream.handle_batch(9), Step::Gap);
        assert_eq!(stream.take_resend(), Some(1), "2 is not applied yet: never say it is");
        assert_eq!(stream.handle_batch(2), Step::Duplicate);
        assert_eq!(stream.handle_batch(3), Step::Append);
    }

    #[test]
    fn refused_by_the_log_begins_again_once() {
        let mut stream = Sequencer::new(0);
        for sequence in 1..=4 {
            stream.handle_batch(sequence);
        }
        stream.handle_applied(1, 1);
        for sequence in 2..=4 {
            stream.handle_applied(sequence, 1);
        }
        assert_eq!(stream.take_resend(), Some(1));
        assert_eq!(stream.take_applied(), None, "Resend says it");
        assert_eq!(stream.handle_batch(2), Step::Append);
    }

    #[test]
    fn applied_through_another_stream_moves_on() {
        // an earlier stream of the same incarnation had 1 to 3 on their way when this one attached at 0
        let mut stream = Sequencer::new(0);
        stream.handle_batch(1);
        stream.handle_applied(1, 3);
        assert_eq!(stream.take_applied(), Some(3));
        assert_eq!(stream.handle_batch(2), Step::Duplicate);
        assert_eq!(stream.handle_batch(3), Step::Duplicate);
        assert_eq!(stream.handle_batch(4), Step::Append);
        assert_eq!(stream.take_resend(), None);
    }

    #[test]
    fn the_largest_sequence_does_not_overflow() {
        let mut stream = Sequencer::new(u64::MAX);
        assert_eq!(stream.handle_batch(u64::MAX), Step::Append);
        stream.handle_applied(u64::MAX, u64::MAX);
        assert_eq!(stream.handle_batch(0), Step::Duplicate);
    }
}
