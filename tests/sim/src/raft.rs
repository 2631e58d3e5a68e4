//! A replicated log, as small as it can be and still fail like one: terms, votes, majority commit, log completeness. The product
//! relies on openraft for this; what is simulated here is everything around it. No pre-vote, no membership changes. Who lacks what is
//! purged gets the snapshot at the trim point (docs/adr/0005).

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;

use crate::{
    Random, Time,
    log::{Entries, Log, LogEntry},
    millis,
};

/// Brokers, each with a replica of every partition.
pub(crate) const BROKERS: u8 = 3;
const MAJORITY: usize = 2;
/// From one heartbeat to the next.
const HEARTBEAT: Time = millis(60);
/// Entries of one message.
const ENTRIES_MAX: usize = 16;

/// A state to begin from.
#[derive(Clone, Debug)]
pub(crate) struct Install {
    pub(crate) index: u64,
    /// Of the entry at `index`.
    pub(crate) term: u64,
    pub(crate) state: Bytes,
}

#[derive(Clone, Debug)]
pub(crate) enum Message {
    Vote { term: u64, last: (u64, u64) },
    Voted { term: u64, granted: bool },
    Append { term: u64, before: (u64, u64), entries: Entries, commit: u64 },
    Appended { term: u64, ok: bool, last: u64 },
    Install { term: u64, snapshot: Install },
}

/// What follows when a write is on disk.
#[derive(Clone, Debug)]
pub(crate) enum After {
    Nothing,
    Send(u8, Message),
    SendAll(Message),
    /// The leader itself has the log up to here.
    Matched {
        term: u64,
        last: u64,
    },
}

/// Something to write: the vote, and the log from some entry on.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    pub(crate) vote: (u64, Option<u8>),
    /// What follows the first so many entries.
    pub(crate) log: Option<(u64, Entries)>,
    /// Instead of everything up to it.
    pub(crate) install: Option<Install>,
    pub(crate) after: After,
}

/// What a replica has on disk.
#[derive(Clone, Default, Debug)]
pub(crate) struct Durable {
    pub(crate) vote: (u64, Option<u8>),
    pub(crate) log: Log,
}

impl Durable {
    pub(crate) fn write(&mut self, write: &Write) {
        self.vote = write.vote;
        if let Some((keep, entries)) = &write.log {
            self.log.replace(*keep, entries);
        }
        if let Some(snapshot) = &write.install {
            self.log.purge(snapshot.term, snapshot.index);
        }
    }

    pub(crate) fn has(&self, index: u64, term: u64) -> bool {
        self.log.has(index, term)
    }
}

#[derive(Debug)]
enum Role {
    Follower,
    Candidate { votes: BTreeSet<u8> },
    Leader { next: [u64; BROKERS as usize], matched: [u64; BROKERS as usize], begins: u64 },
}

/// What comes out: writes and messages, in order.
#[derive(Default, Debug)]
pub(crate) struct Out {
    pub(crate) writes: Vec<Write>,
    pub(crate) messages: Vec<(u8, Message)>,
    /// Who is to be sent the snapshot at the trim point, in which term.
    pub(crate) lagging: Vec<(u8, u64)>,
    /// What the replica is to begin from now.
    pub(crate) install: Option<Install>,
}

#[derive(Debug)]
pub(crate) struct Raft {
    me: u8,
    pub(crate) term: u64,
    voted: Option<u8>,
    pub(crate) log: Log,
    pub(crate) commit: u64,
    role: Role,
    pub(crate) leader: Option<u8>,
    election_at: Time,
    heartbeat_at: Time,
}

impl Raft {
    pub(crate) fn new(me: u8, disk: &Durable, commit: u64, now: Time, random: &mut Random) -> Self {
        let (term, voted) = disk.vote;
        let mut raft = Self {
            me,
            term,
            voted,
            log: disk.log.clone(),
            commit,
            role: Role::Follower,
            leader: None,
            election_at: 0,
            heartbeat_at: 0,
        };
        raft.wait(now, random);
        raft
    }

