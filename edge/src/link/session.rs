//! The connection to one broker: handshake, Hello and Welcome, and the control stream until it ends.

use std::{io, pin::pin, time::Duration};

use quinn::VarInt;
use tokio::time::{Instant, MissedTickBehavior, timeout};
use trunkline_proto::{PartitionCount, link::Frame, v1::link as pb};
use trunkline_quic::Identity;

use super::{
    endpoint::KEEP_ALIVE,
    frames::{FrameReader, FrameWriter, ReadFrameError},
};
use crate::config::BrokerAddress;

/// From name lookup to Welcome. A broker may wait some seconds for partition 0 to have a leader before it answers.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// The handshake alone: a broker that has just started must not be missed because packets to its predecessor were lost.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);
/// Without a packet for so long the broker is taken for dead: [`KEEP_ALIVE`] makes it answer more often than that.
const SILENCE_MAX: Duration = Duration::from_secs(3);

/// Why there is no session with a broker.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    #[error("address {address:?}: {error}")]
    Address { address: String, error: io::Error },
    #[error("connect: {0}")]
    Connect(#[from] quinn::ConnectError),
    #[error("connection: {0}")]
    Connection(#[from] quinn::ConnectionError),
    #[error("no answer within {0:?}")]
    Slow(Duration),
    #[error(transparent)]
    Read(#[from] ReadFrameError),
    #[error("control stream: {0}")]
    Write(#[from] quinn::WriteError),
    #[error("broker says {:?}: {}", .0.reason(), .0.message)]
    Goodbye(pb::Goodbye),
    #[error("broker broke the protocol: {0}")]
    Protocol(&'static str),
}

/// A broker that has welcomed this edge.
pub(crate) struct Session {
    pub(crate) connection: quinn::Connection,
    pub(crate) welcome: Welcome,
    reader: FrameReader,
    writer: FrameWriter,
}

/// What a broker says at first, checked.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Welcome {
    pub(crate) cluster: String,
    pub(crate) count: PartitionCount,
    /// 0: another broker grants it.
    pub(crate) incarnation: u64,
    pub(crate) leaders: Vec<pb::Leader>,
    pub(crate) brokers: Vec<pb::BrokerLink>,
    /// Silence after which brokers take this edge for lost.
    pub(crate) grace: Duration,
}

/// Connects to a broker and says hello. Its name is resolved anew each time; of several addresses the one whose turn it is is
/// taken.
pub(crate) async fn open(
    endpoint: &quinn::Endpoint,
    broker: &BrokerAddress,
    turn: usize,
    hello: pb::Hello,
) -> Result<Session, SessionError> {
    timeout(HELLO_TIMEOUT, greet(endpoint, broker, turn, hello)).await.map_err(|_| SessionError::Slow(HELLO_TIMEOUT))?
}

async fn greet(
    endpoint: &quinn::Endpoint,
    broker: &BrokerAddress,
    turn: usize,
    hello: pb::Hello,
) -> Result<Session, SessionError> {
    let wrong = |error| SessionError::Address { address: broker.link.clone(), error };
    let addresses: Vec<_> = tokio::net::lookup_host(&broker.link).await.map_err(wrong)?.collect();
    let address = turn.checked_rem(addresses.len()).and_then(|turn| addresses.get(turn).copied());
    let address = address.ok_or_else(|| wrong(io::ErrorKind::NotFound.into()))?;
    let connecting = endpoint.connect(address, &Identity::broker(broker.id).dns_name())?;
    let connected = timeout(HANDSHAKE_TIMEOUT, connecting).await;
    let connection = connected.map_err(|_| SessionError::Slow(HANDSHAKE_TIMEOUT))??;
    let (send, receive) = connection.open_bi().await?;
    let (mut reader, mut writer) = (FrameReader::new(receive), FrameWriter::new(send));
    writer.send(&Frame::Hello(hello)).await?;
    let welcome = match reader.next().await? {
        Frame::Welcome(welcome) => check(welcome, broker.id)?,
        Frame::Goodbye(goodbye) => return Err(SessionError::Goodbye(goodbye)),
        _ => return Err(SessionError::Protocol("neither Welcome nor Goodbye answers Hello")),
    };
    Ok(Session { connection, welcome, reader, writer })
}

fn check(welcome: pb::Welcome, broker: u64) -> Result<Welcome, SessionError> {
    let count = u16::try_from(welcome.partition_count).ok().and_then(PartitionCount::new);
    let count = count.ok_or(SessionError::Protocol("Welcome names no possible partition count"))?;
    if welcome.broker != broker {
        return Err(SessionError::Protocol("Welcome comes from another broker"));
    }
    let grace = Duration::from_millis(u64::from(welcome.grace_ms)).max(Duration::from_millis(100));
    let pb::Welcome { cluster, incarnation, leaders, brokers, .. } = welcome;
    Ok(Welcome { cluster, count, incarnation, leaders, brokers, grace })
}

impl Session {
    /// Pings until the session ends; says why. Both sides ping four times within the grace.
    pub(crate) async fn run(&mut self) -> SessionError {
        let mut pings = tokio::time::interval(self.welcome.grace / 4);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // one for the whole session: each ping would start another one anew
        let mut silence = pin!(silence(self.connection.clone()));
        loop {
            let ended = tokio::select! {
                frame = self.reader.next() => match frame {
                    Ok(Frame::Ping) => continue,
                    Ok(Frame::Goodbye(goodbye)) => SessionError::Goodbye(goodbye),
                    Ok(_) => SessionError::Protocol("only pings and Goodbye follow Welcome"),
                    Err(error) => error.into(),
                },
                _ = pings.tick() => match self.writer.send(&Frame::Ping).await {
                    Ok(()) => continue,
                    // a broker that says goodbye stops reading first: hear it out
                    Err(error) => last_words(&mut self.reader).await.unwrap_or(SessionError::Write(error)),
                },
                silent = &mut silence => SessionError::Slow(silent),
            };
            return ended;
        }
    }
}

async fn last_words(reader: &mut FrameReader) -> Option<SessionError> {
    loop {
        match timeout(Duration::from_secs(1), reader.next()).await.ok()?.ok()? {
            Frame::Goodbye(goodbye) => return Some(SessionError::Goodbye(goodbye)),
            Frame::Ping => {}
            _ => return None,
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.connection.close(VarInt::from_u32(0), b"bye");
    }
}

/// Waits until the broker has been silent for [`SILENCE_MAX`] while this process itself was awake. Much sooner than QUIC's own
/// idle timeout: a broker that was killed and is back does not answer for connections it no longer knows.
async fn silence(connection: quinn::Connection) -> Duration {
    let mut ticks = tokio::time::interval(KEEP_ALIVE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut datagrams, mut heard, mut last_tick) = (0, Instant::now(), Instant::now());
    loop {
        ticks.tick().await;
        let now = Instant::now();
        let received = connection.stats().udp_rx.datagrams;
        // a tick that came late shows that this process slept, and then its silence says nothing about the broker
        if received != datagrams || now - last_tick > 2 * KEEP_ALIVE {
            (datagrams, heard) = (received, now);
        }
        last_tick = now;
        if now - heard >= SILENCE_MAX {
            return SILENCE_MAX;
        }
    }
}
