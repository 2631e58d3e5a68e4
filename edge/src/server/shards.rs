//! The edge's threads: one per shard, each with a current-thread runtime; the first one also runs the link.

use std::{io, net::TcpListener, panic::resume_unwind, pin::pin, sync::Arc, thread, time::Duration};

use tokio::{
    runtime::Builder,
    sync::{mpsc, oneshot},
    task::{JoinError, LocalSet},
};
use tokio_rustls::rustls::ServerConfig;
use tokio_util::sync::CancellationToken;

use super::ServeError;
use crate::{
    api::Api,
    config::EdgeConfig,
    downlink::Downlink,
    gate::Gate,
    inbox::ShardInbox,
    link::{Granted, Link, LinkError, Settings, Status},
    shard::{HANDSHAKES_MAX, ShardOptions},
    uplink, worker,
};

/// What a thread says.
pub(super) enum Event {
    LinkEnded(LinkError),
    ShardDied(usize),
}

/// Threads that run, and those to be started.
pub(super) struct Threads {
    waiting: Vec<Waiting>,
    running: Vec<thread::JoinHandle<()>>,
    said: mpsc::UnboundedSender<Event>,
    hear: mpsc::UnboundedReceiver<Event>,
}

struct Waiting {
    options: ShardOptions,
    listener: TcpListener,
    inbox: ShardInbox,
}

/// Says that the shard's thread is gone, however it ended.
struct LastWord {
    shard: usize,
    said: mpsc::UnboundedSender<Event>,
}

impl Drop for LastWord {
    fn drop(&mut self) {
        // nobody listens any more once the edge drains
        let _ = self.said.send(Event::ShardDied(self.shard));
    }
}

impl Threads {
    pub(super) fn new(
        config: &EdgeConfig,
        tls: Option<Arc<ServerConfig>>,
        apis: &Arc<[Arc<Api>]>,
        listeners: Vec<TcpListener>,
        inboxes: Vec<ShardInbox>,
    ) -> Self {
        // one message a thread, and one of the link: bounded by their number
        let (said, hear) = mpsc::unbounded_channel();
        let shards = listeners.len();
        let edge: Arc<str> = config.name.as_str().into();
        let headers: Arc<[String]> = config.headers.as_slice().into();
        let gate = Arc::new(Gate::new(config));
        let options = |index| ShardOptions {
            edge: Arc::clone(&edge),
            index,
            shards,
            apis: Arc::clone(apis),
            gate: Arc::clone(&gate),
            headers: Arc::clone(&headers),
            tls: tls.clone(),
            handshakes_max: HANDSHAKES_MAX,
        };
        let waiting = listeners.into_iter().zip(inboxes).enumerate();
        let waiting = waiting.map(|(index, (listener, inbox))| Waiting { options: options(index), listener, inbox });
        // popped from the end, the first shard first
        Self { waiting: waiting.rev().collect(), running: Vec::new(), said, hear }
    }

    /// Starts the first shard's thread with the link on it. The receiver resolves when every partition of an
    /// incarnation has been attached: only then may sockets be served.
    pub(super) fn start_first(
        &mut self,
        settings: Settings,
        status: Arc<Status>,
        budget: usize,
        downlink: Downlink,
        stop: CancellationToken,
    ) -> Result<oneshot::Receiver<Result<uplink::Handle, ServeError>>, ServeError> {
        let (linked, link) = oneshot::channel();
        let Some(waiting) = self.waiting.pop() else {
            return Err(system("shards")(io::ErrorKind::InvalidInput.into()));
        };
        let said = self.said.clone();
        let first = First { settings, status, budget, downlink, stop, linked, said };
        self.spawn(waiting.options.index, move || first.run(waiting))?;
        Ok(link)
    }

    /// Starts the other shards' threads.
    pub(super) fn start_others(&mut self, uplink: &uplink::Handle) -> Result<(), ServeError> {
        while let Some(Waiting { options, listener, inbox }) = self.waiting.pop() {
            let uplink = uplink.clone();
            self.spawn(options.index, move || serve_shard(options, listener, uplink, inbox))?;
        }
        Ok(())
    }

