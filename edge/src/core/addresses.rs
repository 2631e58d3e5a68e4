//! What one client address may do: connections at once, handshakes per second. A bounded table.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
};

use super::{Millis, Rate, rate::Bucket};

/// Most addresses told apart. With their connections and handshakes they are forgotten when they have neither; those beyond share one entry.
const ADDRESSES_MAX: usize = 1 << 16;
/// A full table is looked through for what may be forgotten at most so often.
const SWEEP_PERIOD: Millis = Millis::from_secs(1);

/// Bounds of one address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AddressLimits {
    /// Connections and handshakes at once; 0: unbounded.
    pub connections: u32,
    /// New ones.
    pub handshakes: Rate,
}

/// Which clients count as one: an IPv4 address, or what a provider gives to one customer, an IPv6 network of 64 bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Neighbourhood {
    /// The address.
    V4(u32),
    /// Its upper half.
    V6(u64),
    /// All that the table has no room for.
    Others,
}

impl From<IpAddr> for Neighbourhood {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.to_bits()),
            IpAddr::V6(address) => Self::V6((address.to_bits() >> 64) as u64),
        }
    }
}

#[derive(Debug, Default)]
struct Entry {
    connections: u32,
    handshakes: Bucket,
}

/// Who is here, by address.
#[derive(Debug)]
pub struct Addresses {
    limits: AddressLimits,
    entries: BTreeMap<Neighbourhood, Entry>,
    swept: Option<Millis>,
}

impl Addresses {
    /// Nobody.
    pub fn new(limits: AddressLimits) -> Self {
        Self { limits, entries: BTreeMap::new(), swept: None }
    }

    /// Takes a place for a client that has just come. `None`: it has too many, or comes too often. Give it back with [`Addresses::leave`].
    pub fn enter(&mut self, now: Millis, address: IpAddr) -> Option<Neighbourhood> {
        let limits = self.limits;
        let neighbourhood = self.entry(now, address.into());
        let entry = self.entries.entry(neighbourhood).or_default();
        let has_room = limits.connections == 0 || entry.connections < limits.connections;
        if !has_room || !entry.handshakes.take(now, limits.handshakes) {
            return None;
        }
        entry.connections += 1;
        Some(neighbourhood)
    }

    /// Gives a place back.
    pub fn leave(&mut self, now: Millis, neighbourhood: Neighbourhood) {
        if let Some(entry) = self.entries.get_mut(&neighbourhood) {
            entry.connections = entry.connections.saturating_sub(1);
            if entry.is_forgettable(now) {
                self.entries.remove(&neighbourhood);
            }
        }
    }

    /// Where this one is counted.
    fn entry(&mut self, now: Millis, neighbourhood: Neighbourhood) -> Neighbourhood {
        if self.entries.len() < ADDRESSES_MAX || self.entries.contains_key(&neighbourhood) {
            return neighbourhood;
        }
        if self.swept.is_none_or(|swept| now >= swept + SWEEP_PERIOD) {
            self.swept = Some(now);
            self.entries.retain(|_, entry| !entry.is_forgettable(now));
        }
        if self.entries.len() < ADDRESSES_MAX { neighbourhood } else { Neighbourhood::Others }
    }
}

impl Entry {
    fn is_forgettable(&self, now: Millis) -> bool {
        self.connections == 0 && self.handshakes.is_full(now)
    }
}

/// A set of addresses, `10.0.0.0/8` or a single one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Network {
    address: Ipv6Addr,
    /// Leading bits of the 128 that count.
    bits: u32,
}

/// IPv4 as IPv6 has it, so that one comparison serves both.
fn widened(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

impl Network {
    /// `text` as `ADDRESS` or `ADDRESS/BITS`.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let address: IpAddr = address.parse().ok()?;
        let (own, before) = if address.is_ipv4() { (32, 96) } else { (128, 0) };
        let bits = bits.map_or(Some(own), |bits| bits.parse::<u32>().ok().filter(|bits| *bits <= own))?;
        Some(Self { address: widened(address), bits: bits + before })
    }

    /// Whether the address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        let differs = widened(address).to_bits() ^ self.address.to_bits();
        differs.checked_shr(128 - self.bits).unwrap_or(0) == 0
    }
}

/// Who speaks, by what trusted proxies say: the last address of `X-Forwarded-For` that is none of theirs. What stands before it anybody may have
/// written, and so may a client that comes without a proxy: of that nothing counts.
pub fn client_of(peer: IpAddr, forwarded: &[String], trusted: &[Network]) -> IpAddr {
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(address));
    let mut client = peer;
    for hop in forwarded.iter().rev().flat_map(|list| list.rsplit(',')) {
        if !is_trusted(client) {
            break;
        }
        let Some(address) = address_of(hop.trim()) else { break };
        client = address;
    }
    client
}

