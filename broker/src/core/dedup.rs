//! Idempotency keys: a command submitted twice under one key takes effect once, and the repeat gets the first one's result.
//! Remembered for ten minutes of log time, and at most 100,000 of them; the oldest go first.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use trunkline_proto::{Offset, Timestamp, v1};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::{
    effects::{Done, Refusal},
    snapshot::{Reader, SnapshotError, Writer},
};
use crate::controls;

/// How long a key is remembered, in log time.
pub const DEDUP_WINDOW: Duration = Duration::from_secs(600);
/// Most commands remembered.
pub const DEDUP_MAX: usize = 100_000;

/// Names a command for good: who sent it, under which key, as which of the request's commands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct CommandKey(u128);

impl CommandKey {
    pub(super) fn new(source: &v1::SubmitSource, command: u32) -> Self {
        let mut bytes = Vec::with_capacity(8 + source.principal.len() + source.key.len());
        bytes.extend_from_slice(&command.to_le_bytes());
        bytes.extend_from_slice(&(source.principal.len() as u32).to_le_bytes());
        bytes.extend_from_slice(source.principal.as_bytes());
        bytes.extend_from_slice(source.key.as_bytes());
        Self(xxh3_128(&bytes))
    }
}

#[derive(Clone, Copy, Debug)]
struct Remembered {
    body: u64,
    offset: Offset,
    at: Timestamp,
    code: v1::Code,
}

/// Commands remembered.
#[derive(Clone, Default, Debug)]
pub(super) struct Dedup {
    commands: BTreeMap<CommandKey, Remembered>,
    /// Oldest first.
    order: VecDeque<CommandKey>,
}

impl Dedup {
    /// Forgets what is older than the window at `now`.
    pub(super) fn expire(&mut self, now: Timestamp) {
        while let Some(oldest) = self.order.front() {
            if self.commands.get(oldest).is_some_and(|command| command.at.after(DEDUP_WINDOW) >= now) {
                return;
            }
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some(oldest) = self.order.pop_front() {
            self.commands.remove(&oldest);
        }
    }

    /// Refuses a command whose key was used.
    pub(super) fn check(&self, key: CommandKey, body: &[u8]) -> Result<(), Refusal> {
        match self.commands.get(&key) {
            None => Ok(()),
            Some(first) if first.body == xxh3_64(body) => {
                Err(Refusal::Repeated { original: first.offset, code: first.code })
            }
            Some(_) => Err(Refusal::KeyReused),
        }
    }

    /// Remembers what the first use of a key came to. What was refused for want of room is not: trying it again may go well.
    pub(super) fn remember(
        &mut self,
        key: CommandKey,
        body: &[u8],
        offset: Offset,
        at: Timestamp,
        verdict: &Result<Done, Refusal>,
    ) {
        if controls::NO_DEDUP.is_on() {
            return;
        }
        let code = match verdict {
            Ok(Done::Here) => v1::Code::Applied,
            Ok(Done::Forwarded(_)) => v1::Code::Forwarded,
            Err(Refusal::Limit) => return,
            Err(refusal) => refusal.code(),
        };
        if self.order.len() >= DEDUP_MAX {
            self.forget_oldest();
        }
        if self.commands.insert(key, Remembered { body: xxh3_64(body), offset, at, code }).is_none() {
            self.order.push_back(key);
        }
    }

    pub(super) fn check_invariants(&self) -> Result<(), String> {
        let at = |key| self.commands.get(key).map(|command| (command.at, command.offset));
        if self.order.len() != self.commands.len() || self.order.len() > DEDUP_MAX {
            return Err("idempotency keys and their order differ".into());
        }
        if !self.order.iter().map(at).is_sorted() || self.order.iter().any(|key| at(key).is_none()) {
            return Err("idempotency keys are out of order".into());
        }
        Ok(())
    }

    pub(super) fn encode(&self, out: &mut Writer) {
        out.length(self.order.len());
        for (key, command) in self.order.iter().filter_map(|key| Some((key, self.commands.get(key)?))) {
            out.u64((key.0 >> 64) as u64);
            out.u64(key.0 as u64);
            out.u64(command.body);
            out.u64(command.offset.0);
            out.u64(command.at.0);
            out.u8(command.code as u8);
        }
    }

    pub(super) fn decode(input: &mut Reader<'_>) -> Result<Self, SnapshotError> {
        let mut dedup = Self::default();
        for _ in 0..input.length()? {
            let key = CommandKey(u128::from(input.u64()?) << 64 | u128::from(input.u64()?));
            let (body, offset, at) = (input.u64()?, input.offset()?, Timestamp(input.u64()?));
            let code = v1::Code::try_from(i32::from(input.u8()?)).map_err(|_| SnapshotError::Invalid("code"))?;
            if dedup.commands.insert(key, Remembered { body, offset, at, code }).is_some() {
                return Err(SnapshotError::Invalid("idempotency keys"));
            }
            dedup.order.push_back(key);
        }
        Ok(dedup)
    }
}
