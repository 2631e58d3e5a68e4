//! `dead-letters`: what the members of a handler group set aside, and what is to become of it.

use trunkline_proto::{Offset, v1};
use trunkline_sdk::ClientError;

use super::Remote;
use crate::{
    args::{DeadLettersArgs, DeadLettersVerb, ReleaseArgs},
    exit::Failure,
    render::{json, line, out::Out, table},
};

/// Of one call.
const PAGE: u32 = 1000;

pub(crate) async fn run(args: DeadLettersArgs) -> Result<(), Failure> {
    match args.verb {
        DeadLettersVerb::List { remote, group, partition } => {
            let remote = Remote::new(&remote)?;
            let mut found = Vec::new();
            for partition in remote.partitions(partition).await? {
                let events = all(&remote, &group, partition).await?;
                found.extend(events.into_iter().map(|event| (partition, event)));
            }
            // a name that is mistyped has none either
            if found.is_empty() && !remote.json && remote.check(remote.client.groups(group.clone()).await)?.is_empty() {
                return Err(Failure::usage(format!("there is no group {group:?}: `trunkline groups` lists them")));
            }
            print(&remote, &found, false)
        }
        DeadLettersVerb::Show { remote, group, partition, offset } => {
            let remote = Remote::new(&remote)?;
            let before = Offset(offset.0.saturating_sub(1));
            let page = remote.check(page(&remote, &group, partition, before, 1).await)?;
            let wanted =
                |event: &v1::ParkedEvent| event.record.as_ref().is_some_and(|record| record.offset == offset.0);
            match page.events.into_iter().find(wanted) {
                Some(event) => print(&remote, &[(partition, event)], true),
                None => {
                    Err(Failure::usage(format!("no such dead letter of {group} in partition {partition}: {offset}")))
                }
            }
        }
        DeadLettersVerb::Retry(args) => release(args, false).await,
        DeadLettersVerb::Discard(args) => release(args, true).await,
    }
}

async fn page(
    remote: &Remote,
    group: &str,
    partition: u16,
    after: Offset,
    limit: u32,
) -> Result<v1::ParkedResponse, ClientError> {
    let request = v1::ParkedRequest { group: group.to_owned(), partition: partition.into(), after: after.0, limit };
    remote.client.parked(request).await
}

/// Every dead letter of a partition; a group holds at most 10,000.
async fn all(remote: &Remote, group: &str, partition: u16) -> Result<Vec<v1::ParkedEvent>, Failure> {
    let (mut found, mut after) = (Vec::new(), Offset::ZERO);
    loop {
        let page = remote.check(page(remote, group, partition, after, PAGE).await)?;
        let last = page.events.last().and_then(|event| event.record.as_ref()).map(|record| Offset(record.offset));
        found.extend(page.events);
        match last {
            Some(last) if page.more => after = last,
            _ => return Ok(found),
        }
    }
}

async fn release(args: ReleaseArgs, discard: bool) -> Result<(), Failure> {
    let remote = Remote::new(&args.remote)?;
    let mut wanted: Vec<(u16, Vec<u64>)> = Vec::new();
    match args.partition {
        Some(partition) => wanted.push((partition, args.offsets.iter().map(|offset| offset.0).collect())),
        None => {
            for partition in remote.partitions(None).await? {
                let events = all(&remote, &args.group, partition).await?;
                let offsets: Vec<u64> = events.iter().filter_map(|event| Some(event.record.as_ref()?.offset)).collect();
                wanted.extend(offsets.chunks(PAGE as usize).map(|chunk| (partition, chunk.to_vec())));
            }
        }
    }
    let mut count = 0;
    for (partition, offsets) in wanted {
        count += offsets.len();
        let group = args.group.clone();
        let request = v1::ReleaseParkedRequest { group, partition: partition.into(), offsets, discard };
        remote.check(remote.client.release_parked(request).await)?;
    }
    let mut out = Out::new();
    if remote.json {
        out.json(&serde_json::json!({ "group": args.group, "released": count, "discard": discard }))?;
    } else {
        let done = if discard { "forgotten" } else { "given to the group again" };
        out.line(format!("{count} {done}"))?;
    }
    out.flush()
}

/// A line each; with `whole` nothing is shortened.
fn print(remote: &Remote, events: &[(u16, v1::ParkedEvent)], whole: bool) -> Result<(), Failure> {
    let mut out = Out::new();
    let width = if whole { None } else { table::terminal_width() };
    for (partition, event) in events {
        let mut object = json::record(*partition, &event.record.clone().unwrap_or_default(), false);
        object.put("attempts", event.attempts).put("failure", event.reason.as_str());
        if remote.json {
            out.json(&object)?;
        } else {
            out.line(line::record(&object, width))?;
        }
    }
    if events.is_empty() && !remote.json {
        out.line("no dead letters")?;
    }
    out.flush()
}
