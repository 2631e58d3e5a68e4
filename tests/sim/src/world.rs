//! The world: one queue of events in virtual time, the network between processes, and the faults. After every step the promises
//! are checked; when the trouble is over, that everything comes to rest.

use std::{collections::BTreeMap, fmt};

use trunkline_proto::{PartitionCount, PartitionId};

use crate::{
    Invariant, Options, Random, Rules, Time, Violation,
    backend::Backend,
    broker::Broker,
    context::Context,
    edge::Edge,
    member::Member,
    millis,
    net::{Body, Node},
    raft::BROKERS,
};

const EDGES: u8 = 2;
const MEMBERS: u8 = 2;
/// From the end of the trouble to the clients' silence.
const AFTERMATH: Time = millis(1500);
/// How long it may take to come to rest.
const REST: Time = millis(40_000);
/// How far brokers' wall clocks may be apart.
const SKEW_MAX: Time = millis(60_000);
/// Most events of a run, many times what the busiest seed takes.
const STEPS_MAX: u64 = 400_000;

/// What a run has come to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// Events that happened.
    pub steps: u64,
    /// Of all of them, in order: two runs of a seed give the same.
    pub digest: u64,
    /// How often what happened.
    pub counts: BTreeMap<&'static str, u64>,
}

/// A run that broke a promise.
#[derive(Debug)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// The event after which it was seen.
    pub step: u64,
    /// What was broken.
    pub violation: Violation,
    options: Options,
    rules: Rules,
    trace: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {} breaks a promise at step {}", self.seed, self.step)?;
        writeln!(f, "  {}", self.violation)?;
        writeln!(f, "  {:?}\n  {:?}", self.options, self.rules)?;
        for line in &self.trace {
            writeln!(f, "  {line}")?;
        }
        write!(f, "again: TRUNKLINE_SIM_SEED={} cargo test --workspace --locked --test simulation", self.seed)
    }
}

#[derive(Debug)]
enum Event {
    Tick(Node),
    Deliver(Node, Node, Body),
    Sync(u8, u64),
    Fault,
    Start(Node),
}

/// Messages from one to the other are lost until then; `None` is everybody.
#[derive(Debug)]
struct Cut {
    from: Option<Node>,
    to: Option<Node>,
    until: Time,
}

struct World {
    context: Context,
    queue: BTreeMap<(Time, u64), Event>,
    brokers: Vec<Broker>,
    edges: Vec<Edge>,
    members: Vec<Member>,
    backend: Backend,
    cuts: Vec<Cut>,
    paused: BTreeMap<Node, Time>,
    events: u64,
    digest: u64,
}

/// Runs the world of a seed.
///
/// # Errors
/// The first promise that was broken.
pub fn run(seed: u64, rules: Rules) -> Result<Report, Box<Failure>> {
    let mut random = Random::new(seed);
    let options = Options::new(&mut random);
    #[allow(clippy::expect_used)] // options choose a few
    let count = PartitionCount::new(options.partitions).expect("a possible number of partitions");
    let mut world = World::new(Context::new(options, rules, random, count));
    let steps = world.run();
    let Context { oracle, options, trace, .. } = world.context;
    match oracle.violation {
        None => Ok(Report { steps, digest: world.digest, counts: oracle.counts }),
        Some(violation) => {
            Err(Box::new(Failure { seed, step: steps, violation, options, rules, trace: trace.into_iter().collect() }))
        }
    }
}

impl World {
    fn new(mut context: Context) -> Self {
        let brokers = (0..BROKERS).map(|id| Broker::new(id, &mut context)).collect();
        let edges = (0..EDGES).map(|id| Edge::new(id, &mut context)).collect();
        let mut world = Self {
            context,
            queue: BTreeMap::new(),
            brokers,
            edges,
            members: (0..MEMBERS).map(Member::new).collect(),
            backend: Backend::default(),
            cuts: Vec::new(),
            paused: BTreeMap::new(),
            events: 0,
            digest: 0,
        };
        for node in nodes() {
            let at = world.context.random.below(millis(20));
            world.put(at, Event::Tick(node));
        }
        world.put(millis(800), Event::Fault);
        world
    }

    fn put(&mut self, at: Time, event: Event) {
        self.events += 1;
        self.queue.insert((at.max(self.context.now), self.events), event);
    }