    /// Runs the future that `work` makes on a thread of its own.
    fn spawn<F>(&mut self, index: usize, work: impl FnOnce() -> F + Send + 'static) -> Result<(), ServeError>
    where
        F: Future<Output = ()>,
    {
        let runtime = Builder::new_current_thread().enable_all().build().map_err(system("runtime of a shard"))?;
        let last_word = LastWord { shard: index, said: self.said.clone() };
        let body = move || {
            let _last_word = last_word;
            LocalSet::new().block_on(&runtime, work());
        };
        let thread = thread::Builder::new().name(format!("edge-shard-{index}")).spawn(body);
        self.running.push(thread.map_err(system("thread of a shard"))?);
        Ok(())
    }

    /// Waits for what must not happen while the edge serves.
    pub(super) async fn event(&mut self) -> Event {
        // never closed: this holds a sender
        self.hear.recv().await.unwrap_or(Event::ShardDied(0))
    }

    /// Waits until `count` or fewer threads run. Cancel safe.
    pub(super) async fn wait_until_running(&self, count: usize) {
        while self.running.iter().filter(|thread| !thread.is_finished()).count() > count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// What the first shard's thread runs beside its shard.
struct First {
    settings: Settings,
    status: Arc<Status>,
    budget: usize,
    downlink: Downlink,
    stop: CancellationToken,
    linked: oneshot::Sender<Result<uplink::Handle, ServeError>>,
    said: mpsc::UnboundedSender<Event>,
}

impl First {
    async fn run(self, Waiting { options, listener, inbox }: Waiting) {
        let (link, granted) = match open(self.settings, Arc::clone(&self.status), &self.stop).await {
            Ok(Some(opened)) => opened,
            Ok(None) => return,
            Err(error) => {
                // nobody to tell: the edge was given up
                let _ = self.linked.send(Err(error));
                return;
            }
        };
        let uplink = uplink::Handle::new(granted.partition_count(), granted.incarnation(), self.budget);
        let mut link = pin!(link.run(granted, uplink.clone(), self.downlink, self.stop));
        // what is applied for a connection must find this edge listening, in every partition
        tokio::select! {
            ended = &mut link => {
                if let Err(error) = ended {
                    let _ = self.linked.send(Err(error.into()));
                }
                return;
            }
            () = self.status.opened() => {}
        }
        if self.linked.send(Ok(uplink.clone())).is_err() {
            return;
        }
        let mut shard = tokio::task::spawn_local(serve_shard(options, listener, uplink, inbox));
        let said = self.said;
        let mut link = pin!(async move {
            if let Err(error) = link.await {
                // at once: the shard ends only after the edge has acted on it. Nobody listens any more once the edge drains
                let _ = said.send(Event::LinkEnded(error));
            }
        });
        let shard = tokio::select! {
            () = &mut link => shard.await,
            shard = &mut shard => {
                if shard.is_ok() {
                    link.await;
                }
                shard
            }
        };
        if let Err(panic) = shard.map_err(JoinError::try_into_panic)
            && let Ok(panic) = panic
        {
            resume_unwind(panic);
        }
    }
}

/// `None`: stopped before any broker answered.
async fn open(
    settings: Settings,
    status: Arc<Status>,
    stop: &CancellationToken,
) -> Result<Option<(Link, Granted)>, ServeError> {
    let link = Link::open(settings, status)?;
    let granted = tokio::select! {
        granted = link.grant() => granted?,
        () = stop.cancelled() => return Ok(None),
    };
    Ok(Some((link, granted)))
}

async fn serve_shard(options: ShardOptions, listener: TcpListener, uplink: uplink::Handle, inbox: ShardInbox) {
    let shard = options.index;
    if let Err(error) = worker::run(options, listener, uplink, inbox).await {
        tracing::error!(shard, %error, "shard cannot use its listener");
    }
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> ServeError {
    move |error| ServeError::System { what, error }
}
