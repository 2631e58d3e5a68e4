//! The one binary of Trunkline: every role, and the operator's verbs. Arguments → configuration → logging → runtime → run.

mod args;
mod config;
mod dev;
mod exit;
mod functions;
mod logging;
mod moment;
mod pages;
mod pki;
mod render;
mod roles;
mod verbs;

use std::process::ExitCode;

use clap::Parser as _;

use crate::{
    args::{Cli, Command},
    exit::{Failure, USAGE},
};

fn main() -> ExitCode {
    // before anything else: rustls panics at its first use otherwise. An error means it is installed already
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { USAGE } else { 0 };
            // nothing can be done about a closed terminal
            let _ = error.print();
            return code.into();
        }
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let code = failure.code();
            if code != 0 {
                eprintln!("{failure}");
            }
            code.into()
        }
    }
}

/// Raises the soft limit of open files to the hard one: each socket is a file, and a log that cannot open one more closes for
/// good. The usual soft limit of 1,024 is for programs that use `select`.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        tracing::warn!(%error, files = limit.current, "the limit of open files stays as it is");
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    let is_role =
        matches!(cli.command, Command::Dev(_) | Command::Broker(_) | Command::Edge(_) | Command::Functions(_));
    logging::init(cli.log_json, if is_role { "info" } else { "warn" })?;
    if is_role {
        raise_file_limit();
    }
    match cli.command {
        Command::Dev(args) => dev::run(&args),
        Command::Broker(args) => roles::broker(&args),
        Command::Edge(args) => roles::edge(&args),
        Command::Functions(args) => functions::run(&args),
        Command::Verify(args) => verbs::verify::run(args),
        Command::Certs(args) => verbs::certs::run(args),
        Command::Token(args) => verbs::token::run(args),
        verb => roles::runtime()?.block_on(run_verb(verb)),
    }
}

async fn run_verb(verb: Command) -> Result<(), Failure> {
    match verb {
        Command::Connections(args) => verbs::connections::run(args).await,
        Command::Push(args) => verbs::submit::push(args).await,
        Command::Publish(args) => verbs::submit::publish(args).await,
        Command::Close(args) => verbs::submit::close(args).await,
        Command::Tail(args) => verbs::tail::run(args).await,
        Command::State(args) => verbs::state::run(args).await,
        Command::Groups(args) => verbs::groups::run(args).await,
        Command::DeadLetters(args) => verbs::dead_letters::run(args).await,
        Command::Cluster(args) => verbs::cluster::run(args).await,
        Command::Dev(_)
        | Command::Broker(_)
        | Command::Edge(_)
        | Command::Functions(_)
        | Command::Verify(_)
        | Command::Certs(_)
        | Command::Token(_) => Ok(()),
    }
}