    fn run(&mut self) -> u64 {
        let trouble = self.context.options.trouble;
        let (mut steps, mut looks_at) = (0, trouble + AFTERMATH);
        while let Some(((at, _), event)) = self.queue.pop_first() {
            self.context.now = at;
            steps += 1;
            if at >= trouble && !self.context.healed {
                self.heal();
            }
            self.digest = (self.digest ^ at).wrapping_mul(0x0100_0000_01b3) ^ self.context.random.clone().number();
            self.step(event);
            self.check_durable();
            self.carry();
            if steps >= STEPS_MAX {
                self.context.oracle.fail(Invariant::Rest, format!("{steps} events and no end"));
            }
            if self.context.oracle.violation.is_some() {
                break;
            }
            if at >= looks_at {
                self.context.hushed = true;
                looks_at = at + millis(200);
                match self.check_rest() {
                    Ok(()) if self.context.leaving => break,
                    Ok(()) => self.context.leaving = true,
                    Err(violation) if at >= trouble + AFTERMATH + REST => {
                        self.context.oracle.violation = Some(violation);
                        break;
                    }
                    Err(_) => {}
                }
            }
        }
        steps
    }

    fn is_up(&self, node: Node) -> bool {
        match node {
            Node::Broker(id) => self.brokers[usize::from(id)].is_up(),
            Node::Edge(id) => self.edges[usize::from(id)].is_up,
            Node::Member(id) => self.members[usize::from(id)].is_up,
            Node::Backend => true,
        }
    }

    fn step(&mut self, event: Event) {
        let now = self.context.now;
        let node = match &event {
            Event::Tick(node) | Event::Deliver(_, node, _) => *node,
            Event::Sync(id, _) => Node::Broker(*id),
            Event::Fault => return self.fault(),
            Event::Start(node) => return self.start(*node),
        };
        if let Some(until) = self.paused.get(&node).copied().filter(|until| *until > now) {
            // it finds everything when it goes on
            return self.put(until, event);
        }
        if let Event::Tick(node) = event {
            let next = now + self.context.random.range(millis(15), millis(25));
            self.put(next, Event::Tick(node));
        }
        if !self.is_up(node) {
            return;
        }
        let context = &mut self.context;
        match (event, node) {
            (Event::Tick(_), Node::Broker(id)) => self.brokers[usize::from(id)].tick(context),
            (Event::Tick(_), Node::Edge(id)) => self.edges[usize::from(id)].tick(context),
            (Event::Tick(_), Node::Member(id)) => self.members[usize::from(id)].tick(context),
            (Event::Tick(_), Node::Backend) => self.backend.tick(context),
            (Event::Deliver(from, _, body), Node::Broker(id)) => {
                self.brokers[usize::from(id)].receive(context, from, body);
            }
            (Event::Deliver(from, _, body), Node::Edge(id)) => self.edges[usize::from(id)].receive(context, from, body),
            (Event::Deliver(from, _, body), Node::Member(id)) => {
                self.members[usize::from(id)].receive(context, from, body);
            }
            (Event::Deliver(_, _, body), Node::Backend) => self.backend.receive(context, body),
            (Event::Sync(id, sync), _) => self.brokers[usize::from(id)].synced(context, sync),
            (Event::Fault | Event::Start(_), _) => {}
        }
    }

    /// What was said goes on its way, and syncs that were begun will be done.
    fn carry(&mut self) {
        for (from, to, body) in std::mem::take(&mut self.context.out) {
            let now = self.context.now;
            if from == to {
                self.put(now + 10, Event::Deliver(from, to, body));
                continue;
            }
            let matches = |end: Option<Node>, node| end.is_none_or(|end| end == node);
            let is_cut = self.cuts.iter().any(|cut| cut.until > now && matches(cut.from, from) && matches(cut.to, to));
            let Options { drop, duplicate, late, .. } = self.context.options;
            let random = &mut self.context.random;
            if is_cut || (random.chance(drop) && !self.context.healed) {
                continue;
            }
            let mut delay = random.range(200, 3000);
            if random.chance(late) {
                delay += random.below(millis(400));
            }
            // a stream is opened once: its transport sees to that
            if random.chance(duplicate) && !matches!(body, Body::Attach { .. }) {
                let again = delay + random.below(millis(600));
                self.put(now + again, Event::Deliver(from, to, body.clone()));
            }
            self.put(now + delay, Event::Deliver(from, to, body));
        }
        for (at, broker, sync) in std::mem::take(&mut self.context.syncs) {
            self.put(at, Event::Sync(broker, sync));
        }
    }

    fn fault(&mut self) {
        if self.context.healed {
            return;
        }
        let every = self.context.options.fault_every;
        let next = self.context.now + self.context.random.range(every / 4, every * 2);
        self.put(next, Event::Fault);
        let all: Vec<Node> = nodes().filter(|node| *node != Node::Backend).collect();
        let node = all[self.context.random.below(all.len() as u64) as usize];
        let broker = Node::Broker(self.context.random.below(u64::from(BROKERS)) as u8);
        let lasts = millis(self.context.random.range(100, 3000));
        let until = self.context.now + lasts;
        match self.context.random.below(11) {
            0..=2 => self.crash(node, lasts),
            3 => self.crash(broker, lasts),
            4 => (0..BROKERS).for_each(|id| self.crash(Node::Broker(id), lasts)),
            5 | 6 => {
                self.context.oracle.count("pauses");
                self.context.note(|| format!("{node:?} is paused for {} ms", lasts / 1000));
                self.paused.insert(node, until);
            }
            7 => self.cut(Some(node), None, until),
            8 => {
                self.cut(Some(node), None, until);
                self.cut(None, Some(node), until);
            }
            9 => self.set_clock(broker),
            _ => {
                self.cut(Some(node), Some(broker), until);
                self.cut(Some(broker), Some(node), until);
            }
        }
    }