    /// The term it leads in, and the entry that begins it.
    pub(crate) fn leads(&self) -> Option<(u64, u64)> {
        match self.role {
            Role::Leader { begins, .. } => Some((self.term, begins)),
            _ => None,
        }
    }

    fn last(&self) -> u64 {
        self.log.last()
    }

    fn term_at(&self, index: u64) -> u64 {
        self.log.term_at(index)
    }

    fn wait(&mut self, now: Time, random: &mut Random) {
        self.election_at = now + millis(random.range(300, 600));
    }

    fn vote(&self, after: After) -> Write {
        Write { vote: (self.term, self.voted), log: None, install: None, after }
    }

    pub(crate) fn tick(&mut self, now: Time, random: &mut Random, out: &mut Out) {
        if matches!(self.role, Role::Leader { .. }) {
            if now >= self.heartbeat_at {
                self.replicate(now, out);
            }
        } else if now >= self.election_at {
            self.term += 1;
            self.voted = Some(self.me);
            self.leader = None;
            self.role = Role::Candidate { votes: BTreeSet::from([self.me]) };
            self.wait(now, random);
            let ask = Message::Vote { term: self.term, last: (self.term_at(self.last()), self.last()) };
            out.writes.push(self.vote(After::SendAll(ask)));
        }
    }

    /// Sends each follower what it lacks.
    fn replicate(&mut self, now: Time, out: &mut Out) {
        self.heartbeat_at = now + HEARTBEAT;
        let Role::Leader { next, .. } = &self.role else { return };
        for to in (0..BROKERS).filter(|to| *to != self.me) {
            let before = next[usize::from(to)] - 1;
            let (term, commit) = (self.term, self.commit);
            if before < self.log.purged() {
                out.lagging.push((to, term));
                continue;
            }
            let entries = self.log.after(before).take(ENTRIES_MAX).cloned().collect();
            out.messages.push((to, Message::Append { term, before: (self.term_at(before), before), entries, commit }));
        }
    }

    /// Adds an entry, if it leads: gives its index.
    pub(crate) fn propose(&mut self, now: Time, bytes: Option<Bytes>, out: &mut Out) -> Option<u64> {
        if !matches!(self.role, Role::Leader { .. }) {
            return None;
        }
        let (term, keep) = (self.term, self.last());
        let entry = Arc::new(LogEntry { term, bytes });
        self.log.push(entry.clone());
        let after = After::Matched { term, last: keep + 1 };
        out.writes.push(Write { vote: (self.term, self.voted), log: Some((keep, vec![entry])), install: None, after });
        self.replicate(now, out);
        Some(keep + 1)
    }

    fn follow(&mut self, term: u64, leader: Option<u8>) {
        if term > self.term {
            self.term = term;
            self.voted = None;
            self.leader = None;
        }
        self.leader = leader.or(self.leader);
        self.role = Role::Follower;
    }

