//! Asking for an incarnation. All brokers are asked beside each other: only the leader of partition 0 can grant, and one that hangs, is
//! cut off or waits for an election itself must not keep the edge from the one that would answer at once.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::task::JoinSet;
use trunkline_proto::{PartitionCount, link::LINK_VERSION, v1::link as pb};

use super::{
    LinkError,
    backoff::Backoff,
    directory::Directory,
    learn,
    session::{self, Session, SessionError, Welcome},
};

/// Each broker is asked so long after the one before it: usually one of the first answers, and the others are spared.
const STAGGER: Duration = Duration::from_millis(200);

/// An incarnation that partition 0 has granted, and the session it was granted in.
pub struct Granted {
    pub(super) nonce: Bytes,
    pub(super) welcome: Welcome,
    pub(super) broker: u64,
    pub(super) session: Session,
}

impl Granted {
    /// How many partitions the cluster has.
    pub fn partition_count(&self) -> PartitionCount {
        self.welcome.count
    }

    /// Its number.
    pub fn incarnation(&self) -> u64 {
        self.welcome.incarnation
    }
}

/// Asks all brokers, also those that are learnt meanwhile, forever, until one grants an incarnation. With one nonce, so that two that
/// grant grant the same one. Cancel safe: asking anew with another nonce only skips a number.
pub(super) async fn ask(
    endpoint: &quinn::Endpoint,
    directory: &Arc<Directory>,
    edge: &str,
) -> Result<Granted, LinkError> {
    let nonce = Bytes::copy_from_slice(&rand::random::<[u8; 16]>());
    let (mut asked, mut asking) = (BTreeSet::new(), JoinSet::new());
    let mut delay = Duration::ZERO;
    loop {
        for broker in directory.brokers().into_iter().filter(|broker| asked.insert(*broker)) {
            let asker = Asker {
                endpoint: endpoint.clone(),
                directory: Arc::clone(directory),
                hello: hello(edge, &nonce, 0),
                broker,
            };
            asking.spawn(asker.run(delay));
            delay += STAGGER;
        }
        // whoever is learnt from here on was named by one that does not lead
        delay = Duration::ZERO;
        tokio::select! {
            () = directory.learnt() => {}
            Some(answer) = asking.join_next() => match answer {
                Ok(Ok((broker, session))) => {
                    let welcome = session.welcome.clone();
                    tracing::info!(broker, incarnation = welcome.incarnation, "incarnation granted");
                    return Ok(Granted { nonce, welcome, broker, session });
                }
                Ok(Err(error)) => return Err(error),
                // a panic, of whom nobody knows: all are asked again by the next round of the loop
                Err(error) => {
                    tracing::error!(%error, "asking for an incarnation failed");
                    (asked, asking) = (BTreeSet::new(), JoinSet::new());
                }
            },
        }
    }
}

pub(super) fn hello(edge: &str, nonce: &Bytes, incarnation: u64) -> pb::Hello {
    pb::Hello { version: LINK_VERSION, edge: edge.to_owned(), nonce: nonce.clone(), incarnation }
}

/// Asks one broker, again and again.
struct Asker {
    endpoint: quinn::Endpoint,
    directory: Arc<Directory>,
    hello: pb::Hello,
    broker: u64,
}

impl Asker {
    async fn run(self, delay: Duration) -> Result<(u64, Session), LinkError> {
        tokio::time::sleep(delay).await;
        let (mut backoff, mut failures) = (Backoff::new(), 0);
        loop {
            if let Some((broker, turn)) = self.directory.address(self.broker, failures) {
                match session::open(&self.endpoint, &broker, turn, self.hello.clone()).await {
                    Ok(session) if session.welcome.incarnation > 0 => return Ok((self.broker, session)),
                    Ok(session) => learn(&self.directory, self.broker, &session.welcome),
                    Err(SessionError::Goodbye(goodbye)) if goodbye.reason() == pb::Reason::Replaced => {
                        return Err(LinkError::Replaced);
                    }
                    Err(SessionError::Goodbye(goodbye)) if goodbye.reason() == pb::Reason::NotLeader => {
                        self.directory.learn(goodbye.leader, &goodbye.address);
                    }
                    Err(error) if failures > 0 => tracing::debug!(%broker, %error, "broker is not reached"),
                    Err(error) => tracing::warn!(%broker, %error, "broker is not reached; trying again"),
                }
            }
            failures = failures.wrapping_add(1);
            backoff.wait().await;
        }
    }
}
