//! `cluster recover DIR`: one broker goes on alone, with its folder and without the others'.

use serde_json::json;
use trunkline_broker::node::recover::{Kept, Recovery, recover, survey};

use crate::{
    args::RecoverArgs,
    exit::Failure,
    render::{out::Out, table},
};

pub(crate) fn run(args: &RecoverArgs) -> Result<(), Failure> {
    let looked = if args.yes { recover(&args.dir) } else { survey(&args.dir) };
    let recovery = looked.map_err(|error| Failure::Other(anyhow::Error::new(error)))?;
    let mut out = Out::new();
    match args.json {
        true => out.json(&object(&recovery, args.yes))?,
        false => print(&mut out, &recovery, args.yes)?,
    }
    out.flush()
}

fn object(recovery: &Recovery, done: bool) -> serde_json::Value {
    let partition = |kept: &Kept| {
        let had_more: serde_json::Map<_, _> =
            kept.had_more.iter().map(|(broker, last)| (broker.to_string(), json!(last.0))).collect();
        json!({
            "partition": kept.partition.0, "last": kept.last.index.0, "term": kept.last.term,
            "committed": kept.committed.map(|committed| committed.0), "had_more": had_more,
        })
    };
    let left_behind = recovery.left_behind.iter().map(|(id, member)| json!({ "broker": id, "link": member.link }));
    json!({
        "done": done, "broker": recovery.identity.node, "cluster": recovery.identity.cluster,
        "partitions": recovery.partitions.iter().map(partition).collect::<Vec<_>>(),
        "left_behind": left_behind.collect::<Vec<_>>(),
    })
}

fn print(out: &mut Out, recovery: &Recovery, done: bool) -> Result<(), Failure> {
    let node = recovery.identity.node;
    let mut table = table::table(&["partition", "last entry", "of term", "known as committed", "known to be lost"]);
    for kept in &recovery.partitions {
        table::row(&mut table, row(kept));
    }
    out.line(format_args!("what broker {node} holds:"))?;
    out.line(table)?;
    out.line(
        "Everything up to these entries is kept, and counts as committed. What was acknowledged after them is lost: at least what is \
         known, and perhaps more, for brokers tell each other only once a second how far they are.",
    )?;
    let left: Vec<_> = recovery.left_behind.iter().map(|(id, member)| format!("{id} ({})", member.link)).collect();
    out.line(format_args!(
        "Left behind with the disks they had: broker {}. Delete those before you start them again. One that reaches this broker notices and \
         takes no part; a majority of them that does not would go on by itself.",
        left.join(", ")
    ))?;
    match done {
        true => out.line(format_args!(
            "broker {node} is the only member now. Start it, then add others, each with an empty folder and running: `trunkline cluster add \
             ID --link ADDRESS`"
        )),
        false => out.line(
            "Nothing is changed. If no majority of the members comes back, and no other one that is left has more: the same with --yes, \
             after a copy of the folder",
        ),
    }
}

fn row(kept: &Kept) -> [String; 5] {
    let lost = match kept.had_more.iter().max_by_key(|(_, last)| **last) {
        Some((broker, last)) => format!("{} to {last}, of broker {broker}", kept.last.index.0 + 1),
        None => "nothing".to_owned(),
    };
    let committed = kept.committed.map_or_else(|| "?".to_owned(), |committed| committed.to_string());
    [kept.partition.to_string(), kept.last.index.to_string(), kept.last.term.to_string(), committed, lost]
}

#[cfg(test)]
mod tests {
    use trunkline_broker::store::record::StoredLogId;
    use trunkline_proto::{LogIndex, PartitionId};

    use super::*;

    #[test]
    fn what_is_lost_is_told_by_entry_and_broker() {
        let last = StoredLogId { term: 3, index: LogIndex(40) };
        let mut kept = Kept { partition: PartitionId(2), last, committed: None, had_more: Default::default() };
        assert_eq!(row(&kept), ["2", "40", "3", "?", "nothing"]);
        kept.committed = Some(LogIndex(39));
        kept.had_more = [(1, LogIndex(44)), (2, LogIndex(47))].into();
        assert_eq!(row(&kept), ["2", "40", "3", "39", "41 to 47, of broker 2"]);
    }
}