    pub(crate) fn receive(&mut self, now: Time, from: u8, message: Message, random: &mut Random, out: &mut Out) {
        match message {
            Message::Vote { term, last } => {
                if term > self.term {
                    self.follow(term, None);
                }
                let complete = last >= (self.term_at(self.last()), self.last());
                let free = self.voted.is_none_or(|voted| voted == from);
                let granted = term == self.term && complete && free && matches!(self.role, Role::Follower);
                if granted {
                    self.voted = Some(from);
                    self.wait(now, random);
                }
                let answer = Message::Voted { term: self.term, granted };
                out.writes.push(self.vote(After::Send(from, answer)));
            }
            Message::Voted { term, granted } => {
                if term > self.term {
                    self.follow(term, None);
                    out.writes.push(self.vote(After::Nothing));
                }
                if let Role::Candidate { votes } = &mut self.role
                    && granted
                    && term == self.term
                {
                    votes.insert(from);
                    if votes.len() >= MAJORITY {
                        self.lead(now, out);
                    }
                }
            }
            Message::Append { term, before, entries, commit } => {
                if term < self.term {
                    out.messages.push((from, Message::Appended { term: self.term, ok: false, last: self.last() }));
                    return;
                }
                self.follow(term, Some(from));
                self.wait(now, random);
                self.append(from, before, &entries, commit, out);
            }
            Message::Install { term, snapshot } => {
                if term < self.term {
                    out.messages.push((from, Message::Appended { term: self.term, ok: false, last: self.last() }));
                    return;
                }
                self.follow(term, Some(from));
                self.wait(now, random);
                let answer = Message::Appended { term, ok: true, last: snapshot.index };
                let mut write = self.vote(After::Send(from, answer));
                if snapshot.index > self.commit {
                    self.log.purge(snapshot.term, snapshot.index);
                    self.commit = snapshot.index;
                    write.install = Some(snapshot.clone());
                    out.install = Some(snapshot);
                }
                out.writes.push(write);
            }
            Message::Appended { term, ok, last } => {
                if term > self.term {
                    self.follow(term, None);
                    out.writes.push(self.vote(After::Nothing));
                }
                if term == self.term {
                    self.answered(now, from, ok, last, out);
                }
            }
        }
    }

    fn append(&mut self, from: u8, mut before: (u64, u64), mut entries: &[Arc<LogEntry>], commit: u64, out: &mut Out) {
        let (term, purged) = (self.term, self.log.purged());
        if before.1 < purged {
            // what is purged was committed, and is the same everywhere
            entries = entries.get((purged - before.1) as usize..).unwrap_or_default();
            before = (self.term_at(purged), purged);
        }
        if before.1 > self.last() || self.term_at(before.1) != before.0 {
            let last = self.last().min(before.1.saturating_sub(1));
            out.messages.push((from, Message::Appended { term, ok: false, last }));
            return;
        }
        let end = before.1 + entries.len() as u64;
        let differs = (before.1 + 1..=end)
            .zip(entries)
            .find(|(index, entry)| *index > self.last() || self.term_at(*index) != entry.term);
        let log = differs.map(|(index, _)| {
            let fresh = entries[(index - before.1 - 1) as usize..].to_vec();
            self.log.replace(index - 1, &fresh);
            (index - 1, fresh)
        });
        self.commit = self.commit.max(commit.min(end));
        let answer = Message::Appended { term, ok: true, last: end };
        out.writes.push(Write { vote: (self.term, self.voted), log, install: None, after: After::Send(from, answer) });
    }

    fn lead(&mut self, now: Time, out: &mut Out) {
        let begins = self.last() + 1;
        self.role = Role::Leader { next: [begins; 3], matched: [0; 3], begins };
        self.leader = Some(self.me);
        self.propose(now, None, out);
    }

    fn answered(&mut self, now: Time, from: u8, ok: bool, last: u64, out: &mut Out) {
        let end = self.last();
        let Role::Leader { next, matched, .. } = &mut self.role else { return };
        let at = usize::from(from);
        if ok {
            matched[at] = matched[at].max(last);
            next[at] = matched[at] + 1;
            self.advance();
            if last < end && last.is_multiple_of(ENTRIES_MAX as u64) {
                self.replicate(now, out);
            }
        } else {
            next[at] = (last + 1).clamp(matched[at] + 1, next[at]);
        }
    }

    /// The leader's own log is on disk up to here.
    pub(crate) fn matched(&mut self, term: u64, last: u64) {
        let me = usize::from(self.me);
        if let Role::Leader { matched, .. } = &mut self.role
            && term == self.term
        {
            matched[me] = matched[me].max(last);
            self.advance();
        }
    }

    fn advance(&mut self) {
        let Role::Leader { matched, .. } = &self.role else { return };
        let mut sorted = *matched;
        sorted.sort_unstable();
        let majority = sorted[BROKERS as usize - MAJORITY];
        if self.term_at(majority) == self.term {
            self.commit = self.commit.max(majority);
        }
    }
}
