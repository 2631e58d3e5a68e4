//! Names as small numbers, in the order they were first seen: the same on every replica.

use std::{collections::BTreeMap, sync::Arc};

use super::snapshot::{Reader, SnapshotError, Writer};

/// Most names of one sort. They come from configurations, not from clients; the bound holds a faulty one.
pub(super) const NAMES_MAX: usize = 1024;

/// Names and their numbers. A name once seen stays.
#[derive(Clone, Default, Debug)]
pub(super) struct Names {
    numbers: BTreeMap<Arc<str>, u16>,
    names: Vec<Arc<str>>,
}

impl Names {
    /// Whether `name` has a number or can get one.
    pub(super) fn has_room(&self, name: &str) -> bool {
        self.names.len() < NAMES_MAX || self.numbers.contains_key(name)
    }

    /// The number of `name`, a new one if need be. Ask [`Names::has_room`] first.
    pub(super) fn intern(&mut self, name: &str) -> u16 {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        debug_assert!(self.names.len() < NAMES_MAX);
        let (number, name) = (self.names.len() as u16, Arc::<str>::from(name));
        self.names.push(name.clone());
        self.numbers.insert(name, number);
        number
    }

    /// The number of `name`, if it has one.
    pub(super) fn number(&self, name: &str) -> Option<u16> {
        self.numbers.get(name).copied()
    }

    /// The name with that number; empty if there is none.
    pub(super) fn name(&self, number: u16) -> &str {
        self.names.get(usize::from(number)).map_or("", |name| name)
    }

    /// How many.
    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    /// All, in the order of their numbers.
    pub(super) fn iter(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(|name| &**name)
    }

    pub(super) fn encode(&self, out: &mut Writer) {
        out.length(self.names.len());
        for name in &self.names {
            out.text(name);
        }
    }

    pub(super) fn decode(input: &mut Reader<'_>) -> Result<Self, SnapshotError> {
        let mut names = Self::default();
        for _ in 0..input.length()? {
            let name = input.text()?;
            if names.number(name).is_some() || !names.has_room(name) {
                return Err(SnapshotError::Invalid("names"));
            }
            names.intern(name);
        }
        Ok(names)
    }
}
