//! Back-pressure to clients: which APIs of an attached edge are paused, because their handler group is too far behind. Pure.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)] // no clock, no hash order

use std::collections::BTreeMap;

use trunkline_proto::v1::link as pb;

/// Most APIs an edge may name when it attaches.
pub(super) const APIS_MAX: usize = 1024;

/// An API's rule.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Rule {
    handler_group: String,
    /// Events the group may be behind.
    max_lag: u64,
    paused: bool,
}

/// The APIs of one attached edge that ask for a bound.
#[derive(Debug)]
pub(super) struct Pauses {
    rules: BTreeMap<String, Rule>,
}

impl Pauses {
    /// Of those the edge named when it attached; a bound of 0 is none.
    pub(super) fn new(apis: &[pb::Api]) -> Self {
        let bounded = apis.iter().filter(|api| api.max_handler_lag > 0);
        let rules = bounded.map(|api| {
            let rule = Rule { handler_group: api.handler_group.clone(), max_lag: api.max_handler_lag, paused: false };
            (api.name.clone(), rule)
        });
        Self { rules: rules.collect() }
    }

    /// Whether there is anything to watch.
    pub(super) fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Looks at the lags anew; `lag(group)` in events, `None` where the group does not exist. Pauses above the bound, goes on at
    /// half of it, so that sockets do not stutter. Gives the whole paused set if it has changed.
    pub(super) fn handle_lags(&mut self, lag: impl Fn(&str) -> Option<u64>) -> Option<Vec<String>> {
        let mut changed = false;
        for rule in self.rules.values_mut() {
            let lag = lag(&rule.handler_group).unwrap_or(0);
            let paused = if rule.paused { lag > rule.max_lag / 2 } else { lag > rule.max_lag };
            changed |= paused != rule.paused;
            rule.paused = paused;
        }
        changed.then(|| self.rules.iter().filter(|(_, rule)| rule.paused).map(|(api, _)| api.clone()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api(name: &str, max_handler_lag: u64) -> pb::Api {
        pb::Api { name: name.to_owned(), handler_group: format!("{name}-group"), max_handler_lag }
    }

    #[test]
    fn pauses_above_the_bound_and_goes_on_at_half_of_it() {
        let mut pauses = Pauses::new(&[api("chat", 100), api("free", 0)]);
        let mut at = |lag: u64| pauses.handle_lags(|group| (group == "chat-group").then_some(lag));
        assert_eq!(at(100), None);
        assert_eq!(at(101), Some(vec!["chat".to_owned()]));
        assert_eq!(at(5000), None, "said already");
        assert_eq!(at(51), None);
        assert_eq!(at(50), Some(vec![]));
    }

    #[test]
    fn the_whole_set_is_told() {
        let mut pauses = Pauses::new(&[api("a", 10), api("b", 20)]);
        assert_eq!(pauses.handle_lags(|_| Some(15)), Some(vec!["a".to_owned()]));
        assert_eq!(pauses.handle_lags(|_| Some(25)), Some(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(pauses.handle_lags(|_| None), Some(vec![]), "no such group: nothing to wait for");
    }

    #[test]
    fn nothing_bounded_is_empty() {
        assert!(Pauses::new(&[api("a", 0)]).is_empty());
        assert!(!Pauses::new(&[api("a", 1)]).is_empty());
    }
}
