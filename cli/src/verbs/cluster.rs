//! `cluster status`, `add`, `remove`, `transfer`: brokers, partitions, edges.

use trunkline_proto::v1::{DescribeResponse, Partition, Replica};

use super::Remote;
use crate::{
    args::{ClusterArgs, ClusterVerb},
    exit::Failure,
    render::{escape::escape, json, out::Out, table},
};

pub(crate) async fn run(args: ClusterArgs) -> Result<(), Failure> {
    match args.verb {
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
        print(&mut out, &description)?;
    }
    out.flush()
}

fn print(out: &mut Out, cluster: &DescribeResponse) -> Result<(), Failure> {
    let name = escape(&cluster.cluster, 64);
    out.line(format_args!(
        "cluster {name}, version {}, {} partitions",
        escape(&cluster.version, 64),
        cluster.partition_count
    ))?;
    let mut brokers = table::table(&["broker", "grpc", "link", "reachable", "healthy"]);
    for broker in &cluster.brokers {
        let yes = |yes: bool| if yes { "yes" } else { "NO" }.to_owned();
        // one that does not answer may be as healthy as can be
        let healthy = if broker.reachable { yes(broker.healthy) } else { "?".to_owned() };
        let (grpc, link) = (escape(&broker.grpc, 64), escape(&broker.link, 64));
        let cells = [broker.id.to_string(), grpc.to_string(), link.to_string(), yes(broker.reachable), healthy];
        table::row(&mut brokers, cells);
    }
    out.line(brokers)?;
    let mut partitions = table::table(&[
        "partition",
        "leader",
        "voters",
        "behind",
        "term",
        "applied",
        "earliest",
        "snapshot",
        "connections",
        "channels",
    ]);
    for partition in &cluster.partitions {
        let voters: Vec<String> = partition.voters.iter().map(u64::to_string).collect();
        let leader = if partition.leader == 0 { "none".to_owned() } else { partition.leader.to_string() };
        let cells = [
            partition.partition.to_string(),
            leader,
            voters.join(", "),
            behind(partition),
            partition.term.to_string(),
            json::offset(partition.applied),
            json::offset(partition.earliest),
            json::offset(partition.snapshot),
            partition.connections.to_string(),
            partition.channels.to_string(),
        ];
        table::row(&mut partitions, cells);
    }
    out.line(partitions)?;
    let mut edges = table::table(&["edge", "incarnation", "attached", "connections", "lag"]);
    for edge in &cluster.edges {
        let attached = if edge.attached { "yes" } else { "no" };
        let (incarnation, connections, lag) =
            (edge.incarnation.to_string(), edge.connections.to_string(), edge.lag.to_string());
        table::row(&mut edges, [edge.edge.clone(), incarnation, attached.to_owned(), connections, lag]);
    }
    table::print(out, &edges)
}

/// Members that lack entries, and how many; learners and those that do not answer too.
fn behind(partition: &Partition) -> String {
    let cell = |replica: &Replica| match (replica.reachable, replica.voter, replica.lag) {
        (false, ..) => Some(format!("{}: ?", replica.broker)),
        (true, true, 0) => None,
        (true, true, lag) => Some(format!("{}: {lag}", replica.broker)),
        (true, false, lag) => Some(format!("{}: {lag}, learner", replica.broker)),
    };
    let behind: Vec<String> = partition.replicas.iter().filter_map(cell).collect();
    if behind.is_empty() { "-".to_owned() } else { behind.join("; ") }
}
