//! `cluster status`: brokers, partitions, edges.

use trunkline_proto::v1::DescribeResponse;

use super::Remote;
use crate::{
    args::{ClusterArgs, ClusterVerb},
    exit::Failure,
    render::{escape::escape, json, out::Out, table},
};

pub(crate) async fn run(args: ClusterArgs) -> Result<(), Failure> {
    let ClusterVerb::Status { remote } = args.verb;
    let remote = Remote::new(&remote)?;
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
    let mut brokers = table::table(&["broker", "grpc", "link", "healthy"]);
    for broker in &cluster.brokers {
        let healthy = if broker.healthy { "yes" } else { "NO" };
        table::row(&mut brokers, [broker.id.to_string(), broker.grpc.clone(), broker.link.clone(), healthy.to_owned()]);
    }
    out.line(brokers)?;
    let mut partitions = table::table(&[
        "partition",
        "leader",
        "voters",
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
