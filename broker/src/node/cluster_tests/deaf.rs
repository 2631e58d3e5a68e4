//! A broker that is heard and hears nothing.

use std::{
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};

use super::*;

/// A broker's socket, which a test can make deaf: what comes is lost, what it sends goes out.
pub(super) struct Ears {
    pub(super) socket: Arc<dyn AsyncUdpSocket>,
    pub(super) deaf: Arc<AtomicBool>,
}

impl fmt::Debug for Ears {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ears").field("deaf", &self.deaf).finish_non_exhaustive()
    }
}

impl AsyncUdpSocket for Ears {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.socket).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.socket.try_send(transmit)
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [io::IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            let received = ready!(self.socket.poll_recv(context, buffers, meta))?;
            if !self.deaf.load(Ordering::SeqCst) {
                return Poll::Ready(Ok(received));
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}

#[tokio::test]
async fn a_leader_that_is_heard_and_hears_nothing_is_replaced() {
    let cluster = Cluster::formed().await;
    cluster.open_connections().await;
    let leader = cluster.leader(0).unwrap();
    let begun = Instant::now();
    cluster.deafen(leader, true);
    let next = eventually(|| cluster.leader(0).filter(|next| *next != leader)).await;
    cluster.say(0, 2).await;
    // its heartbeats kept the others from it as long as it sent them
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(matches!(*handle(cluster.node(leader), 0).role.borrow(), Role::Follower { .. }));
    // what it says to others still unseats nobody
    let term = *handle(cluster.node(next), 0).role.borrow();
    eventually(|| (begun.elapsed() > Duration::from_secs(8)).then_some(())).await;
    cluster.say(0, 3).await;
    assert_eq!(*handle(cluster.node(next), 0).role.borrow(), term);
    cluster.deafen(leader, false);
    cluster.same_everywhere(&[1, 2, 3]).await;
    cluster.stop_all().await;
}
