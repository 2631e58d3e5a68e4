//! The roles as processes: configuration, listeners, the lines scripts wait for, and an orderly end.

use std::{
    io::{self, Write as _},
    net::SocketAddr,
};

use anyhow::Context as _;
use serde::Serialize;
use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{SignalKind, signal},
};
use trunkline_broker::server::{self as broker_server, Extras};
use trunkline_edge::server as edge_server;

use crate::{
    args::{BrokerArgs, EdgeArgs, FileArgs},
    config::{self, BrokerRole, EdgeRole},
    exit::Failure,
    render::out::Out,
};

/// One thread for everything that waits; blocking calls have their own pool.
pub(crate) fn runtime() -> Result<Runtime, Failure> {
    Ok(Builder::new_current_thread().enable_all().build().context("runtime")?)
}

/// `trunkline broker`.
pub(crate) fn broker(args: &BrokerArgs) -> Result<(), Failure> {
    let role = BrokerRole::load(args, &config::environment())?;
    if answered(&args.file, &role, || broker_server::check_files(&role.broker).map_err(Failure::usage))? {
        return Ok(());
    }
    let runtime = runtime()?;
    runtime.block_on(async {
        let shutdown = Shutdown::install()?;
        let listeners = broker_server::bind(&role.broker).await.context("broker")?;
        announce_broker(listeners.addresses().context("broker")?)?;
        let extras = Extras { ready: Some(Box::new(ready)), ..Extras::default() };
        Ok(broker_server::run(role.broker, listeners, extras, shutdown.requested()).await.context("broker")?)
    })
}

/// `trunkline edge`.
pub(crate) fn edge(args: &EdgeArgs) -> Result<(), Failure> {
    let role = EdgeRole::load(args, &config::environment())?;
    if answered(&args.file, &role, || edge_server::check_files(&role.edge, &role.apis).map_err(Failure::usage))? {
        return Ok(());
    }
    let runtime = runtime()?;
    runtime.block_on(async {
        let shutdown = Shutdown::install()?;
        let metrics = trunkline_broker::metrics::install().context("metrics")?;
        let upkeep = tokio::spawn(trunkline_broker::metrics::upkeep(metrics.clone(), Default::default()));
        let listeners = edge_server::bind(&role.edge).context("edge")?;
        announce("ws", listeners.ws_address())?;
        announce("edge-http", listeners.http_address())?;
        let served = edge_server::run(role.edge, role.apis, listeners, metrics, ready, shutdown.requested()).await;
        upkeep.abort();
        Ok(served.context("edge")?)
    })
}

/// Answers `--check-config` and `--dump-config`: then nothing is started. `check` reads the files that the configuration names.
pub(crate) fn answered(
    args: &FileArgs,
    role: &impl Serialize,
    check: impl FnOnce() -> Result<(), Failure>,
) -> Result<bool, Failure> {
    if args.dump_config {
        let mut shown = toml::Value::try_from(role).context("configuration as TOML")?;
        hide_queries(&mut shown);
        let text = toml::to_string(&shown).context("configuration as TOML")?;
        let mut out = Out::new();
        out.line(text.trim_end())?;
        out.flush()?;
    } else if args.check_config {
        check()?;
        let mut out = Out::new();
        out.line("the configuration is valid")?;
        out.flush()?;
    }
    Ok(args.dump_config || args.check_config)
}

/// Functions' URLs may carry keys in their queries: the values are not shown.
fn hide_queries(value: &mut toml::Value) {
    match value {
        toml::Value::Table(table) => table.iter_mut().for_each(|(_, value)| hide_queries(value)),
        toml::Value::Array(values) => values.iter_mut().for_each(hide_queries),
        toml::Value::String(text) if text.starts_with("http://") || text.starts_with("https://") => {
            if let Some((url, query)) = text.split_once('?') {
                let hidden = query.split('&').map(|pair| match pair.split_once('=') {
                    Some((name, _)) => format!("{name}=HIDDEN"),
                    None => "HIDDEN".to_owned(),
                });
                *text = format!("{url}?{}", hidden.collect::<Vec<_>>().join("&"));
            }
        }
        _ => {}
    }
}

/// `listening NAME ADDR`, at once.
pub(crate) fn announce(name: &str, address: SocketAddr) -> Result<(), Failure> {
    say(format_args!("listening {name} {address}"))
        .map_err(|error| anyhow::Error::new(error).context("standard output").into())
}

pub(crate) fn announce_broker(addresses: broker_server::Addresses) -> Result<(), Failure> {
    announce("grpc", addresses.grpc)?;
    announce("http", addresses.http)?;
    announce("link", addresses.link)
}

/// `ready`: every listener accepts. Who does not read it cannot be helped: the server goes on.
pub(crate) fn ready() {
    if let Err(error) = say(format_args!("ready")) {
        tracing::warn!(%error, "standard output");
    }
}

/// One line on standard output, visible at once.
pub(crate) fn say(line: std::fmt::Arguments<'_>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

/// SIGTERM or SIGINT asks for an orderly end; a second one ends the process at once.
pub(crate) struct Shutdown {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Shutdown {
    /// From now on signals are noticed. Call it before anything is started.
    pub(crate) fn install() -> Result<Self, Failure> {
        let terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
        let interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
        Ok(Self { terminate, interrupt })
    }

    /// Resolves when an end is asked for.
    pub(crate) async fn requested(mut self) {
        self.next().await;
        tracing::info!("shutting down; again to end at once");
        tokio::spawn(async move {
            self.next().await;
            tracing::warn!("ended by a second signal");
            std::process::exit(1);
        });
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_queries_are_hidden_wherever_a_url_stands() {
        let text = "a = \"https://h/p?code=secret&x=y&secret\"\nb = [{ c = \"http://h?k=secret\" }]\nd = \"a?b=c\"\ne = \"http://h/p\"";
        let mut value: toml::Value = toml::from_str(text).unwrap();
        hide_queries(&mut value);
        assert_eq!(value["a"].as_str(), Some("https://h/p?code=HIDDEN&x=HIDDEN&HIDDEN"));
        assert_eq!(value["b"][0]["c"].as_str(), Some("http://h?k=HIDDEN"));
        assert_eq!((value["d"].as_str(), value["e"].as_str()), (Some("a?b=c"), Some("http://h/p")));
        assert!(!value.to_string().contains("secret"));
    }
}
