//! How many messages one client address sends to an API, over all its connections. A bounded table, shared by shards.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{Bucket, Millis, Rate, addresses::Neighbourhood};

/// Most addresses told apart; those beyond share one rate. One is forgotten when it has no connection and its rate is as new.
const ADDRESSES_MAX: usize = 1 << 16;
/// A table of fewer is not looked through for what may be forgotten.
const SWEEP_MIN: usize = 64;
/// It is looked through at most so often.
const SWEEP_PERIOD: Millis = Millis::from_secs(1);

/// What the connections of one address have used up together of a [`Rate`]. Shards that use it have a common clock.
#[derive(Debug)]
pub struct SharedBucket {
    rate: Rate,
    full_at: AtomicU64,
}

impl SharedBucket {
    /// Nothing is taken yet.
    pub fn new(rate: Rate) -> Self {
        Self { rate, full_at: AtomicU64::new(0) }
    }

    /// Takes one; `false` if they are too fast.
    pub(crate) fn take(&self, now: Millis) -> bool {
        let taken = self.full_at.try_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
            let mut bucket = Bucket::of(full_at);
            bucket.take(now, self.rate).then_some(bucket.full_at())
        });
        taken.is_ok()
    }

    /// Takes so many, whatever is left: what is too much is owed.
    pub(crate) fn spend(&self, now: Millis, count: u64) {
        let spent = |full_at| {
            let mut bucket = Bucket::of(full_at);
            bucket.spend(now, self.rate, count);
            bucket.full_at()
        };
        self.full_at.update(Ordering::Relaxed, Ordering::Relaxed, spent);
    }

    /// Whether nothing is left to take.
    pub(crate) fn is_spent(&self, now: Millis) -> bool {
        Bucket::of(self.full_at.load(Ordering::Relaxed)).is_spent(now, self.rate)
    }

    fn is_full(&self, now: Millis) -> bool {
        Bucket::of(self.full_at.load(Ordering::Relaxed)).is_full(now)
    }
}

/// Who sends, by address.
#[derive(Debug)]
pub struct Senders {
    rate: Rate,
    entries: BTreeMap<Neighbourhood, Arc<SharedBucket>>,
    swept: Option<Millis>,
    /// So many entries make looking through them worth it.
    sweep_at: usize,
}

impl Senders {
    /// Nobody, each at this rate.
    pub fn new(rate: Rate) -> Self {
        Self { rate, entries: BTreeMap::new(), swept: None, sweep_at: SWEEP_MIN }
    }

    /// What a connection from there takes of. It counts as one of that address for as long as it holds this.
    pub fn join(&mut self, now: Millis, address: IpAddr) -> Arc<SharedBucket> {
        let mut neighbourhood = Neighbourhood::from(address);
        if !self.entries.contains_key(&neighbourhood) {
            self.sweep(now);
            if self.entries.len() >= ADDRESSES_MAX {
                neighbourhood = Neighbourhood::Others;
            }
        }
        let rate = self.rate;
        Arc::clone(self.entries.entry(neighbourhood).or_insert_with(|| Arc::new(SharedBucket::new(rate))))
    }

    fn sweep(&mut self, now: Millis) {
        let is_soon = self.swept.is_some_and(|swept| now < swept + SWEEP_PERIOD);
        if self.entries.len() < self.sweep_at || is_soon {
            return;
        }
        self.swept = Some(now);
        self.entries.retain(|_, bucket| Arc::strong_count(bucket) > 1 || !bucket.is_full(now));
        // half of them at least are new by the next time: each costs two looks
        self.sweep_at = (self.entries.len() * 2).clamp(SWEEP_MIN, ADDRESSES_MAX);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn address(n: usize) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from_bits(n as u32))
    }

    #[test]
    fn connections_of_an_address_share_its_rate_and_coming_anew_gives_no_new_one() {
        let mut senders = Senders::new(Rate::of(10));
        let taken = |bucket: &SharedBucket, now| (0..100).filter(|_| bucket.take(Millis(now))).count();
        let (one, two) = (senders.join(Millis(1000), address(1)), senders.join(Millis(1000), address(1)));
        let other = senders.join(Millis(1000), address(2));
        assert_eq!([taken(&one, 1000), taken(&two, 1000), taken(&other, 1000)], [20, 0, 20]);
        drop((one, two));
        // somebody else's coming has the table looked through
        (10..200).for_each(|n| drop(senders.join(Millis(1500), address(n))));
        assert_eq!(taken(&senders.join(Millis(1500), address(1)), 1500), 5);
        let networks = ["2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"]
            .map(|text| senders.join(Millis(9000), text.parse().unwrap()));
        assert!(Arc::ptr_eq(&networks[0], &networks[1]) && !Arc::ptr_eq(&networks[0], &networks[2]));
    }

    #[test]
    fn the_table_is_bounded_and_forgets_who_has_gone() {
        let mut senders = Senders::new(Rate::of(10));
        let mut held: Vec<_> = (0..ADDRESSES_MAX + 50).map(|n| senders.join(Millis(1), address(n))).collect();
        assert_eq!(senders.entries.len(), ADDRESSES_MAX + 1);
        assert!(Arc::ptr_eq(&held[ADDRESSES_MAX], &held[ADDRESSES_MAX + 49]), "those beyond share one rate");
        held.truncate(10);
        assert!(held[3].take(Millis(5000)));
        drop(held);
        let _new = senders.join(Millis(5050), address(ADDRESSES_MAX + 99));
        assert_eq!(senders.entries.len(), 2, "one whose rate still counts, and the new one");
    }
}
