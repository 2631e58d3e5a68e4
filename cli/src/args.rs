//! The command line. What each flag means is said once, here; files and environment are `config.rs`'s.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand};
use trunkline_proto::units::HumanDuration;
use trunkline_proto::{ConnectionId, Offset};

/// A WebSocket gateway whose every connection lives in a replicated log.
#[derive(Parser, Debug)]
#[command(
    name = "trunkline",
    version,
    propagate_version = true,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,

    /// Log as JSON, one object a line.
    #[arg(long, global = true, env = "TRUNKLINE_LOG_JSON")]
    pub(crate) log_json: bool,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Broker, edge and demo handlers in one process, to try things out.
    Dev(DevArgs),
    /// A broker: keeps the log, serves handlers, tools and edges.
    Broker(BrokerArgs),
    /// An edge: terminates WebSockets.
    Edge(EdgeArgs),
    /// The function bridge: calls HTTP functions with the events of APIs that have some.
    Functions(FunctionsArgs),
    /// Live connections.
    Connections(ConnectionsArgs),
    /// Send a message to a connection.
    Push(PushArgs),
    /// Send a message to every connection of a channel, or of an API.
    Publish(PublishArgs),
    /// Close a connection.
    Close(CloseArgs),
    /// The log, readable.
    Tail(TailArgs),
    /// Connections and channels at a moment of the past, rebuilt from the log.
    State(StateArgs),
    /// Handler groups: offsets, lag, members.
    Groups(GroupsArgs),
    /// Dead letters: events that the members of a handler group set aside.
    DeadLetters(DeadLettersArgs),
    /// The cluster: brokers, partitions, edges.
    Cluster(ClusterArgs),
    /// Read a stopped broker's log: checksums, gaps, state digest.
    Verify(VerifyArgs),
    /// Tokens for gRPC and HTTP, and for clients of an API.
    Token(TokenArgs),
    /// Make a test CA and certificates of brokers and edges. Nothing is overwritten.
    Certs(CertsArgs),
}

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
    #[arg(long, value_name = "ADDR", env = "TRUNKLINE_GRPC")]
    pub(crate) grpc: Option<SocketAddr>,
    /// HTTP: API, health, metrics. [default: 127.0.0.1:7080]
    #[arg(long, value_name = "ADDR", env = "TRUNKLINE_HTTP")]
    pub(crate) http: Option<SocketAddr>,
    /// QUIC for edges, UDP. [default: 127.0.0.1:7443]
    #[arg(long, value_name = "ADDR", env = "TRUNKLINE_LINK")]
    pub(crate) link: Option<SocketAddr>,
    /// Partitions, fixed when the data folder is made. [default: 8, of dev 1]
    #[arg(long, value_name = "N", env = "TRUNKLINE_PARTITIONS")]
    pub(crate) partitions: Option<u16>,
}

/// Listeners of an edge.
#[derive(Args, Debug, Default, Clone)]
pub(crate) struct EdgeListen {
    /// WebSockets. [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR", env = "TRUNKLINE_WS")]
    pub(crate) ws: Option<SocketAddr>,
    /// The edge's health and metrics. [default: 127.0.0.1:8081]
    #[arg(long, value_name = "ADDR", env = "TRUNKLINE_EDGE_HTTP")]
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
    /// gRPC addresses of brokers to ask first. [default: http://127.0.0.1:7070]
    #[arg(long = "broker", value_name = "ADDR", env = "TRUNKLINE_BROKER", value_delimiter = ',')]
    pub(crate) brokers: Vec<String>,
    /// This bridge's name among those that share its work. [default: random]
    #[arg(long, value_name = "NAME")]
    pub(crate) member: Option<String>,
    /// Health and metrics. [default: none]
    #[arg(long, value_name = "ADDR")]
    pub(crate) http: Option<SocketAddr>,
}

