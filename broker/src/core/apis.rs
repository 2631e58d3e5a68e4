//! APIs by number, their open connections, and how many events each has had: what a handler group's lag is counted from.

use std::collections::VecDeque;

use trunkline_proto::{Offset, RecordKind};

use super::{
    filter::Filter,
    names::Names,
    snapshot::{Reader, SnapshotError, Writer},
};

/// Kinds of events.
pub(super) const KINDS: usize = 3;
/// Most samples of the counters kept. When full, every other one goes and the distance doubles.
const SAMPLES_MAX: usize = 256;
/// Events between two samples at first.
const SAMPLE_EVERY: u64 = 4096;

/// An event kind as a counter's place.
fn place(kind: RecordKind) -> Option<usize> {
    match kind {
        RecordKind::ConnectionOpened => Some(0),
        RecordKind::MessageReceived => Some(1),
        RecordKind::ConnectionClosed => Some(2),
        _ => None,
    }
}

#[derive(Clone, Copy, Default, Debug)]
struct Counts {
    events: [u64; KINDS],
    last: [Offset; KINDS],
}

/// The counters as they stood after the event at `offset`.
#[derive(Clone, Debug)]
struct Sample {
    offset: Offset,
    events: Vec<[u64; KINDS]>,
}

/// APIs and their counters.
#[derive(Clone, Debug)]
pub(super) struct Apis {
    names: Names,
    /// By number.
    counts: Vec<Counts>,
    /// By number; not in snapshots, as connections tell it.
    connections: Vec<u64>,
    samples: VecDeque<Sample>,
    sample_every: u64,
    /// Events since the last sample.
    unsampled: u64,
}

impl Default for Apis {
    fn default() -> Self {
        Self {
            names: Names::default(),
            counts: Vec::new(),
            connections: Vec::new(),
            samples: VecDeque::new(),
            sample_every: SAMPLE_EVERY,
            unsampled: 0,
        }
    }
}

impl Apis {
    pub(super) fn has_room(&self, name: &str) -> bool {
        self.names.has_room(name)
    }

    pub(super) fn intern(&mut self, name: &str) -> u16 {
        let number = self.names.intern(name);
        self.counts.resize(self.names.len(), Counts::default());
        self.connections.resize(self.names.len(), 0);
        number
    }

    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    pub(super) fn name(&self, number: u16) -> &str {
        self.names.name(number)
    }

    /// Each API and how many connections it has open here.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.names.iter().zip(self.connections.iter().copied())
    }

    /// How many connections of `name` are open here.
    pub(super) fn connections(&self, name: &str) -> u64 {
        self.names.number(name).and_then(|number| self.connections.get(usize::from(number)).copied()).unwrap_or(0)
    }

    pub(super) fn opened(&mut self, number: u16) {
        if let Some(connections) = self.connections.get_mut(usize::from(number)) {
            *connections += 1;
        }
    }

    pub(super) fn closed(&mut self, number: u16) {
        if let Some(connections) = self.connections.get_mut(usize::from(number)) {
            *connections = connections.saturating_sub(1);
        }
    }

    /// Counts an applied event.
    pub(super) fn count(&mut self, number: u16, kind: RecordKind, offset: Offset) {
        if let (Some(counts), Some(place)) = (self.counts.get_mut(usize::from(number)), place(kind)) {
            counts.events[place] += 1;
            counts.last[place] = offset;
        }
        self.unsampled += 1;
        if self.unsampled >= self.sample_every {
            self.sample(offset);
        }
    }

    fn sample(&mut self, offset: Offset) {
        self.unsampled = 0;
        if self.samples.len() >= SAMPLES_MAX {
            let mut keep = false;
            self.samples.retain(|_| {
                keep = !keep;
                keep
            });
            self.sample_every *= 2;
        }
        self.samples.push_back(Sample { offset, events: self.counts.iter().map(|counts| counts.events).collect() });
    }

    /// How many events `filter` has let through up to now.
    pub(super) fn total(&self, filter: &Filter) -> u64 {
        self.matching(filter).map(|(api, place)| self.counts[api].events[place]).sum()
    }

    /// The last event that `filter` let through.
    pub(super) fn last(&self, filter: &Filter) -> Offset {
        self.matching(filter).map(|(api, place)| self.counts[api].last[place]).max().unwrap_or_default()
    }

    /// About how many events `filter` let through up to `offset`: exact at the end, elsewhere as of the sample before it.
    pub(super) fn total_at(&self, filter: &Filter, offset: Offset) -> u64 {
        if offset >= self.last(filter) {
            return self.total(filter);
        }
        let after = self.samples.partition_point(|sample| sample.offset <= offset);
        let Some(sample) = after.checked_sub(1).and_then(|at| self.samples.get(at)) else { return 0 };
        self.matching(filter).filter_map(|(api, place)| sample.events.get(api).map(|events| events[place])).sum()
    }

    fn matching<'a>(&'a self, filter: &'a Filter) -> impl Iterator<Item = (usize, usize)> + 'a {
        let apis = self.names.iter().enumerate().filter(|(_, name)| filter.takes_api(name)).map(|(api, _)| api);
        apis.flat_map(|api| (0..KINDS).filter(|place| filter.takes_place(*place)).map(move |place| (api, place)))
    }

    /// Open connections of all APIs, for `check()`.
    pub(super) fn connection_counts(&self) -> &[u64] {
        &self.connections
    }

    pub(super) fn encode(&self, out: &mut Writer) {
        self.names.encode(out);
        for counts in &self.counts {
            counts.events.iter().for_each(|events| out.u64(*events));
            counts.last.iter().for_each(|last| out.u64(last.0));
        }
        out.u64(self.sample_every);
        out.u64(self.unsampled);
        out.length(self.samples.len());
        for sample in &self.samples {
            out.u64(sample.offset.0);
            out.length(sample.events.len());
            sample.events.iter().flatten().for_each(|events| out.u64(*events));
        }
    }

    pub(super) fn decode(input: &mut Reader<'_>) -> Result<Self, SnapshotError> {
        let names = Names::decode(input)?;
        let mut apis = Self { connections: vec![0; names.len()], names, ..Self::default() };
        for _ in 0..apis.names.len() {
            let mut counts = Counts::default();
            for events in &mut counts.events {
                *events = input.u64()?;
            }
            for last in &mut counts.last {
                *last = input.offset()?;
            }
            apis.counts.push(counts);
        }
        apis.sample_every = input.u64()?.max(1);
        apis.unsampled = input.u64()?;
        for _ in 0..input.length()? {
            let offset = input.offset()?;
            let mut events = Vec::new();
            for _ in 0..input.length()? {
                events.push([input.u64()?, input.u64()?, input.u64()?]);
            }
            apis.samples.push_back(Sample { offset, events });
        }
        Ok(apis)
    }
}
