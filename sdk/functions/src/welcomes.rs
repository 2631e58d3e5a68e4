//! Calls that go on beside the events of a connection until its next one: that one waits for them.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use tokio::task::JoinHandle;
use trunkline_proto::ConnectionId;

/// Most of them. A server that answers none of its calls has no more waiting.
const WELCOMES_MAX: usize = 10_000;

/// At most one for each connection that was just opened; over when it is done.
#[derive(Debug, Default)]
pub(crate) struct Welcomes(Mutex<HashMap<ConnectionId, JoinHandle<()>>>);

impl Welcomes {
    /// Begins one; `false` if there are too many. It is not there any more once it is done.
    pub(crate) fn begin(
        self: &Arc<Self>,
        id: ConnectionId,
        welcome: impl Future<Output = ()> + Send + 'static,
    ) -> bool {
        // the task cannot be done before its handle is in
        let mut under_way = self.0.lock();
        if under_way.len() >= WELCOMES_MAX && !under_way.contains_key(&id) {
            return false;
        }
        let own = self.clone();
        let task = tokio::spawn(async move {
            welcome.await;
            let mut under_way = own.0.lock();
            // another one may have taken its place
            if under_way.get(&id).is_some_and(|task| tokio::task::try_id() == Some(task.id())) {
                under_way.remove(&id);
            }
        });
        // an event that comes again begins again
        if let Some(before) = under_way.insert(id, task) {
            before.abort();
        }
        true
    }

    /// Until the connection's is done, if there is one.
    pub(crate) async fn done(&self, id: ConnectionId) {
        let under_way = self.0.lock().remove(&id);
        if let Some(task) = under_way {
            // an error: it broke, which its own log tells
            drop(task.await);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    const ID: ConnectionId = ConnectionId([7; 16]);

    #[tokio::test]
    async fn there_are_so_many_at_most() {
        let welcomes = Arc::new(Welcomes::default());
        let id = |n: usize| ConnectionId(u128::try_from(n).unwrap().to_be_bytes());
        for n in 0..WELCOMES_MAX {
            assert!(welcomes.begin(id(n), std::future::pending()));
        }
        assert!(!welcomes.begin(id(WELCOMES_MAX), async {}));
        assert!(welcomes.begin(id(0), async {}), "in its own place");
        welcomes.done(id(0)).await;
        assert!(welcomes.begin(id(WELCOMES_MAX), async {}));
    }

    #[tokio::test]
    async fn the_next_event_waits_for_it_and_nothing_is_left() {
        let welcomes = Arc::new(Welcomes::default());
        let (go, gone) = oneshot::channel::<()>();
        welcomes.begin(ID, async move { drop(gone.await) });
        let waiting = tokio::spawn({
            let welcomes = welcomes.clone();
            async move { welcomes.done(ID).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        go.send(()).unwrap();
        waiting.await.unwrap();
        // one that begins again takes the other's place
        let (other, others_end) = oneshot::channel::<()>();
        welcomes.begin(ID, async move {
            std::future::pending::<()>().await;
            drop(other);
        });
        let (go, gone) = oneshot::channel::<()>();
        welcomes.begin(ID, async move { drop(gone.await) });
        assert!(others_end.await.is_err(), "it was given up");
        assert_eq!(welcomes.0.lock().len(), 1);
        go.send(()).unwrap();
        while !welcomes.0.lock().is_empty() {
            tokio::task::yield_now().await;
        }
        welcomes.done(ID).await;
    }
}
