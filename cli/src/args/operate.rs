//! What the operator's verbs take: a cluster's members, folders of stopped brokers, certificates, tokens.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use trunkline_proto::units::HumanDuration;

use super::RemoteArgs;

#[derive(Args, Debug)]
pub(crate) struct ClusterArgs {
    #[command(subcommand)]
    pub(crate) verb: ClusterVerb,
}

#[derive(Subcommand, Debug)]
pub(crate) enum ClusterVerb {
    /// Write what a new cluster starts with: certificates, and a folder with a configuration for each broker and edge. Nothing
    /// is overwritten, and nothing is started.
    Init(InitArgs),
    /// Brokers, partitions and their replicas, edges.
    Status {
        #[command(flatten)]
        remote: RemoteArgs,
    },
    /// Make a broker a member: it gets the log, and votes once it has caught up. It must be running.
    Add {
        /// Its broker.node_id.
        #[arg(value_parser = clap::value_parser!(u64).range(1..))]
        id: u64,
        /// Where others reach its link, host:port.
        #[arg(long, value_name = "ADDR")]
        link: String,
        /// How long it may take to catch up. Then it stays a learner until this is repeated.
        #[arg(long, value_name = "DURATION", default_value = "10m")]
        patience: HumanDuration,
        #[command(flatten)]
        remote: RemoteArgs,
    },
    /// Take a broker out, whether it is running or not.
    Remove {
        /// Its broker.node_id.
        #[arg(value_parser = clap::value_parser!(u64).range(1..))]
        id: u64,
        #[command(flatten)]
        remote: RemoteArgs,
    },
    /// The last resort: go on with one broker where a majority of the members has lost its disk for good.
    Recover(RecoverArgs),
    /// Have another broker lead a partition. Leaders go back to their preferred brokers by themselves after a while.
    Transfer {
        #[arg(long, value_name = "P")]
        partition: u16,
        /// The broker that is to lead.
        #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u64).range(1..))]
        to: u64,
        #[command(flatten)]
        remote: RemoteArgs,
    },
}

#[derive(Args, Debug)]
pub(crate) struct InitArgs {
    /// The brokers' addresses, 1, 3 or 5: HOST or HOST:PORT of each link, as the others reach it. The first is broker 1.
    #[arg(long, value_name = "HOST[:PORT]", value_delimiter = ',', required = true)]
    pub(crate) members: Vec<crate::verbs::init::Host>,
    /// Where to put the folders.
    #[arg(long, value_name = "DIR", default_value = "./trunkline-cluster")]
    pub(crate) out: PathBuf,
    /// An edge's name. May be repeated.
    #[arg(long, value_name = "NAME")]
    pub(crate) edge: Vec<String>,
    /// The cluster's name.
    #[arg(long, value_name = "NAME", default_value = "trunkline")]
    pub(crate) name: String,
    /// Partitions, fixed for good.
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub(crate) partitions: u16,
    /// Have gRPC, HTTP and WebSockets listen beyond loopback, without TLS: in a network of your own.
    #[arg(long)]
    pub(crate) insecure: bool,
    /// For machines: JSON, one object a node.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Of a broker that is stopped.
#[derive(Args, Debug)]
pub(crate) struct RecoverArgs {
    /// Its data folder: of those that are left the one whose logs go furthest.
    pub(crate) dir: PathBuf,
    /// Do it. Without this only what would be kept and lost is told.
    #[arg(long)]
    pub(crate) yes: bool,
    /// For machines: JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct VerifyArgs {
    /// The data folder of a broker that is not running.
    pub(crate) dir: PathBuf,
    /// For machines: JSON, one object a partition.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct CertsArgs {
    /// Where to put them.
    #[arg(long, visible_alias = "out", default_value = "./trunkline-pki")]
    pub(crate) dir: PathBuf,
    /// A broker's number. May be repeated.
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) broker: Vec<u64>,
    /// An edge's name. May be repeated.
    #[arg(long, value_name = "NAME")]
    pub(crate) edge: Vec<String>,
    /// For machines: JSON, one object a file.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct TokenArgs {
    #[command(subcommand)]
    pub(crate) verb: TokenVerb,
}

#[derive(Subcommand, Debug)]
pub(crate) enum TokenVerb {
    /// Make a token and print it, once, with what to put into the configuration: a digest. Nothing is stored.
    New {
        /// Whose it is.
        #[arg(long)]
        name: String,
        /// What it is good for: handler, publisher, operator or read_only; client: a client of an API with auth kind "token".
        #[arg(long, value_parser = ["handler", "publisher", "operator", "read_only", "client"])]
        role: String,
        /// Role handler: only these groups. May be repeated; with --api those named so by default.
        #[arg(long)]
        group: Vec<String>,
        /// Roles handler and publisher: only connections of these APIs. May be repeated.
        #[arg(long)]
        api: Vec<String>,
        /// Roles handler and publisher: only these channels, or those that begin so: `chat.*`. May be repeated; with --api none by default.
        #[arg(long)]
        channel: Vec<String>,
        /// For machines: JSON.
        #[arg(long)]
        json: bool,
    },
    /// The tokens of a configuration: names, roles and digests.
    List {
        /// TOML file of a broker or edge.
        #[arg(long, value_name = "FILE", env = "TRUNKLINE_CONFIG")]
        config: PathBuf,
        /// For machines: JSON, one object a token.
        #[arg(long)]
        json: bool,
    },
}
