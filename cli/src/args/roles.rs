//! What the roles take: the configuration's file, and the addresses and folders that are worth a flag.

use std::{net::SocketAddr, path::PathBuf};

use clap::Args;

/// What every role takes.
#[derive(Args, Debug, Default, Clone)]
pub(crate) struct FileArgs {
    /// TOML file with tables `[broker]`, `[edge]`, `[functions]` and `[[api]]`.
    #[arg(long, value_name = "FILE", env = "TRUNKLINE_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// Set any key, such as broker.edge_grace=5s. May be repeated; TRUNKLINE_BROKER__EDGE_GRACE does the same.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Check the configuration and exit.
    #[arg(long, conflicts_with = "dump_config")]
    pub(crate) check_config: bool,
    /// Print the configuration in effect, and exit.
    #[arg(long)]
    pub(crate) dump_config: bool,
}

/// Listeners and folders of a broker.
#[derive(Args, Debug, Default, Clone)]
pub(crate) struct BrokerListen {
    /// Folder of the log. [default: ./trunkline-data]
    #[arg(long, value_name = "DIR", env = "TRUNKLINE_DATA")]
    pub(crate) data: Option<PathBuf>,
    /// gRPC for handlers and tools. [default: 127.0.0.1:7070]
    #[arg(long, value_name = "ADDR", env = "TRUNKLINE_GRPC", value_parser = address)]
    pub(crate) grpc: Option<SocketAddr>,
    /// HTTP: API, health, metrics. [default: 127.0.0.1:7080]
    #[arg(long, value_name = "ADDR", env = "TRUNKLINE_HTTP", value_parser = address)]
    pub(crate) http: Option<SocketAddr>,
    /// QUIC for edges, UDP. [default: 127.0.0.1:7443]
    #[arg(long, value_name = "ADDR", env = "TRUNKLINE_LINK", value_parser = address)]
    pub(crate) link: Option<SocketAddr>,
    /// Partitions, fixed when the data folder is made. [default: 8, of dev 1]
    #[arg(long, value_name = "N", env = "TRUNKLINE_PARTITIONS")]
    pub(crate) partitions: Option<u16>,
}

/// Listeners of an edge.
#[derive(Args, Debug, Default, Clone)]
pub(crate) struct EdgeListen {
    /// WebSockets. [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR", env = "TRUNKLINE_WS", value_parser = address)]
    pub(crate) ws: Option<SocketAddr>,
    /// The edge's health and metrics. [default: 127.0.0.1:8081]
    #[arg(long, value_name = "ADDR", env = "TRUNKLINE_EDGE_HTTP", value_parser = address)]
    pub(crate) edge_http: Option<SocketAddr>,
}

#[derive(Args, Debug, Default)]
pub(crate) struct DevArgs {
    #[command(flatten)]
    pub(crate) file: FileArgs,
    #[command(flatten)]
    pub(crate) broker: BrokerListen,
    #[command(flatten)]
    pub(crate) edge: EdgeListen,
    /// Leave /echo and /chat to handlers of yours.
    #[arg(long)]
    pub(crate) no_handlers: bool,
}

#[derive(Args, Debug, Default)]
pub(crate) struct BrokerArgs {
    #[command(flatten)]
    pub(crate) file: FileArgs,
    #[command(flatten)]
    pub(crate) broker: BrokerListen,
    /// Folder with certificates. [default: ./trunkline-pki]
    #[arg(long, value_name = "DIR", env = "TRUNKLINE_PKI")]
    pub(crate) pki: Option<PathBuf>,
}

#[derive(Args, Debug, Default)]
pub(crate) struct EdgeArgs {
    #[command(flatten)]
    pub(crate) file: FileArgs,
    #[command(flatten)]
    pub(crate) edge: EdgeListen,
    /// The edge's name, as in its certificate.
    #[arg(long, env = "TRUNKLINE_NAME")]
    pub(crate) name: Option<String>,
    /// Brokers to ask first, as ID@HOST:PORT of their links.
    #[arg(long, value_name = "ID@HOST:PORT", env = "TRUNKLINE_BROKERS", value_delimiter = ',')]
    pub(crate) brokers: Vec<String>,
    /// Folder with certificates.
    #[arg(long, value_name = "DIR", env = "TRUNKLINE_PKI")]
    pub(crate) pki: Option<PathBuf>,
}

#[derive(Args, Debug, Default)]
pub(crate) struct FunctionsArgs {
    #[command(flatten)]
    pub(crate) file: FileArgs,
    /// gRPC addresses of brokers to ask first. [default: 127.0.0.1:7070]
    #[arg(long = "broker", value_name = "ADDR", env = "TRUNKLINE_BROKER", value_delimiter = ',')]
    pub(crate) brokers: Vec<String>,
    /// This bridge's name among those that share its work. [default: random]
    #[arg(long, value_name = "NAME")]
    pub(crate) member: Option<String>,
    /// Health and metrics. [default: none]
    #[arg(long, value_name = "ADDR", value_parser = address)]
    pub(crate) http: Option<SocketAddr>,
}

/// Where to listen. A port alone is a common slip.
fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "an address and a port are expected, such as 127.0.0.1:8080".to_owned())
}
