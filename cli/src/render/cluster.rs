//! A cluster for people: tables that fit 80 columns, and then in words what is not as it should be.

use indicatif::BinaryBytes;
use trunkline_proto::{
    Offset,
    json::Standing,
    v1::{Broker, DescribeResponse, Partition, Replica},
};

use super::{escape::escape, out::Out, table};
use crate::exit::Failure;

/// Entries a replica may lack without a word: they are on their way.
const LAG_SHOWN: u64 = 256;
/// Characters of what a broker says of itself.
const PROBLEM_MAX: usize = 512;

/// Everything.
pub(crate) fn print(out: &mut Out, cluster: &DescribeResponse) -> Result<(), Failure> {
    let name = escape(&cluster.cluster, 64);
    let count = cluster.partition_count;
    out.line(format_args!("cluster {name}, version {}, {count} partitions", escape(&cluster.version, 64)))?;
    out.line(brokers(cluster))?;
    out.line(partitions(cluster))?;
    table::print(out, &edges(cluster))?;
    let notes = notes(cluster);
    if notes.is_empty() {
        out.line("every partition has a leader, and every replica keeps up")?;
    }
    notes.iter().try_for_each(|note| out.line(note))
}

fn brokers(cluster: &DescribeResponse) -> comfy_table::Table {
    let mut table = table::table(&["broker", "state", "leads", "grpc", "link", "disk free"]);
    for broker in &cluster.brokers {
        let leads = cluster.partitions.iter().filter(|partition| partition.leader == broker.id).count();
        let free = match broker.disk_free_bytes {
            0 => "?".to_owned(),
            bytes => BinaryBytes(bytes).to_string(),
        };
        let state = state(broker, cluster).to_owned();
        let cells = [broker.id.to_string(), state, leads.to_string(), broker.grpc.clone(), broker.link.clone(), free];
        table::row(&mut table, cells);
    }
    table
}

fn state(broker: &Broker, cluster: &DescribeResponse) -> &'static str {
    match (Standing::of(broker.id, cluster), broker.answered) {
        (Standing::None, true) => "no member",
        (Standing::None, false) => "no member, away",
        (_, false) => "NO ANSWER",
        (_, true) if !broker.problem.is_empty() => "NOT READY",
        (Standing::Voter, true) => "voter",
        (Standing::Learner, true) => "learner",
    }
}

fn partitions(cluster: &DescribeResponse) -> comfy_table::Table {
    let columns = ["part", "leader", "voters", "behind", "term", "entries", "snapshot", "conns"];
    let mut table = table::table(&columns);
    let index = |offset: u64| Offset(offset).index().0;
    for partition in &cluster.partitions {
        let voters: Vec<String> = partition.voters.iter().map(u64::to_string).collect();
        let known = |number: u64, otherwise: &str| if number == 0 { otherwise.to_owned() } else { number.to_string() };
        let cells = [
            partition.partition.to_string(),
            known(partition.leader, "NONE"),
            voters.join(" "),
            behind(partition),
            known(partition.term, "?"),
            format!("{} to {}", index(partition.earliest), index(partition.applied)),
            known(index(partition.snapshot), "-"),
            partition.connections.to_string(),
        ];
        table::row(&mut table, cells);
    }
    table
}

/// Members that lack entries, and how many; learners and those that do not answer or are damaged too.
fn behind(partition: &Partition) -> String {
    let cell = |replica: &Replica| match replica {
        Replica { reachable: false, broker, .. } => Some(format!("{broker}: ?")),
        Replica { broker, problem, .. } if !problem.is_empty() => Some(format!("{broker}: CLOSED")),
        Replica { broker, voter: false, lag, .. } => Some(format!("{broker}: {lag}, learner")),
        Replica { lag: 0, .. } => None,
        Replica { broker, lag, .. } => Some(format!("{broker}: {lag}")),
    };
    let behind: Vec<String> = partition.replicas.iter().filter_map(cell).collect();
    if behind.is_empty() { "-".to_owned() } else { behind.join("; ") }
}

fn edges(cluster: &DescribeResponse) -> comfy_table::Table {
    let mut table = table::table(&["edge", "incarnation", "attached", "connections", "lag"]);
    for edge in &cluster.edges {
        let attached = if edge.attached { "yes" } else { "NO" }.to_owned();
        let numbers = [edge.connections.to_string(), edge.lag.to_string()];
        let [connections, lag] = numbers;
        table::row(&mut table, [edge.edge.clone(), edge.incarnation.to_string(), attached, connections, lag]);
    }
    table
}

