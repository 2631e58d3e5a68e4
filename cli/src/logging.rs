//! Logs go to standard error. What is logged: TRUNKLINE_LOG, such as `info,trunkline_broker=debug`. By default roles log
//! `info`, verbs `warn`, and openraft only errors: it tells each step of an election, and warns of each attempt at a broker that is
//! away, which this program says once. A stream that ends with its group is no error.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::{EnvFilter, fmt};

use crate::exit::Failure;

/// Sets up logging for the process; `default` is the level where the environment names none.
pub(crate) fn init(json: bool, default: &str) -> Result<(), Failure> {
    let filter = match std::env::var("TRUNKLINE_LOG") {
        Ok(filter) => filter.parse::<EnvFilter>().map_err(|error| Failure::usage(format!("TRUNKLINE_LOG: {error}")))?,
        Err(_) => EnvFilter::new(format!("{default},openraft=error,openraft::raft::stream_append=off")),
    };
    let builder = fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(io::stderr().is_terminal());
    let set = if json { builder.json().try_init() } else { builder.try_init() };
    set.map_err(|error| Failure::Other(anyhow::anyhow!("logging: {error}")))
}
