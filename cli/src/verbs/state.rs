//! `state`: connections and channels at a moment, rebuilt from the log.

use trunkline_proto::{
    Offset,
    v1::{Channel, Connection, StateAtRequest, state_at_request::At},
};

use super::{Remote, connections::connections_table};
use crate::{
    args::StateArgs,
    exit::Failure,
    moment::From,
    render::{json, out::Out, table},
};

/// Members of a channel that are named in the table.
const MEMBERS_SHOWN: usize = 5;

struct Found {
    connections: Vec<Connection>,
    channels: Vec<Channel>,
    /// Partition, last record folded in, digest.
    folded: Vec<(u16, u64, u64)>,
}

pub(crate) async fn run(args: StateArgs) -> Result<(), Failure> {
    let remote = Remote::new(&args.remote)?;
    let at = moment(&args)?;
    let partitions = remote.partitions(args.partition).await?;
    let mut out = Out::new();
    let mut found = Found { connections: Vec::new(), channels: Vec::new(), folded: Vec::new() };
    for partition in partitions {
        let request = StateAtRequest { partition: u32::from(partition), at: Some(at) };
        let mut pages = remote.check(remote.client.state_at(request).await)?;
        let mut folded = (partition, 0, 0);
        while let Some(page) = remote.check(pages.next().await)? {
            folded = (partition, page.through, page.digest);
            if remote.json {
                page.connections.iter().try_for_each(|connection| out.json(&json::connection(connection)))?;
            } else {
                found.connections.extend(page.connections);
                found.channels.extend(page.channels);
            }
        }
        found.folded.push(folded);
    }
    if !remote.json {
        print(&mut out, &found)?;
    }
    out.flush()
}

fn moment(args: &StateArgs) -> Result<At, Failure> {
    match (args.at, args.partition) {
        (Some(From::Offset(offset)), Some(_)) => Ok(At::Offset(offset.0)),
        (Some(From::Offset(_)), None) => Err(Failure::usage("an offset belongs to one partition: add --partition")),
        (Some(From::Earliest), _) => Err(Failure::usage("before the earliest record there is no state")),
        // everything stamped so far, whatever this machine's clock says
        (None | Some(From::Latest), _) => Ok(At::Time(u64::MAX)),
        (Some(time @ (From::Time(_) | From::Ago(_))), _) => match time.start() {
            trunkline_sdk::StartAt::Time(time) => Ok(At::Time(time.0)),
            _ => Err(Failure::usage("a time is expected")),
        },
    }
}

fn print(out: &mut Out, found: &Found) -> Result<(), Failure> {
    table::print(out, &connections_table(&found.connections))?;
    out.line(format_args!("{} connections", found.connections.len()))?;
    if !found.channels.is_empty() {
        let mut table = table::table(&["channel", "members", "connections"]);
        for channel in &found.channels {
            let mut shown: Vec<String> =
                channel.connections.iter().take(MEMBERS_SHOWN).map(|id| json::id(id)).collect();
            if channel.connections.len() > MEMBERS_SHOWN {
                shown.push("…".to_owned());
            }
            table::row(&mut table, [channel.channel.clone(), channel.connections.len().to_string(), shown.join(", ")]);
        }
        out.line(table)?;
    }
    for (partition, through, digest) in &found.folded {
        let through = Offset(*through);
        out.line(format_args!("partition {partition} through {through}, digest {}", json::digest(*digest)))?;
    }
    Ok(())
}
