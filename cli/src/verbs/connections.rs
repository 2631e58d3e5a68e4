//! `connections`: who is connected now.

use trunkline_proto::v1;

use super::Remote;
use crate::{
    args::ConnectionsArgs,
    exit::Failure,
    render::{json, out::Out, table},
};

/// Connections asked for at once.
const PAGE: usize = 1000;

pub(crate) async fn run(args: ConnectionsArgs) -> Result<(), Failure> {
    let remote = Remote::new(&args.remote)?;
    let mut out = Out::new();
    let mut rows = Vec::new();
    let (mut after, mut left) = (bytes::Bytes::new(), args.limit);
    while left > 0 {
        let request = v1::ListConnectionsRequest {
            api: args.api.clone().unwrap_or_default(),
            channel: args.channel.clone().unwrap_or_default(),
            limit: u32::try_from(left.min(PAGE)).unwrap_or(u32::MAX),
            after: after.clone(),
        };
        let page = remote.check(remote.client.list(request).await)?;
        left = left.saturating_sub(page.connections.len());
        if remote.json {
            page.connections.iter().try_for_each(|connection| out.json(&json::connection(connection)))?;
        } else {
            rows.extend(page.connections);
        }
        if page.next.is_empty() {
            break;
        }
        after = page.next;
    }
    if !remote.json {
        table::print(&mut out, &connections_table(&rows))?;
        let more = if left == 0 { " (there may be more: --limit)" } else { "" };
        out.line(format_args!("{} connections{more}", rows.len()))?;
    }
    out.flush()
}

/// Connections as a table.
pub(crate) fn connections_table(connections: &[v1::Connection]) -> comfy_table::Table {
    let mut table = table::table(&[
        "connection",
        "api",
        "edge",
        "opened at",
        "last active at",
        "phase",
        "principal",
        "channels",
        "attributes",
    ]);
    for connection in connections {
        let attributes: Vec<String> =
            connection.attributes.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let cells = [
            json::id(&connection.connection),
            connection.api.clone(),
            connection.edge.clone(),
            json::time(connection.opened_at),
            json::time(connection.last_active_at),
            json::phase(connection),
            connection.principal.clone(),
            connection.channels.join(", "),
            attributes.join(", "),
        ];
        table::row(&mut table, cells);
    }
    table
}
