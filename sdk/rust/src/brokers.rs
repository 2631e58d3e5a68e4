//! Where the brokers are: at the addresses the user gave, and where brokers say that they are. A subscription holds one stream to each
//! broker, however many addresses lead to it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;
use trunkline_proto::v1;

/// Brokers that are kept in mind; a cluster has fewer.
const BROKERS_MAX: usize = 64;

/// Whom a session talks to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Target {
    /// Whoever answers at the n-th address that the user gave.
    Given(usize),
    /// This broker, of which others told.
    Told(u64),
}

/// What the one who greeted is to a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Claim {
    /// The session's broker: join.
    Held,
    /// One to which another session holds a stream: this one is not needed.
    Twice,
    /// Another broker than the one that is looked for.
    Other,
}

#[derive(Debug)]
struct Given {
    address: String,
    /// Who answered there last.
    broker: Option<u64>,
}

#[derive(Default, Debug)]
struct Table {
    given: Vec<Given>,
    /// Which brokers are where, by who says so: those with a stream, or the last one that had one.
    lists: BTreeMap<u64, BTreeMap<u64, String>>,
    /// Streams that have been greeted.
    held: BTreeMap<u64, Target>,
    /// Sessions under way.
    sessions: BTreeSet<Target>,
}

impl Table {
    fn told(&self, id: u64) -> Option<&String> {
        let own = self.lists.get(&id).and_then(|list| list.get(&id));
        own.or_else(|| self.lists.values().find_map(|list| list.get(&id)))
    }

    fn broker_of(&self, target: Target) -> Option<u64> {
        match target {
            Target::Told(id) => Some(id),
            Target::Given(n) => self.given.get(n)?.broker,
        }
    }

    /// Whether a session talks to that broker, or may turn out to.
    fn is_covered(&self, id: u64, address: &str) -> bool {
        self.held.contains_key(&id)
            || self.sessions.iter().any(|target| match *target {
                Target::Told(told) => told == id,
                Target::Given(n) => self.given.get(n).is_some_and(|given| match given.broker {
                    Some(broker) => broker == id,
                    None => authority(&given.address) == authority(address),
                }),
            })
    }

    fn missing(&mut self) -> Vec<Target> {
        let told: BTreeSet<u64> = self.lists.values().flat_map(BTreeMap::keys).copied().collect();
        let mut missing = Vec::new();
        for id in told {
            let covered = self.told(id).is_none_or(|address| self.is_covered(id, address));
            if !covered {
                self.sessions.insert(Target::Told(id));
                missing.push(Target::Told(id));
            }
        }
        missing
    }

    fn addresses(&self, target: Target) -> Vec<String> {
        let broker = self.broker_of(target);
        let mut addresses = Vec::new();
        if let Target::Given(n) = target {
            addresses.extend(self.given.get(n).map(|given| given.address.clone()));
        }
        addresses.extend(broker.and_then(|id| self.told(id)).cloned());
        let given = self.given.iter().filter(|given| broker.is_some() && given.broker == broker);
        addresses.extend(given.map(|given| given.address.clone()));
        let mut seen = BTreeSet::new();
        addresses.retain(|address| seen.insert(authority(address).to_owned()));
        addresses
    }

    fn greeted(&mut self, target: Target, address: &str, greeting: &v1::Brokers) -> Claim {
        let id = greeting.broker;
        for given in self.given.iter_mut().filter(|given| given.address == address) {
            given.broker = Some(id);
        }
        self.learn(greeting);
        match (target, self.held.get(&id)) {
            (Target::Told(told), _) if told != id => Claim::Other,
            (_, Some(holder)) if *holder != target => Claim::Twice,
            _ => {
                self.held.insert(id, target);
                Claim::Held
            }
        }
    }

    fn learn(&mut self, told: &v1::Brokers) {
        let list = told.brokers.iter().filter(|broker| !broker.grpc.is_empty()).take(BROKERS_MAX);
        let list: BTreeMap<_, _> = list.map(|broker| (broker.id, broker.grpc.clone())).collect();
        if list.is_empty() || (self.lists.len() >= BROKERS_MAX && !self.lists.contains_key(&told.broker)) {
            return;
        }
        self.lists.insert(told.broker, list);
        // what somebody said whose stream has ended counts while nobody else says anything
        let held = &self.held;
        self.lists.retain(|teller, _| *teller == told.broker || held.contains_key(teller));
    }

    fn released(&mut self, target: Target) {
        let Some((id, _)) = self.held.iter().find(|(_, holder)| **holder == target) else { return };
        let id = *id;
        self.held.remove(&id);
        if self.lists.keys().any(|teller| self.held.contains_key(teller)) {
            self.lists.remove(&id);
        }
    }
}

/// The host and port of an address.
fn authority(address: &str) -> &str {
    let address = address.split_once("://").map_or(address, |(_, rest)| rest);
    address.split('/').next().unwrap_or_default()
}

/// The brokers that a subscription knows. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Brokers(Arc<(Mutex<Table>, Notify)>);

