//! Registrations that were asked for and not answered: their functions may have run. A bounded memory of this process; the close of such
//! a connection follows within moments of its being turned away.

use std::collections::{BTreeSet, VecDeque};

use parking_lot::Mutex;

/// Most of them. With more the oldest are forgotten, and not cleaned up.
const UNANSWERED_MAX: usize = 10_000;

/// See the module's head.
#[derive(Debug, Default)]
pub(crate) struct Unanswered(Mutex<Connections>);

/// By their ids' text.
#[derive(Debug, Default)]
struct Connections {
    ids: BTreeSet<String>,
    /// In the order they came; those that were forgotten are passed over.
    order: VecDeque<String>,
}

impl Unanswered {
    pub(crate) fn remember(&self, id: &str) {
        let mut connections = self.0.lock();
        if connections.ids.insert(id.to_owned()) {
            connections.order.push_back(id.to_owned());
        }
        while connections.order.len() > UNANSWERED_MAX {
            if let Some(oldest) = connections.order.pop_front() {
                connections.ids.remove(&oldest);
            }
        }
    }

    pub(crate) fn has(&self, id: &str) -> bool {
        self.0.lock().ids.contains(id)
    }

    pub(crate) fn forget(&self, id: &str) {
        self.0.lock().ids.remove(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_are_forgotten_when_there_are_many() {
        let unanswered = Unanswered::default();
        for n in 0..=UNANSWERED_MAX {
            unanswered.remember(&n.to_string());
            unanswered.remember(&n.to_string());
        }
        assert_eq!([0, 1, UNANSWERED_MAX].map(|n| unanswered.has(&n.to_string())), [false, true, true]);
        unanswered.forget("1");
        assert!(!unanswered.has("1"));
        assert!(unanswered.0.lock().order.len() <= UNANSWERED_MAX);
    }
}
