//! What the edge knows about brokers: their addresses, the connection to each, and who leads which partition.

use std::{collections::BTreeMap, time::Duration};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use trunkline_proto::PartitionId;

use crate::config::BrokerAddress;

/// Most brokers an edge learns of: what brokers say is bounded too.
const BROKERS_MAX: usize = 256;
/// Most addresses kept of one broker: the configured one, and those learnt last.
const ADDRESSES_MAX: usize = 4;

type Connection = watch::Sender<Option<quinn::Connection>>;

/// Shared by the link's tasks.
#[derive(Debug)]
pub(crate) struct Directory {
    inner: Mutex<Inner>,
    /// A broker was learnt.
    learnt: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    brokers: BTreeMap<u64, Broker>,
    leaders: BTreeMap<PartitionId, u64>,
}

#[derive(Debug)]
struct Broker {
    /// Never empty. The first one stays: the configured one, or what was heard first. Those after it have been learnt, the newest
    /// last. Brokers may say different things about one that moves, and only its certificate tells who is right: all are tried
    /// in turn.
    addresses: Vec<String>,
    connection: Connection,
}

impl Broker {
    fn learn(&mut self, address: &str) {
        if self.addresses.iter().any(|known| known == address) {
            return;
        }
        if self.addresses.len() >= ADDRESSES_MAX {
            self.addresses.remove(1);
        }
        self.addresses.push(address.to_owned());
    }
}

impl Directory {
    pub(crate) fn new(brokers: &[BrokerAddress]) -> Self {
        let directory = Self { inner: Mutex::default(), learnt: Notify::new() };
        for broker in brokers {
            directory.learn(broker.id, &broker.link);
        }
        directory
    }

    /// A broker and where its link is, maybe elsewhere than before.
    pub(crate) fn learn(&self, id: u64, address: &str) {
        let mut inner = self.inner.lock();
        if id == 0 || address.is_empty() {
            return;
        }
        if let Some(broker) = inner.brokers.get_mut(&id) {
            broker.learn(address);
        } else if inner.brokers.len() < BROKERS_MAX {
            let broker = Broker { addresses: vec![address.to_owned()], connection: watch::Sender::new(None) };
            inner.brokers.insert(id, broker);
            self.learnt.notify_one();
        }
    }

    /// Waits until a broker may have been learnt.
    pub(crate) async fn learnt(&self) {
        self.learnt.notified().await;
    }

    /// Every broker known.
    pub(crate) fn brokers(&self) -> Vec<u64> {
        self.inner.lock().brokers.keys().copied().collect()
    }

    /// Where to look for a broker after so many attempts in vain: at each of its addresses in turn, and once round, at the next
    /// of those that a name resolves to (the second number, to be taken modulo how many these are).
    pub(crate) fn address(&self, id: u64, failures: usize) -> Option<(BrokerAddress, usize)> {
        let inner = self.inner.lock();
        let addresses = &inner.brokers.get(&id)?.addresses;
        let link = addresses.get(failures % addresses.len())?.clone();
        Some((BrokerAddress { id, link }, failures / addresses.len()))
    }

    /// Who leads a partition, as a broker says; 0: nobody known.
    pub(crate) fn note_leader(&self, partition: PartitionId, leader: u64, address: &str) {
        self.learn(leader, address);
        let mut inner = self.inner.lock();
        match leader {
            0 => inner.leaders.remove(&partition),
            leader => inner.leaders.insert(partition, leader),
        };
    }

    /// A broker does not serve a partition now.
    pub(crate) fn forget_leader(&self, partition: PartitionId, broker: u64) {
        let mut inner = self.inner.lock();
        if inner.leaders.get(&partition) == Some(&broker) {
            inner.leaders.remove(&partition);
        }
    }

    /// Whom to ask about a partition: its leader, else whoever comes after the one asked last.
    pub(crate) fn pick(&self, partition: PartitionId, last: u64) -> Option<u64> {
        let inner = self.inner.lock();
        let leader = inner.leaders.get(&partition).filter(|leader| inner.brokers.contains_key(leader));
        let after = || inner.brokers.range(last.saturating_add(1)..).chain(&inner.brokers).map(|(id, _)| id).next();
        leader.or_else(after).copied()
    }

    /// The connection to a broker, once there is one; `None` after `patience`.
    pub(crate) async fn connection(&self, broker: u64, patience: Duration) -> Option<quinn::Connection> {
        let mut connection = self.inner.lock().brokers.get(&broker)?.connection.subscribe();
        let found = tokio::time::timeout(patience, connection.wait_for(Option::is_some)).await;
        found.ok()?.ok()?.clone()
    }

    /// There is a connection to a broker, or none any more.
    pub(crate) fn set_connection(&self, broker: u64, connection: Option<quinn::Connection>) {
        if let Some(broker) = self.inner.lock().brokers.get(&broker) {
            broker.connection.send_replace(connection);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: PartitionId = PartitionId(3);

    #[test]
    fn leader_is_asked_first_and_others_in_turn() {
        let directory = Directory::new(&["1@a:1".parse().unwrap(), "5@b:1".parse().unwrap()]);
        assert_eq!((directory.pick(P, 0), directory.pick(P, 1), directory.pick(P, 5)), (Some(1), Some(5), Some(1)));
        directory.note_leader(P, 7, "");
        assert_eq!(directory.pick(P, 1), Some(5), "nobody knows where 7 is");
        directory.note_leader(P, 7, "c:1");
        assert_eq!(directory.pick(P, 1), Some(7));
        directory.forget_leader(P, 5);
        assert_eq!(directory.pick(P, 7), Some(7), "5 did not lead anyway");
        directory.forget_leader(P, 7);
        assert_eq!(directory.pick(P, 7), Some(1));
    }

    #[test]
    fn every_address_of_a_broker_that_moves_is_tried_in_turn() {
        let directory = Directory::new(&["1@a:1".parse().unwrap()]);
        let at = |failures| directory.address(1, failures).map(|(address, round)| (address.link, round)).unwrap();
        assert_eq!([at(0), at(1)], [("a:1".to_owned(), 0), ("a:1".to_owned(), 1)]);
        directory.note_leader(P, 1, "b:1");
        directory.learn(1, "b:1");
        assert_eq!([at(0).0, at(1).0, at(2).0], ["a:1", "b:1", "a:1"]);
        for port in 2..10 {
            directory.learn(1, &format!("b:{port}"));
        }
        assert_eq!([at(0).0, at(1).0, at(2).0, at(3).0, at(4).0], ["a:1", "b:7", "b:8", "b:9", "a:1"]);
        assert_eq!(at(4).1, 1);
        assert_eq!(directory.address(2, 0), None);
    }
}
