//! `groups`: how far handler groups are.

use trunkline_proto::v1::Group;

use super::Remote;
use crate::{
    args::{GroupsArgs, GroupsVerb},
    exit::Failure,
    render::{json, out::Out, table},
};

pub(crate) async fn run(args: GroupsArgs) -> Result<(), Failure> {
    match args.verb {
        None => {
            let remote = Remote::new(&args.remote)?;
            let groups = remote.check(remote.client.groups(args.group.unwrap_or_default()).await)?;
            print(&remote, &groups)
        }
        Some(GroupsVerb::Reset { remote, group, to }) => {
            let remote = Remote::new(&remote)?;
            let groups = remote.check(remote.client.reset_group(group, to.start()).await)?;
            print(&remote, &groups)
        }
    }
}

fn print(remote: &Remote, groups: &[Group]) -> Result<(), Failure> {
    let mut out = Out::new();
    if remote.json {
        groups.iter().try_for_each(|group| out.json(&json::group(group)))?;
        return out.flush();
    }
    let mut table =
        table::table(&["group", "partition", "member", "epoch", "through", "holes", "lag", "parked", "members"]);
    for group in groups {
        let cells = [
            group.group.clone(),
            group.partition.to_string(),
            group.member.clone(),
            group.epoch.to_string(),
            json::offset(group.through),
            group.holes.to_string(),
            group.lag.to_string(),
            group.parked.to_string(),
            group.members.join(", "),
        ];
        table::row(&mut table, cells);
    }
    table::print(&mut out, &table)?;
    if groups.is_empty() {
        out.line("no handler groups")?;
    }
    out.flush()
}
