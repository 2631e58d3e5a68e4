//! Answers what other brokers ask of this one beyond Raft: commands and forwards for partitions it leads, and what operators want of it.

use std::{pin::Pin, sync::Arc};

use bytes::Bytes;

use crate::{
    forward,
    node::{CallKind, Calls, Node},
    submit::Submitter,
};

/// What this broker says of itself: an encoded `trunkline.v1.DescribeResponse`.
pub type Describe = Arc<dyn Fn() -> Bytes + Send + Sync>;

/// Who answers.
pub struct Answers {
    /// The broker's partitions.
    pub node: Node,
    /// Applies commands.
    pub submitter: Submitter,
    /// Describes this broker.
    pub describe: Describe,
}

impl std::fmt::Debug for Answers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answers").finish_non_exhaustive()
    }
}

impl Calls for Answers {
    fn call(&self, _from: u64, kind: CallKind, body: Bytes) -> Pin<Box<dyn Future<Output = Bytes> + Send + '_>> {
        Box::pin(async move {
            match kind {
                CallKind::Submit => self.submitter.answer(body).await,
                CallKind::Forward => forward::answer(&self.node, body).await,
                CallKind::Admin => self.node.answer_admin(body, || (self.describe)()).await,
            }
        })
    }
}