/// What every verb takes.
#[derive(Args, Debug, Clone)]
pub(crate) struct RemoteArgs {
    /// gRPC address of any broker, or of several: the next one is asked where one is away.
    #[arg(
        long,
        value_name = "ADDR",
        env = "TRUNKLINE_BROKER",
        default_value = "http://127.0.0.1:7070",
        value_delimiter = ','
    )]
    pub(crate) broker: Vec<String>,
    /// Token to show, where brokers ask for one; safer in the environment, for others see the command line.
    #[arg(long, value_name = "TOKEN", env = "TRUNKLINE_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// Authority (PEM) of the brokers' certificates, where gRPC speaks TLS.
    #[arg(long, value_name = "FILE", env = "TRUNKLINE_CA")]
    pub(crate) ca: Option<PathBuf>,
    /// For machines: JSON, one object a line.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct ConnectionsArgs {
    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
    /// Only of this API.
    #[arg(long)]
    pub(crate) api: Option<String>,
    /// Only members of this channel.
    #[arg(long)]
    pub(crate) channel: Option<String>,
    /// At most so many.
    #[arg(long, default_value_t = 1000)]
    pub(crate) limit: usize,
}

#[derive(Args, Debug)]
pub(crate) struct PushArgs {
    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
    /// The connection.
    #[arg(value_parser = parse_connection, allow_hyphen_values = true)]
    pub(crate) id: ConnectionId,
    /// The message; standard input if absent.
    pub(crate) payload: Option<String>,
    /// As a binary message.
    #[arg(long)]
    pub(crate) binary: bool,
    /// Idempotency key: the same one within ten minutes does nothing twice.
    #[arg(long)]
    pub(crate) key: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct PublishArgs {
    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
    /// The channel, unless --api is given; then the message, or standard input if absent.
    #[arg(value_name = "CHANNEL] [PAYLOAD", num_args = 0..=2)]
    pub(crate) words: Vec<String>,
    /// To every connection of this API.
    #[arg(long)]
    pub(crate) api: Option<String>,
    /// But not to these connections.
    #[arg(long, value_name = "ID", value_parser = parse_connection, allow_hyphen_values = true)]
    pub(crate) except: Vec<ConnectionId>,
    /// As a binary message.
    #[arg(long)]
    pub(crate) binary: bool,
    /// Skip the log: at most once, for what the next one replaces anyway.
    #[arg(long)]
    pub(crate) unlogged: bool,
    /// Idempotency key: the same one within ten minutes does nothing twice.
    #[arg(long)]
    pub(crate) key: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct CloseArgs {
    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
    /// The connection.
    #[arg(value_parser = parse_connection, allow_hyphen_values = true)]
    pub(crate) id: ConnectionId,
    /// Close code: 1000, 1001, 1008, 1011, 1012, 1013 or 3000 to 4999.
    #[arg(long, default_value_t = 1000)]
    pub(crate) code: u16,
    /// At most 123 bytes.
    #[arg(long, default_value = "")]
    pub(crate) reason: String,
}

#[derive(Args, Debug)]
pub(crate) struct TailArgs {
    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
    /// Only of this API.
    #[arg(long)]
    pub(crate) api: Option<String>,
    /// Only of this connection.
    #[arg(long, value_name = "ID", value_parser = parse_connection, allow_hyphen_values = true)]
    pub(crate) connection: Option<ConnectionId>,
    /// Where to begin: earliest, latest, an offset such as 1042.0, a time (RFC 3339), or so long ago, such as 10m.
    /// [default: earliest, with --follow latest]
    #[arg(long)]
    pub(crate) from: Option<crate::moment::From>,
    /// Go on at the end.
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// Only this partition.
    #[arg(long, value_name = "P")]
    pub(crate) partition: Option<u16>,
    /// With refused records, their reasons, and where records come from.
    #[arg(long)]
    pub(crate) raw: bool,
    /// At most so many records.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit: Option<u32>,
    /// As far as the broker that is asked has it, which may be old: answers without a leader too.
    #[arg(long)]
    pub(crate) local: bool,
}

#[derive(Args, Debug)]
pub(crate) struct StateArgs {
    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
    /// When: a time (RFC 3339), so long ago (10m), or with --partition an offset (1042.0). [default: now]
    #[arg(long)]
    pub(crate) at: Option<crate::moment::From>,
    /// Only this partition.
    #[arg(long, value_name = "P")]
    pub(crate) partition: Option<u16>,
}

#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct GroupsArgs {
    #[command(subcommand)]
    pub(crate) verb: Option<GroupsVerb>,
    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
    /// Only this group.
    pub(crate) group: Option<String>,
}

#[derive(Subcommand, Debug)]
pub(crate) enum GroupsVerb {
    /// Move a group: what is before the moment counts as settled, what is after it as open.
    Reset {
        #[command(flatten)]
        remote: RemoteArgs,
        /// The group.
        group: String,
        /// earliest, latest, an offset, a time (RFC 3339), or so long ago (10m).
        #[arg(long)]
        to: crate::moment::From,
    },
}

#[derive(Args, Debug)]
pub(crate) struct DeadLettersArgs {
    #[command(subcommand)]
    pub(crate) verb: DeadLettersVerb,
}

#[derive(Subcommand, Debug)]
pub(crate) enum DeadLettersVerb {
    /// A group's dead letters: what, why, and how often it was tried.
    List {
        #[command(flatten)]
        remote: RemoteArgs,
        /// The handler group.
        group: String,
        /// Only this partition.
        #[arg(long, value_name = "P")]
        partition: Option<u16>,
    },
    /// One of them, as it stood in the log; with --json to its last byte.
    Show {
        #[command(flatten)]
        remote: RemoteArgs,
        /// The handler group.
        group: String,
        /// Its partition.
        partition: u16,
        /// Its offset, such as 1042.0.
        offset: Offset,
    },
    /// Give them to the group again, as if never tried.
    Retry(ReleaseArgs),
    /// Forget them.
    Discard(ReleaseArgs),
}

/// Which dead letters.
#[derive(Args, Debug)]
pub(crate) struct ReleaseArgs {
    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
    /// The handler group.
    pub(crate) group: String,
    /// Their partition.
    #[arg(required_unless_present = "all")]
    pub(crate) partition: Option<u16>,
    /// Their offsets, such as 1042.0.
    #[arg(required_unless_present = "all")]
    pub(crate) offsets: Vec<Offset>,
    /// All there are, in every partition.
    #[arg(long, conflicts_with_all = ["partition", "offsets"])]
    pub(crate) all: bool,
}

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
        /// Role handler: only these groups. May be repeated.
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

fn parse_connection(text: &str) -> Result<ConnectionId, String> {
    text.parse().map_err(|error: trunkline_proto::ids::ConnectionIdError| error.to_string())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn verbs_parse() {
        for line in [
            "trunkline dev --partitions 8 --ws 127.0.0.1:0 --set broker.edge_grace=3s",
            "trunkline broker --config a.toml --check-config",
            "trunkline edge --name e1 --brokers 1@a:1,2@b:2 --dump-config",
            "trunkline functions --config a.toml --broker 127.0.0.1:7070,127.0.0.1:7071 --member one",
            "trunkline connections --api chat --limit 5 --json",
            "trunkline push AAAAAAAAAAAAAAAAAAAAAA hello --binary",
            "trunkline push -AAAAAAAAAAAAAAAAAAAAA hello",
            "trunkline publish room hello --except AAAAAAAAAAAAAAAAAAAAAA --unlogged",
            "trunkline publish --api chat hello",
            "trunkline close AAAAAAAAAAAAAAAAAAAAAA --code 4001 --reason bye",
            "trunkline tail --from 2026-11-22T10:00:00Z --follow --partition 3 --raw --limit 10",
            "trunkline tail --from 10.2 -f",
            "trunkline state --partition 0 --at 12.0",
            "trunkline groups",
            "trunkline groups chat --json",
            "trunkline groups reset chat --to earliest",
            "trunkline dead-letters list chat --json",
            "trunkline dead-letters show chat 3 1042.0",
            "trunkline dead-letters retry chat 3 1042.0 1042.1",
            "trunkline dead-letters discard chat --all",
            "trunkline cluster status --broker 127.0.0.1:1",
            "trunkline cluster init --members 10.0.0.1,b2:7444,[::1]:7445 --out d --edge e1 --name main --partitions 4",
            "trunkline verify ./data",
            "trunkline certs --dir pki --broker 1 --broker 2 --edge e1",
        ] {
            parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    #[test]
    fn what_is_wrong_is_refused() {
        for line in [
            "trunkline",
            "trunkline fly",
            "trunkline push hello",
            "trunkline tail --from yesterday",
            "trunkline tail --limit 0",
            "trunkline certs --broker 0",
            "trunkline publish a b c",
            "trunkline dead-letters retry chat",
            "trunkline dead-letters retry chat 3",
            "trunkline dead-letters retry chat 3 1.0 --all",
            "trunkline dev --ws nowhere",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
