//! Which events a handler group consumes.

use std::collections::BTreeSet;

use trunkline_proto::{RecordKind, limits};

use super::effects::Refusal;

/// Most APIs in a group's filter.
pub(super) const FILTER_APIS_MAX: usize = 256;

/// Which events a group consumes.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Filter {
    /// Ascending; empty: all.
    pub apis: Vec<Box<str>>,
    /// Ascending; empty: all events.
    pub kinds: Vec<RecordKind>,
}

impl Filter {
    pub(super) fn new(apis: &[String], kinds: &[u32]) -> Result<Self, Refusal> {
        if apis.len() > FILTER_APIS_MAX || !apis.iter().all(|api| limits::is_name(api)) {
            return Err(Refusal::Malformed);
        }
        let apis: BTreeSet<Box<str>> = apis.iter().map(|api| api.as_str().into()).collect();
        let kind =
            |number: &u32| u8::try_from(*number).ok().and_then(RecordKind::from_u8).filter(|kind| kind.is_event());
        let kinds = kinds.iter().map(kind).collect::<Option<BTreeSet<_>>>().ok_or(Refusal::Malformed)?;
        Ok(Self { apis: apis.into_iter().collect(), kinds: kinds.into_iter().collect() })
    }

    pub(super) fn takes_api(&self, api: &str) -> bool {
        self.apis.is_empty() || self.apis.binary_search_by(|name| (**name).cmp(api)).is_ok()
    }

    /// `place`: 0 opened, 1 message, 2 closed.
    pub(super) fn takes_place(&self, place: usize) -> bool {
        self.kinds.is_empty() || self.kinds.iter().any(|kind| *kind as usize == place + 1)
    }
}
const _: () = assert!(RecordKind::ConnectionOpened as u8 == 1 && RecordKind::ConnectionClosed as u8 == 3);
