//! Groups as JSON, with keys that scripts rely on; records, connections and clusters are in the proto crate. Order of keys is
//! fixed, so that lines can be compared.

pub(crate) use trunkline_proto::json::{Object, cluster, connection, digest, id, offset, phase, record, time};
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
