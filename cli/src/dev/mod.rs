//! `trunkline dev`: the broker and the demo's handlers on a thread of their own, the edge on its threads, all talking to each
//! other as they would over a network: QUIC with mutual TLS, and gRPC.

/// The SDK's examples: ordinary handlers, over gRPC like any other.
#[path = "../../../sdk/rust/examples/demo/chat.rs"]
mod chat;
#[path = "../../../sdk/rust/examples/demo/echo.rs"]
mod echo;

use std::{
    net::SocketAddr,
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, anyhow};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use trunkline_broker::{
    config::{BrokerConfig, Role, TokenConfig},
    http::Pages,
    server::{self as broker_server, Addresses, Extras},
};
use trunkline_edge::server as edge_server;
use trunkline_functions::{ApiSettings, Brokers};
use trunkline_proto::{secret::SecretText, token::TokenDigest};
use trunkline_sdk::{Client, ClientError, Handler, StartAt, Subscriber};

use crate::{
    args::DevArgs,
    config::{self, DevRole},
    exit::Failure,
    pages,
    pki::Pki,
    roles,
    verbs::token::mint,
};

pub(crate) fn run(args: &DevArgs) -> Result<(), Failure> {
    let mut role = DevRole::load(args, &config::environment())?;
    let check = || {
        broker_server::check_files(&role.broker).map_err(Failure::usage)?;
        edge_server::check_files(&role.edge, &role.apis).map_err(Failure::usage)
    };
    if roles::answered(&args.file, &role, check)? {
        return Ok(());
    }
    let pki = Pki::open_or_make(&role.broker.pki)?;
    pki.broker(role.broker.node_id)?;
    pki.edge(&role.edge.name)?;
    let edge_listeners = edge_server::bind(&role.edge).context("edge")?;
    let runtime = roles::runtime()?;
    let calls = !args.no_handlers || role.apis.iter().any(|api| api.functions.is_some());
    let access = calls.then(|| Access::grant(&mut role.broker)).transpose()?;
    runtime.block_on(serve(role, edge_listeners, access, !args.no_handlers))
}

async fn serve(
    mut role: DevRole,
    listeners: edge_server::Listeners,
    access: Option<Access>,
    demo: bool,
) -> Result<(), Failure> {
    let shutdown = roles::Shutdown::install()?;
    let pages = pages::demo(&format!("ws://{}/chat", listeners.ws_address()));
    let mut broker = BrokerThread::start(&role, pages, access, demo)?;
    let addresses = broker.addresses().await?;
    role.edge.brokers =
        vec![format!("{}@{}", role.broker.node_id, addresses.link).parse().context("the link's address")?];
    roles::announce_broker(addresses)?;
    roles::announce("ws", listeners.ws_address())?;
    roles::announce("edge-http", listeners.http_address())?;
    let metrics = trunkline_broker::metrics::install().context("metrics")?;

    // the edge ends first: its last records need the broker
    let edge_stop = CancellationToken::new();
    let (edge_ready, edge_is_ready) = oneshot::channel();
    let ready = move || {
        // nobody waits: shutting down already
        let _ = edge_ready.send(());
    };
    let edge = edge_server::run(role.edge, role.apis, listeners, metrics, ready, edge_stop.clone().cancelled_owned());
    let mut edge = std::pin::pin!(edge);
    let http = addresses.http;
    let mut announced = std::pin::pin!(announce_ready(broker.ready(), edge_is_ready, http));
    let mut shutdown = std::pin::pin!(shutdown.requested());
    let mut is_announced = false;
    let edge_ended = loop {
        tokio::select! {
            () = &mut announced, if !is_announced => is_announced = true,
            ended = &mut edge => break Some(ended),
            () = &mut shutdown => break None,
            // it never ends by itself without an error
            () = broker.ended() => break None,
        }
    };
    edge_stop.cancel();
    let edge_ended = match edge_ended {
        Some(ended) => ended,
        None => edge.await,
    };
    let broker_ended = broker.stop().await;
    edge_ended.context("edge")?;
    Ok(broker_ended?)
}

/// Says so once broker and edge both accept.
async fn announce_ready(broker: oneshot::Receiver<()>, edge: oneshot::Receiver<()>, http: SocketAddr) {
    if broker.await.is_ok() && edge.await.is_ok() {
        // a hint for people: who does not read it misses nothing
        let _ = roles::say(format_args!("chat page: http://{http}/demo/chat (stop with ctrl-c)"));
        roles::ready();
    } else {
        std::future::pending::<()>().await;
    }
}

/// The broker and the demo's handlers.
struct BrokerThread {
    thread: Option<JoinHandle<anyhow::Result<()>>>,
    stop: CancellationToken,
    ended: CancellationToken,
    addresses: Option<oneshot::Receiver<Addresses>>,
    ready: Option<oneshot::Receiver<()>>,
}