impl Brokers {
    /// Those at the given addresses, for each of which a session is started.
    pub(crate) fn new(addresses: &[String]) -> (Self, Vec<Target>) {
        let given = addresses.iter().map(|address| Given { address: address.clone(), broker: None });
        let targets: Vec<Target> = (0..addresses.len()).map(Target::Given).collect();
        let table = Table { given: given.collect(), sessions: targets.iter().copied().collect(), ..Table::default() };
        (Self(Arc::new((Mutex::new(table), Notify::new()))), targets)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // a panic elsewhere leaves addresses as good as they were
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there may be brokers without a session.
    pub(crate) async fn changed(&self) {
        self.0.1.notified().await;
    }

    /// Brokers without a session, for each of which one is to be started.
    pub(crate) fn missing(&self) -> Vec<Target> {
        self.table().missing()
    }

    /// Where to look for a session's broker after so many attempts in vain. `None`: it is no broker of the cluster any more.
    pub(crate) fn address(&self, target: Target, attempts: usize) -> Option<String> {
        let addresses = self.table().addresses(target);
        addresses.get(attempts.checked_rem(addresses.len())?).cloned()
    }

    /// A broker has answered a session at this address.
    pub(crate) fn greeted(&self, target: Target, address: &str, greeting: &v1::Brokers) -> Claim {
        let claim = self.table().greeted(target, address, greeting);
        self.0.1.notify_one();
        claim
    }

    /// A broker tells where brokers are.
    pub(crate) fn learn(&self, told: &v1::Brokers) {
        self.table().learn(told);
        self.0.1.notify_one();
    }

    /// A session's stream has ended.
    pub(crate) fn released(&self, target: Target) {
        self.table().released(target);
    }

    /// A session is over.
    pub(crate) fn ended(&self, target: Target) {
        let mut table = self.table();
        table.released(target);
        table.sessions.remove(&target);
        drop(table);
        self.0.1.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(broker: u64, brokers: &[(u64, &str)]) -> v1::Brokers {
        let brokers = brokers.iter().map(|(id, grpc)| v1::BrokerAddress { id: *id, grpc: (*grpc).to_owned() });
        v1::Brokers { broker, brokers: brokers.collect() }
    }

    fn three(broker: u64) -> v1::Brokers {
        told(broker, &[(1, "a:1"), (2, "b:1"), (3, "c:1")])
    }

    fn brokers(addresses: &[&str]) -> Brokers {
        Brokers::new(&addresses.iter().map(|address| (*address).to_owned()).collect::<Vec<_>>()).0
    }

    #[test]
    fn the_others_are_learnt_from_one_and_each_gets_one_session() {
        let brokers = brokers(&["http://a:1"]);
        assert!(brokers.missing().is_empty());
        assert_eq!(brokers.greeted(Target::Given(0), "http://a:1", &three(1)), Claim::Held);
        assert_eq!(brokers.missing(), [Target::Told(2), Target::Told(3)]);
        assert!(brokers.missing().is_empty(), "once");
        assert_eq!(brokers.address(Target::Told(3), 0).as_deref(), Some("c:1"));
        // a fourth one is added later
        brokers.learn(&told(1, &[(1, "a:1"), (2, "b:1"), (3, "c:1"), (4, "d:1")]));
        assert_eq!(brokers.missing(), [Target::Told(4)]);
    }

    #[test]
    fn two_names_of_one_broker_make_one_stream() {
        let brokers = brokers(&["http://localhost:1", "b:1"]);
        assert_eq!(brokers.greeted(Target::Given(0), "http://localhost:1", &three(1)), Claim::Held);
        assert_eq!(brokers.missing(), [Target::Told(3)], "2 is given by that name, and 1 is held by another");
        assert_eq!(brokers.greeted(Target::Given(1), "b:1", &three(1)), Claim::Twice, "b:1 is broker 1 too");
        brokers.ended(Target::Given(1));
        assert_eq!(brokers.missing(), [Target::Told(2)]);
        assert_eq!(brokers.greeted(Target::Told(2), "b:1", &three(1)), Claim::Other);
    }

    #[test]
    fn an_address_that_leads_to_another_broker_now_leaves_none_without_a_session() {
        let brokers = brokers(&["any:1"]);
        brokers.greeted(Target::Given(0), "any:1", &three(2));
        assert_eq!(brokers.missing(), [Target::Told(1), Target::Told(3)]);
        brokers.greeted(Target::Told(1), "a:1", &three(1));
        brokers.released(Target::Given(0));
        assert!(brokers.missing().is_empty(), "it is coming back");
        assert_eq!(brokers.greeted(Target::Given(0), "any:1", &three(1)), Claim::Twice);
        brokers.ended(Target::Given(0));
        assert_eq!(brokers.missing(), [Target::Told(2)]);
        assert_eq!(brokers.address(Target::Told(1), 1).as_deref(), Some("any:1"), "tried too, after its own");
    }

    #[test]
    fn a_broker_that_was_removed_is_forgotten_once_its_stream_ends() {
        let brokers = brokers(&["a:1"]);
        brokers.greeted(Target::Given(0), "a:1", &three(1));
        brokers.missing();
        brokers.greeted(Target::Told(3), "c:1", &three(3));
        brokers.learn(&told(1, &[(1, "a:1"), (2, "b:1")]));
        assert!(brokers.address(Target::Told(3), 0).is_some(), "it says itself that it is there");
        brokers.released(Target::Told(3));
        assert_eq!(brokers.address(Target::Told(3), 0), None);
        // the last one heard counts while nobody is there
        brokers.released(Target::Given(0));
        assert_eq!(brokers.address(Target::Told(2), 5).as_deref(), Some("b:1"));
    }

    #[test]
    fn a_broker_that_moved_is_looked_for_where_others_say() {
        let brokers = brokers(&["a:1"]);
        brokers.greeted(Target::Given(0), "a:1", &three(1));
        brokers.missing();
        brokers.greeted(Target::Told(2), "b:1", &three(2));
        brokers.released(Target::Given(0));
        brokers.learn(&told(2, &[(1, "a:2"), (2, "b:1")]));
        let tried: Vec<_> = (0..3).filter_map(|n| brokers.address(Target::Given(0), n)).collect();
        assert_eq!(tried, ["a:1", "a:2", "a:1"]);
    }
}
