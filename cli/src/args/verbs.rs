//! What the verbs take that ask a broker about connections, the log and handler groups.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use trunkline_proto::{ConnectionId, Offset};

/// What every verb takes.
#[derive(Args, Debug, Clone)]
pub(crate) struct RemoteArgs {
    /// gRPC address of any broker, or of several: the next one is asked where one is away.
    #[arg(
        long,
        value_name = "ADDR",
        env = "TRUNKLINE_BROKER",
        default_value = "127.0.0.1:7070",
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
    /// Their partition; not with --all.
    #[arg(required_unless_present = "all")]
    pub(crate) partition: Option<u16>,
    /// Their offsets, such as 1042.0.
    #[arg(required_unless_present = "all")]
    pub(crate) offsets: Vec<Offset>,
    /// All there are, in every partition.
    #[arg(long, conflicts_with_all = ["partition", "offsets"])]
    pub(crate) all: bool,
}

fn parse_connection(text: &str) -> Result<ConnectionId, String> {
    text.parse().map_err(|error: trunkline_proto::ids::ConnectionIdError| error.to_string())
}