    /// A wall clock is set, forward or back.
    fn set_clock(&mut self, broker: Node) {
        let Node::Broker(id) = broker else { return };
        let ahead = self.context.random.below(SKEW_MAX);
        self.context.oracle.count("clocks set");
        self.context.note(|| format!("the clock of broker {id} is {} ms ahead", ahead / 1000));
        self.context.skews[usize::from(id)] = ahead;
    }

    fn cut(&mut self, from: Option<Node>, to: Option<Node>, until: Time) {
        self.context.oracle.count("cuts");
        self.context.note(|| format!("cut from {from:?} to {to:?} until {} ms", until / 1000));
        self.cuts.retain(|cut| cut.until > self.context.now);
        self.cuts.push(Cut { from, to, until });
    }

    fn crash(&mut self, node: Node, lasts: Time) {
        if !self.is_up(node) {
            return;
        }
        self.context.oracle.count("crashes");
        self.context.note(|| format!("{node:?} crashes for {} ms", lasts / 1000));
        match node {
            Node::Broker(id) => self.brokers[usize::from(id)].crash(&mut self.context),
            Node::Edge(id) => self.edges[usize::from(id)].is_up = false,
            Node::Member(id) => self.members[usize::from(id)].is_up = false,
            Node::Backend => return,
        }
        let at = self.context.now + lasts;
        self.put(at, Event::Start(node));
    }

    fn start(&mut self, node: Node) {
        if self.is_up(node) {
            return;
        }
        self.context.note(|| format!("{node:?} starts"));
        match node {
            Node::Broker(id) => self.brokers[usize::from(id)].start(&mut self.context),
            Node::Edge(id) => self.edges[usize::from(id)] = Edge::new(id, &mut self.context),
            Node::Member(id) => self.members[usize::from(id)] = Member::new(id),
            Node::Backend => {}
        }
    }

    /// From here on nothing fails.
    fn heal(&mut self) {
        self.context.note(|| "the trouble is over".to_owned());
        self.context.healed = true;
        self.cuts.clear();
        self.paused.clear();
        for node in nodes() {
            self.start(node);
        }
    }

    /// What somebody was told of is in the synced logs of a majority.
    fn check_durable(&mut self) {
        for (partition, index, term) in std::mem::take(&mut self.context.oracle.acknowledged) {
            let at = usize::from(partition.0);
            // what a broker has trimmed it had, if it is what was committed there
            let is_committed = self.context.oracle.term_at(partition, index) == Some(term);
            let has = |broker: &&Broker| {
                let durable = &broker.stored[at].durable;
                durable.has(index, term) || (is_committed && index <= durable.log.purged())
            };
            let copies = self.brokers.iter().filter(has).count();
            if copies <= self.brokers.len() / 2 {
                let what = format!("entry {index} of partition {partition} is acknowledged and synced {copies} times");
                self.context.oracle.fail(Invariant::Durable, what);
            }
        }
    }

    fn check_rest(&self) -> Result<(), Violation> {
        for partition in self.context.partitions() {
            self.check_replicas(partition)?;
        }
        self.context.oracle.check_rest(self.context.leaving)?;
        self.backend.check_rest()?;
        for edge in &self.edges {
            edge.check_rest(&self.context)?;
        }
        Ok(())
    }

    fn check_replicas(&self, partition: PartitionId) -> Result<(), Violation> {
        let committed = self.context.oracle.committed(partition);
        let expected = self.context.oracle.state(partition).state_digest();
        for broker in &self.brokers {
            let replica =
                broker.replicas.get(usize::from(partition.0)).ok_or_else(|| Violation::rest("a broker is down"))?;
            if replica.state.applied().0 != committed {
                let applied = replica.state.applied();
                let what = format!("a replica of partition {partition} is at {applied} of {committed}");
                return Err(Violation::rest(what));
            }
            if replica.state.state_digest() != expected {
                let what = format!("a replica of partition {partition} has another state");
                return Err(Violation::new(Invariant::SameState, what));
            }
        }
        Ok(())
    }
}

fn nodes() -> impl Iterator<Item = Node> {
    let brokers = (0..BROKERS).map(Node::Broker);
    let edges = (0..EDGES).map(Node::Edge);
    brokers.chain(edges).chain((0..MEMBERS).map(Node::Member)).chain([Node::Backend])
}
