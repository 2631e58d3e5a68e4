//! Who may come to an edge, by address: shared by its shards.

use std::{
    fmt,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use parking_lot::Mutex;

use crate::{
    config::EdgeConfig,
    core::{
        Millis, Rate,
        addresses::{AddressLimits, Addresses, Neighbourhood, Network, client_of},
    },
};

/// Counts connections and handshakes by address, where the edge bounds them.
pub struct Gate {
    trusted: Vec<Network>,
    /// None: nothing is bounded, and nothing counted.
    addresses: Option<Mutex<Addresses>>,
    started: Instant,
    /// Somebody was turned away: told once in the log, for who puts a proxy before the edge and does not say so.
    has_warned: AtomicBool,
}

/// A client's place, given back when dropped.
pub(crate) struct Place {
    gate: Arc<Gate>,
    neighbourhood: Neighbourhood,
}

impl Gate {
    /// As the edge is configured.
    pub fn new(config: &EdgeConfig) -> Self {
        let limits = AddressLimits {
            connections: config.max_connections_per_address,
            handshakes: Rate::of(config.max_handshakes_per_address),
        };
        let is_bounded = limits.connections > 0 || limits.handshakes.per_second > 0;
        Self {
            trusted: config.trusted_proxies.iter().filter_map(|text| Network::parse(text)).collect(),
            addresses: is_bounded.then(|| Mutex::new(Addresses::new(limits))),
            started: Instant::now(),
            has_warned: AtomicBool::new(false),
        }
    }

    /// Where the time of all shards begins: what they share is told it.
    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    /// Whether this peer speaks for others.
    pub(crate) fn is_proxy(&self, peer: IpAddr) -> bool {
        self.trusted.iter().any(|network| network.contains(peer))
    }

    /// Who speaks.
    pub(crate) fn client(&self, peer: IpAddr, forwarded: &[String]) -> IpAddr {
        client_of(peer, forwarded, &self.trusted)
    }

    /// Lets a client in, or not.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr) -> Result<Option<Box<Place>>, ()> {
        let Some(addresses) = &self.addresses else { return Ok(None) };
        let entered = addresses.lock().enter(self.now(), address);
        let Some(neighbourhood) = entered else {
            if !self.has_warned.swap(true, Ordering::Relaxed) {
                tracing::warn!(%address, "too many connections of one address are turned away; behind a proxy, name it in edge.trusted_proxies");
            }
            return Err(());
        };
        Ok(Some(Box::new(Place { gate: Arc::clone(self), neighbourhood })))
    }

    fn now(&self) -> Millis {
        self.started.elapsed().into()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(addresses) = &self.gate.addresses {
            addresses.lock().leave(self.gate.now(), self.neighbourhood);
        }
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("trusted", &self.trusted).finish_non_exhaustive()
    }
}
