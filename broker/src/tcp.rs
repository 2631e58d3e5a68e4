//! TCP listeners of gRPC and HTTP: how many connections there may be at once, in all and from one address, and how long one may be silent.

pub mod http2;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    net::{TcpListener, TcpStream},
    time::sleep,
};

use crate::metrics::tcp::REFUSED_TOTAL;

/// Pause after a failed accept: out of file descriptors, mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How much strangers may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// And from one address; of IPv6 from one /64, which one subscriber has.
    pub per_address: usize,
    /// The TLS handshake must be complete, then the first bytes must have come, and later some of what waits to be sent must go out, each
    /// within this.
    pub patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 4096, per_address: 1024, patience: Duration::from_secs(10) }
    }
}

/// Counts the connections of one listener. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Doors {
    listener: &'static str,
    limits: Limits,
    open: Arc<Mutex<Open>>,
}

#[derive(Debug, Default)]
struct Open {
    all: usize,
    by_address: BTreeMap<IpAddr, usize>,
}

/// A connection's place; free again when dropped.
#[derive(Debug)]
pub struct Admitted {
    open: Arc<Mutex<Open>>,
    address: IpAddr,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut open = self.open.lock();
        open.all -= 1;
        if let Some(count) = open.by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.by_address.remove(&self.address);
            }
        }
    }
}

impl Doors {
    /// Of the listener that metrics call so.
    pub fn new(listener: &'static str, limits: Limits) -> Self {
        Self { listener, limits, open: Arc::default() }
    }

    /// See [`Limits::patience`].
    pub fn patience(&self) -> Duration {
        self.limits.patience
    }

    /// A place for a connection from there, if there is one left.
    pub fn admit(&self, address: IpAddr) -> Option<Admitted> {
        let address = whole(address);
        let mut open = self.open.lock();
        let of_address = open.by_address.get(&address).copied().unwrap_or_default();
        let reason = if of_address >= self.limits.per_address {
            "address"
        } else if open.all >= self.limits.connections {
            "all"
        } else {
            open.all += 1;
            open.by_address.insert(address, of_address + 1);
            return Some(Admitted { open: Arc::clone(&self.open), address });
        };
        self.refused(reason);
        None
    }

    /// Counts a connection that came to nothing.
    pub fn refused(&self, reason: &'static str) {
        ::metrics::counter!(REFUSED_TOTAL, "listener" => self.listener, "reason" => reason).increment(1);
    }

    /// The next connection that there is a place for; others are closed at once. Cancel safe.
    pub async fn accept(&self, listener: &TcpListener) -> (TcpStream, Admitted) {
        loop {
            match listener.accept().await {
                Ok((stream, address)) => {
                    if let Some(admitted) = self.admit(address.ip()) {
                        // answers are small and whole
                        let _ = stream.set_nodelay(true);
                        return (stream, admitted);
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, listener = self.listener, "accept failed");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// Whom an address stands for.
fn whole(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn doors(connections: usize, per_address: usize) -> Doors {
        Doors::new("test", Limits { connections, per_address, patience: Duration::from_secs(1) })
    }

    #[test]
    fn places_are_counted_for_all_and_for_each_address_and_come_back() {
        let doors = doors(3, 2);
        let at = |text: &str| doors.admit(text.parse().unwrap());
        let (one, two) = (at("10.0.0.1").unwrap(), at("::ffff:10.0.0.1").unwrap());
        assert!(at("10.0.0.1").is_none(), "the same address, however it is written");
        let other = at("10.0.0.2").unwrap();
        assert!(at("10.0.0.3").is_none(), "as many as there may be");
        drop(one);
        let again = at("10.0.0.1").unwrap();
        drop((two, other, again));
        let six = [at("2001:db8::1").unwrap(), at("2001:db8::ffff:2").unwrap()];
        assert!(at("2001:db8:0:0:1::").is_none(), "of one /64");
        assert!(at("2001:db8:0:1::").is_some());
        drop(six);
        let open = doors.open.lock();
        assert!(open.all == 0 && open.by_address.is_empty(), "nothing is kept of who has gone");
    }
}
