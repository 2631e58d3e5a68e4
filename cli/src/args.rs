//! The command line. What each flag means is said once, here and in the files below; files and environment are `config.rs`'s.

mod operate;
mod roles;
mod verbs;

use clap::{Parser, Subcommand};

pub(crate) use self::{
    operate::{CertsArgs, ClusterArgs, ClusterVerb, InitArgs, RecoverArgs, TokenArgs, TokenVerb, VerifyArgs},
    roles::{BrokerArgs, BrokerListen, DevArgs, EdgeArgs, EdgeListen, FileArgs, FunctionsArgs},
    verbs::{
        CloseArgs, ConnectionsArgs, DeadLettersArgs, DeadLettersVerb, GroupsArgs, GroupsVerb, PublishArgs, PushArgs,
        ReleaseArgs, RemoteArgs, StateArgs, TailArgs,
    },
};

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
            "trunkline cluster recover ./data --yes",
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
