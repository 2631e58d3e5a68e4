//! Sending a snapshot to a peer that needs what is trimmed.

use std::time::Duration;

use tokio::time::timeout;
use trunkline_proto::{peer::Stream as Kind, v1::peer as pb};

use super::PeerClient;
use crate::raft::{
    frames::{self, WireError},
    peers::{self, PRIORITY_LOW},
    transfer::SnapshotData,
    types::Vote,
    wire,
};

/// How long a piece of a snapshot may take to be taken.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a peer may take to install a snapshot that it has.
pub(super) const INSTALL_TIMEOUT: Duration = Duration::from_secs(600);

impl PeerClient {
    /// Sends a snapshot's state and waits until it is installed.
    pub(super) async fn send_snapshot(
        &self,
        connection: &quinn::Connection,
        head: pb::SnapshotHead,
        snapshot: &SnapshotData,
    ) -> Result<Vote, WireError> {
        let within = |patience| move |_| if patience { WireError::Slow } else { WireError::Cut };
        let (mut sender, mut receiver) = peers::open(connection, PRIORITY_LOW, CHUNK_TIMEOUT).await?;
        let opening = frames::opening(Kind::Snapshot, self.network.partition);
        let send = async {
            timeout(CHUNK_TIMEOUT, sender.send(frames::encode(&opening, &head))).await.map_err(within(true))??;
            for n in 0..snapshot.chunks() {
                let chunk = snapshot.chunk(n).await.map_err(|error| WireError::Refused(error.to_string()))?;
                let frame = frames::encode_raw(&[], &[&chunk]);
                timeout(CHUNK_TIMEOUT, sender.send(frame)).await.map_err(within(true))??;
            }
            sender.finish();
            Ok::<_, WireError>(())
        };
        // a peer that does not want it says so without reading it
        let mut answer = std::pin::pin!(receiver.answer());
        let early = tokio::select! {
            sent = send => sent.map(|()| None)?,
            answer = &mut answer => Some(answer),
        };
        let answer = match early {
            Some(answer) => answer,
            None => timeout(INSTALL_TIMEOUT, answer).await.map_err(within(true))?,
        };
        let installed: pb::SnapshotInstalled = frames::decode(answer?.ok_or(WireError::Cut)?)?;
        wire::from_vote(installed.vote)
    }
}
