//! `cluster status`, `add`, `remove`, `transfer`: brokers, partitions, edges.

use super::Remote;
use crate::{
    args::{ClusterArgs, ClusterVerb},
    exit::Failure,
    render::{cluster, json, out::Out},
};

pub(crate) async fn run(args: ClusterArgs) -> Result<(), Failure> {
    match args.verb {
        ClusterVerb::Init(args) => super::init::run(&args),
        ClusterVerb::Status { remote } => status(&Remote::new(&remote)?).await,
        ClusterVerb::Add { id, link, patience, remote } => {
            let remote = Remote::new(&remote)?;
            remote.check(remote.client.add_member(id, link, patience.get()).await)?;
            done(&remote, format_args!("broker {id} is a member"))
        }
        ClusterVerb::Remove { id, remote } => {
            let remote = Remote::new(&remote)?;
            remote.check(remote.client.remove_member(id).await)?;
            done(&remote, format_args!("broker {id} is no member any more"))
        }
        ClusterVerb::Transfer { partition, to, remote } => {
            let remote = Remote::new(&remote)?;
            remote.check(remote.client.transfer_leader(partition, to).await)?;
            done(&remote, format_args!("broker {to} leads partition {partition}"))
        }
    }
}

fn done(remote: &Remote, what: std::fmt::Arguments<'_>) -> Result<(), Failure> {
    let mut out = Out::new();
    if remote.json {
        out.json(&serde_json::json!({ "done": true }))?;
    } else {
        out.line(what)?;
    }
    out.flush()
}

async fn status(remote: &Remote) -> Result<(), Failure> {
    let description = remote.check(remote.client.describe().await)?;
    let mut out = Out::new();
    if remote.json {
        out.json(&json::cluster(&description))?;
    } else {
        cluster::print(&mut out, &description)?;
    }
    out.flush()
}