/// With a port or without.
fn address_of(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let with_port = || text.parse::<std::net::SocketAddr>().ok().map(|address| address.ip());
    bare.parse().ok().or_else(with_port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn limits(connections: u32, per_second: u32) -> AddressLimits {
        AddressLimits { connections, handshakes: Rate { per_second, burst: per_second * 2 } }
    }

    #[test]
    fn an_address_has_so_many_places_and_others_their_own() {
        let mut addresses = Addresses::new(limits(2, 0));
        let now = Millis(5);
        let first = addresses.enter(now, ip("192.0.2.1")).unwrap();
        assert!(addresses.enter(now, ip("::ffff:192.0.2.1")).is_some(), "the same address, written otherwise");
        assert!(addresses.enter(now, ip("192.0.2.1")).is_none());
        assert!(addresses.enter(now, ip("192.0.2.2")).is_some());
        addresses.leave(now, first);
        assert!(addresses.enter(now, ip("192.0.2.1")).is_some());
        // one customer's IPv6 addresses are one
        assert!(addresses.enter(now, ip("2001:db8::1")).is_some());
        assert!(addresses.enter(now, ip("2001:db8::2")).is_some());
        assert!(addresses.enter(now, ip("2001:db8::3")).is_none());
        assert!(addresses.enter(now, ip("2001:db8:0:1::3")).is_some());
    }

    #[test]
    fn an_address_comes_so_often_even_if_it_leaves_at_once() {
        let mut addresses = Addresses::new(limits(0, 10));
        let mut come = |now, count| {
            let came = (0..count).filter_map(|_| addresses.enter(Millis(now), ip("192.0.2.1"))).collect::<Vec<_>>();
            came.iter().for_each(|place| addresses.leave(Millis(now), *place));
            came.len()
        };
        assert_eq!(come(1000, 100), 20);
        assert_eq!(come(2000, 100), 10);
        assert_eq!(come(60_000, 100), 20);
    }

    #[test]
    fn the_table_is_bounded_and_forgets_who_has_gone() {
        let mut addresses = Addresses::new(limits(0, 10));
        let address = |n: usize| IpAddr::V4(std::net::Ipv4Addr::from_bits(n as u32));
        let places: Vec<_> =
            (0..ADDRESSES_MAX + 50).map(|n| addresses.enter(Millis(1), address(n))).collect::<Vec<_>>();
        assert_eq!(places.iter().filter(|place| **place == Some(Neighbourhood::Others)).count(), 20);
        assert_eq!(places.iter().filter(|place| place.is_none()).count(), 30, "those beyond share one rate");
        assert_eq!(addresses.entries.len(), ADDRESSES_MAX + 1);
        for place in places.into_iter().flatten() {
            addresses.leave(Millis(1), place);
        }
        assert!(addresses.entries.len() > ADDRESSES_MAX, "their rates still count");
        assert!(addresses.enter(Millis(10_000), address(ADDRESSES_MAX + 99)).is_some());
        assert_eq!(addresses.entries.len(), 1);
    }

    #[test]
    fn networks() {
        for (network, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
            ("192.0.2.7", "192.0.2.7", "192.0.2.8"),
            ("192.0.2.7", "::ffff:192.0.2.7", "::192.0.2.7"),
            ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::1"),
            ("0.0.0.0/0", "203.0.113.1", "2001:db8::1"),
        ] {
            let network = Network::parse(network).unwrap();
            assert!(network.contains(ip(inside)) && !network.contains(ip(outside)), "{network:?}");
        }
        assert!(Network::parse("::/0").unwrap().contains(ip("2001:db8::1")));
        for wrong in ["", "10.0.0.0/33", "10.0.0/8", "::/129", "10.0.0.0/", "10.0.0.0/-1", "localhost"] {
            assert_eq!(Network::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a12_only_trusted_proxies_say_who_speaks() {
        let trusted = [Network::parse("10.0.0.0/8").unwrap()];
        for (peer, forwarded, expected) in [
            ("203.0.113.9", &["198.51.100.1"][..], "203.0.113.9"),
            ("203.0.113.9", &["10.0.0.1"], "203.0.113.9"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["198.51.100.1"], "198.51.100.1"),
            ("10.0.0.1", &["1.1.1.1, 198.51.100.1"], "198.51.100.1"),
            ("10.0.0.1", &["1.1.1.1", "198.51.100.1, 10.0.0.2"], "198.51.100.1"),
            ("10.0.0.1", &["198.51.100.1:1234"], "198.51.100.1"),
            ("10.0.0.1", &["[2001:db8::1]:80"], "2001:db8::1"),
            ("10.0.0.1", &["[2001:db8::1]"], "2001:db8::1"),
            ("10.0.0.1", &["1.1.1.1, unknown, 10.0.0.3"], "10.0.0.3"),
            ("10.0.0.1", &["169.254.169.254\u{1b}[2J"], "10.0.0.1"),
            ("10.0.0.1", &[",,,"], "10.0.0.1"),
        ] {
            let forwarded: Vec<String> = forwarded.iter().map(|list| (*list).to_owned()).collect();
            assert_eq!(client_of(ip(peer), &forwarded, &trusted), ip(expected), "{peer} {forwarded:?}");
        }
    }
}
