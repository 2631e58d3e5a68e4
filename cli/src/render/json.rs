//! Groups and clusters as JSON, with the keys of SURFACE section 1; records and connections are in the proto crate. Order of keys
//! is fixed, so that lines can be compared.

use serde_json::json;
pub(crate) use trunkline_proto::json::{Object, connection, id, offset, phase, record, time};
use trunkline_proto::v1;

/// One handler group in one partition.
pub(crate) fn group(group: &v1::Group) -> Object {
    let mut object = Object::default();
    object.put("group", group.group.as_str()).put("partition", group.partition);
    object.put("member", group.member.as_str()).put("epoch", group.epoch).put("through", offset(group.through));
    object.put("holes", group.holes).put("lag", group.lag).put("parked", group.parked);
    object.put("members", group.members.clone());
    object
}

/// The whole cluster.
pub(crate) fn cluster(description: &v1::DescribeResponse) -> Object {
    let broker = |broker: &v1::Broker| {
        json!({"id": broker.id, "grpc": broker.grpc, "link": broker.link, "http": broker.http,
            "reachable": broker.reachable, "healthy": broker.healthy})
    };
    let replica = |replica: &v1::Replica| {
        json!({"broker": replica.broker, "voter": replica.voter, "reachable": replica.reachable,
            "applied": offset(replica.applied), "lag": replica.lag, "snapshot": offset(replica.snapshot),
            "digest": digest(replica.digest)})
    };
    let partition = |partition: &v1::Partition| {
        json!({
            "partition": partition.partition, "leader": partition.leader, "voters": partition.voters,
            "learners": partition.learners, "replicas": partition.replicas.iter().map(replica).collect::<Vec<_>>(),
            "term": partition.term,
            "applied": offset(partition.applied), "earliest": offset(partition.earliest),
            "snapshot": offset(partition.snapshot), "connections": partition.connections,
            "channels": partition.channels, "digest": digest(partition.digest),
        })
    };
    let edge = |edge: &v1::Edge| {
        json!({"edge": edge.edge, "incarnation": edge.incarnation, "attached": edge.attached,
            "connections": edge.connections, "lag": edge.lag})
    };
    let mut object = Object::default();
    object.put("cluster", description.cluster.as_str()).put("version", description.version.as_str());
    object.put("partition_count", description.partition_count);
    object.put("brokers", description.brokers.iter().map(broker).collect::<Vec<_>>());
    object.put("partitions", description.partitions.iter().map(partition).collect::<Vec<_>>());
    object.put("edges", description.edges.iter().map(edge).collect::<Vec<_>>());
    object
}

/// A digest, of 64 bits, as text: JSON numbers lose bits in many readers.
pub(crate) fn digest(digest: u64) -> String {
    format!("{digest:016x}")
}
