//! The figures. Each run starts fresh servers on empty folders, loads them, and stops them; what is compared takes turns.

pub(crate) mod catchup;
pub(crate) mod cluster;
pub(crate) mod disk;
pub(crate) mod echo;
pub(crate) mod fanout;
pub(crate) mod functions;
pub(crate) mod handshakes;
pub(crate) mod idle;
pub(crate) mod ingest;
pub(crate) mod state;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use hdrhistogram::Histogram;

use crate::{report::Subject, server::Server};

/// What every scenario shares.
pub(crate) struct Setup {
    pub(crate) binary: PathBuf,
    pub(crate) data: Option<PathBuf>,
    pub(crate) seconds: u64,
    pub(crate) repeat: usize,
    pub(crate) payload: usize,
    pub(crate) connections: usize,
    /// A command, in words; empty: none.
    pub(crate) peer: Vec<String>,
}

impl Setup {
    fn folder(&self) -> anyhow::Result<tempfile::TempDir> {
        Ok(match &self.data {
            Some(folder) => tempfile::tempdir_in(folder)?,
            // the current folder, not /tmp: that may be memory, where a sync costs nothing
            None => tempfile::Builder::new().prefix(".bench-").tempdir_in(".")?,
        })
    }

    /// What takes turns.
    fn subjects(&self) -> impl Iterator<Item = Subject> + use<> {
        let peer = (!self.peer.is_empty()).then_some(Subject::Peer);
        [Subject::Trunkline, Subject::Floor].into_iter().chain(peer)
    }

    fn start(&self, subject: Subject, folder: &Path) -> anyhow::Result<Server> {
        match subject {
            Subject::Trunkline => self.dev(folder),
            Subject::Floor => Server::start(&std::env::current_exe()?, &["--child", "floor"]),
            Subject::Peer => {
                let (program, arguments) = self.peer.split_first().context("no peer")?;
                Server::start(Path::new(program), &arguments.iter().map(String::as_str).collect::<Vec<_>>())
            }
        }
    }

    fn dev(&self, folder: &Path) -> anyhow::Result<Server> {
        self.dev_with(folder, "[[api]]\nname = \"ingest\"\npath = \"/ingest\"\nregistration = \"accept\"\n")
    }

    fn dev_with(&self, folder: &Path, text: &str) -> anyhow::Result<Server> {
        let config = folder.join("bench.toml");
        std::fs::write(&config, text)?;
        let data = folder.join("data");
        let (config, data) = (config.to_string_lossy().into_owned(), data.to_string_lossy().into_owned());
        let mut arguments = vec!["dev", "--config", &config, "--data", &data];
        for listener in ["--ws", "--edge-http", "--grpc", "--http", "--link"] {
            arguments.extend([listener, "127.0.0.1:0"]);
        }
        Server::start(&self.binary, &arguments)
    }

    fn load(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

/// Latencies in nanoseconds, up to a minute.
pub(crate) fn histogram() -> anyhow::Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1_000, 60_000_000_000, 3)?)
}

fn milliseconds(latencies: &Histogram<u64>, quantile: f64) -> f64 {
    latencies.value_at_quantile(quantile) as f64 / 1e6
}