impl BrokerThread {
    fn start(role: &DevRole, pages: Pages, access: Option<Access>, demo: bool) -> anyhow::Result<Self> {
        let (stop, ended) = (CancellationToken::new(), CancellationToken::new());
        let (address_sender, addresses) = oneshot::channel();
        let (ready_sender, ready) = oneshot::channel();
        let functions = config::function_settings(&role.apis).map_err(|error| anyhow!("{error}"))?;
        let (config, stopped, guard) = (role.broker.clone(), stop.clone(), ended.clone().drop_guard());
        let main = move || {
            // however this thread ends, the other one learns of it
            let _guard = guard;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let listeners = broker_server::bind(&config).await?;
                let addresses = listeners.addresses()?;
                // nobody waits: shutting down already
                let _ = address_sender.send(addresses);
                let is_ready = move || {
                    let _ = ready_sender.send(());
                };
                let extras = Extras { pages, ready: Some(Box::new(is_ready)) };
                let handlers_stop = stopped.child_token();
                let handlers = Handlers::start(addresses.grpc, access, demo, functions, &handlers_stop);
                let broker_stop = async move {
                    stopped.cancelled().await;
                    handlers.ended().await;
                };
                Ok(broker_server::run(config, listeners, extras, broker_stop).await?)
            })
        };
        let thread = thread::Builder::new().name("broker".to_owned()).spawn(main)?;
        Ok(Self { thread: Some(thread), stop, ended, addresses: Some(addresses), ready: Some(ready) })
    }

    /// Where it listens. If it ended before, why.
    async fn addresses(&mut self) -> anyhow::Result<Addresses> {
        let receiver = self.addresses.take().context("asked for once")?;
        match receiver.await {
            Ok(addresses) => Ok(addresses),
            Err(_) => Err(self.stop().await.err().unwrap_or_else(|| anyhow!("the broker ended at once"))),
        }
    }

    /// Resolves when every listener accepts; taken once.
    fn ready(&mut self) -> oneshot::Receiver<()> {
        self.ready.take().unwrap_or_else(|| oneshot::channel().1)
    }

    async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Stops it; how it ended.
    async fn stop(&mut self) -> anyhow::Result<()> {
        self.stop.cancel();
        self.ended.cancelled().await;
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result.context("broker"),
            Some(Err(_)) => Err(anyhow!("the broker panicked")),
            None => Ok(()),
        }
    }
}

/// How the demo's handlers and the functions' bridge reach the broker if that asks for tokens: with one that lives as long as the process.
#[derive(Default)]
struct Access {
    token: Option<String>,
}

impl Access {
    fn grant(broker: &mut BrokerConfig) -> Result<Self, Failure> {
        if broker.tls.is_some() {
            return Err(Failure::usage(
                "the handlers of dev speak plain text: with broker.tls, start it with --no-handlers and without functions, and \
                 yours (`trunkline functions`) beside it",
            ));
        }
        let token = (!broker.tokens.is_empty() || broker.tokens_file.is_some()).then(mint);
        broker.tokens.extend(token.as_ref().map(|token| TokenConfig {
            name: "dev".to_owned(),
            sha256: TokenDigest::of(token),
            role: Role::Handler,
            groups: Vec::new(),
            apis: Vec::new(),
            channels: Vec::new(),
        }));
        Ok(Self { token })
    }

    fn subscriber(&self, address: &str) -> Subscriber {
        let subscriber = Subscriber::builder(address);
        match &self.token {
            Some(token) => subscriber.token(token),
            None => subscriber,
        }
    }

    fn client(&self, address: &str) -> Result<Client, ClientError> {
        let builder = Client::builder(address);
        match &self.token {
            Some(token) => builder.token(token).build(),
            None => builder.build(),
        }
    }

    fn brokers(&self, address: String) -> Brokers {
        Brokers { addresses: vec![address], token: self.token.as_deref().map(SecretText::new), ca_pem: None }
    }
}

/// The demo's handlers, and the functions of the file's APIs.
struct Handlers {
    tasks: tokio_util::task::TaskTracker,
}

impl Handlers {
    /// On the runtime this is called in.
    fn start(
        grpc: SocketAddr,
        access: Option<Access>,
        demo: bool,
        functions: Vec<ApiSettings>,
        stop: &CancellationToken,
    ) -> Self {
        let tasks = tokio_util::task::TaskTracker::new();
        let address = grpc.to_string();
        let access = access.unwrap_or_default();
        if demo {
            tasks.spawn(handle(access.subscriber(&address), "echo", echo::Echo, stop.clone()));
            match access.client(&address) {
                Ok(client) => {
                    drop(tasks.spawn(handle(
                        access.subscriber(&address),
                        "chat",
                        chat::Chat::new(client),
                        stop.clone(),
                    )));
                }
                Err(error) => tracing::error!(%error, "no chat"),
            }
        }
        if !functions.is_empty() {
            tasks.spawn(call_functions(access.brokers(address), functions, stop.clone()));
        }
        tasks.close();
        Self { tasks }
    }

    async fn ended(&self) {
        self.tasks.wait().await;
    }
}

/// A group named as the API it decides for. From the earliest event on: a client may be faster than the group's first member.
async fn handle(subscriber: Subscriber, api: &'static str, handler: impl Handler, stop: CancellationToken) {
    let subscriber = subscriber.group(api).member("dev").apis([api]).start(StartAt::Earliest);
    if let Err(error) = subscriber.run_until(handler, stop.cancelled_owned()).await {
        tracing::error!(api, %error, "the demo's handler ended");
    }
}

/// The bridge to HTTP functions, as `trunkline functions` runs it.
async fn call_functions(brokers: Brokers, apis: Vec<ApiSettings>, stop: CancellationToken) {
    if let Err(error) = trunkline_functions::run_until(&brokers, "dev", apis, stop.cancelled_owned()).await {
        tracing::error!(%error, "the function bridge ended");
    }
}