/// What is not as it should be, the worst first.
fn notes(cluster: &DescribeResponse) -> Vec<String> {
    let mut notes = Vec::new();
    let list = |ids: Vec<u32>| ids.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    let with = |wanted: &dyn Fn(&Partition) -> bool| {
        let found = cluster.partitions.iter().filter(|partition| wanted(partition));
        found.map(|partition| partition.partition).collect::<Vec<_>>()
    };
    let leaderless = with(&|partition| partition.leader == 0);
    if !leaderless.is_empty() {
        notes.push(format!("no leader, so nothing is committed in: partition {}", list(leaderless)));
    }
    for Broker { id, problem, answered, version, .. } in &cluster.brokers {
        let standing = Standing::of(*id, cluster);
        match (answered, standing) {
            (false, Standing::None) => {}
            (false, _) => notes.push(format!("broker {id} does not answer: it is shown as the others know it")),
            (true, Standing::None) => {
                notes.push(format!("broker {id} is no member: `trunkline cluster add {id} --link ADDRESS`, or stop it"));
            }
            (true, _) if !problem.is_empty() => notes.push(format!("broker {id}: {}", escape(problem, PROBLEM_MAX))),
            (true, Standing::Learner) => notes.push(format!(
                "broker {id} does not vote in every partition: it is being added or removed, or that was cut short; then repeat it"
            )),
            (true, Standing::Voter) => {}
        }
        if *answered && *version != cluster.version {
            notes.push(format!("broker {id} is of version {}", escape(version, 64)));
        }
        let lags = |partition: &Partition| {
            let own = |replica: &&Replica| replica.broker == *id && replica.reachable && replica.problem.is_empty();
            partition.replicas.iter().find(own).is_some_and(|replica| replica.lag > LAG_SHOWN)
        };
        let lagging = with(&lags);
        if !lagging.is_empty() {
            notes.push(format!("broker {id} is more than {LAG_SHOWN} entries behind in partition {}", list(lagging)));
        }
    }
    notes.extend(even(cluster));
    notes
}

/// A word on a number of voters that is of no use.
pub(crate) fn even(cluster: &DescribeResponse) -> Option<String> {
    let voters = |broker: &&Broker| Standing::of(broker.id, cluster) == Standing::Voter;
    let count = cluster.brokers.iter().filter(voters).count();
    let away = match count {
        2 => "neither may be away",
        4 => "only one may be away, as of three",
        _ => return None,
    };
    Some(format!("{count} brokers vote: {away}. Have 1, 3 or 5"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(ids: &[u64]) -> DescribeResponse {
        let brokers = ids.iter().map(|id| Broker {
            id: *id,
            grpc: "192.168.100.100:7070".into(),
            link: "192.168.100.100:7443".into(),
            answered: true,
            reachable: true,
            disk_free_bytes: 123_456_789_012,
            ..Default::default()
        });
        let replicas = ids.iter().map(|id| Replica { broker: *id, voter: true, reachable: true, ..Default::default() });
        let partition = Partition {
            leader: ids[0],
            term: 123,
            voters: ids.to_vec(),
            applied: 12_345_678 << 16,
            earliest: 1_234_567 << 16,
            snapshot: 12_300_000 << 16,
            connections: 1_000_000,
            replicas: replicas.collect(),
            ..Default::default()
        };
        DescribeResponse {
            brokers: brokers.collect(),
            partitions: vec![partition],
            partition_count: 1,
            ..Default::default()
        }
    }

    fn widest(table: &comfy_table::Table) -> usize {
        table.to_string().lines().map(|line| line.trim_end().chars().count()).max().unwrap_or_default()
    }

    #[test]
    fn tables_of_three_brokers_fit_eighty_columns() {
        let cluster = cluster(&[1, 2, 3]);
        assert_eq!(notes(&cluster), Vec::<String>::new());
        for table in [brokers(&cluster), partitions(&cluster)] {
            assert!(widest(&table) <= 80, "{table}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_in_words() {
        let mut cluster = cluster(&[1, 2, 3]);
        cluster.brokers[2].answered = false;
        cluster.partitions[0].replicas[2].reachable = false;
        cluster.brokers[1].problem = "partition 0: broken".into();
        cluster.partitions[0].replicas[1].problem = "broken".into();
        cluster.partitions[0].leader = 0;
        let states: Vec<_> = cluster.brokers.iter().map(|broker| state(broker, &cluster)).collect();
        assert_eq!(states, ["voter", "NOT READY", "NO ANSWER"]);
        assert_eq!(behind(&cluster.partitions[0]), "2: CLOSED; 3: ?");
        let notes = notes(&cluster).join("\n");
        for part in ["no leader", "broker 2: partition 0: broken", "broker 3 does not answer"] {
            assert!(notes.contains(part), "{notes}");
        }
    }

    #[test]
    fn an_even_number_of_voters_is_remarked_and_who_is_no_member_is_told() {
        for (ids, remarked) in [(&[1][..], false), (&[1, 2], true), (&[1, 2, 3], false), (&[1, 2, 3, 4], true)] {
            assert_eq!(even(&cluster(ids)).is_some(), remarked, "{ids:?}");
        }
        let mut cluster = cluster(&[1, 2, 3]);
        cluster.partitions[0].voters = vec![1, 2];
        assert_eq!(state(&cluster.brokers[2], &cluster), "no member");
        assert!(notes(&cluster).iter().any(|note| note.contains("cluster add 3")), "{:?}", notes(&cluster));
        cluster.partitions[0].learners = vec![3];
        assert_eq!(state(&cluster.brokers[2], &cluster), "learner");
    }
}
