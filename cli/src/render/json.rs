//! Connections and groups as JSON, with the keys of SURFACE section 1; records and clusters are in the proto crate. Order of keys is
//! fixed, so that lines can be compared.

use serde_json::json;
pub(crate) use trunkline_proto::json::{Object, cluster, digest, id, offset, record, time};
use trunkline_proto::v1;

/// One connection.
pub(crate) fn connection(connection: &v1::Connection) -> Object {
    let mut object = Object::default();
    object.put("connection", id(&connection.connection)).put("api", connection.api.as_str());
    object.put("edge", connection.edge.as_str()).put("opened_at", time(connection.opened_at));
    object.put("subprotocol", connection.subprotocol.as_str()).put("attributes", json!(connection.attributes));
    object.put("channels", connection.channels.clone());
    object.put("phase", phase(connection)).put("offset", offset(connection.opened_offset));
    object.put_text("peer", connection.peer.clone()).put_text("principal", connection.principal.clone());
    object
}

/// The name of a connection's phase.
pub(crate) fn phase(connection: &v1::Connection) -> String {
    connection.phase().as_str_name().trim_start_matches("CONNECTION_PHASE_").to_ascii_lowercase()
}

/// One handler group in one partition.
pub(crate) fn group(group: &v1::Group) -> Object {
    let mut object = Object::default();
    object.put("group", group.group.as_str()).put("partition", group.partition);
    object.put("member", group.member.as_str()).put("epoch", group.epoch).put("through", offset(group.through));
    object.put("holes", group.holes).put("lag", group.lag).put("parked", group.parked);
    object.put("members", group.members.clone());
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection() {
        let found = v1::Connection {
            connection: vec![0xff; 16].into(),
            api: "chat".into(),
            edge: "e1".into(),
            opened_at: 0,
            attributes: [("nickname".to_owned(), "ada".to_owned())].into(),
            channels: vec!["chat".into()],
            phase: 2,
            ..Default::default()
        };
        assert_eq!(
            serde_json::to_string(&connection(&found)).unwrap(),
            r#"{"connection":"_____________________w","api":"chat","edge":"e1","opened_at":"1970-01-01T00:00:00.000000Z","subprotocol":"","attributes":{"nickname":"ada"},"channels":["chat"],"phase":"open","offset":"0.0"}"#
        );
    }
}
