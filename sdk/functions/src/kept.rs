//! What answers of the cloudevents dialect leave with a connection, to be told with its next event: its user, and a state of the function's
//! own. Both are attributes of the connection, so that every bridge finds them, and set in the commit that settles the event.

use std::collections::BTreeMap;

use trunkline_proto::limits::ATTRIBUTES_BYTES_MAX;

use crate::failure::Failure;

/// Attributes' names.
const USER: &str = "userId";
const STATE: &str = "connectionState";

/// What an answer says of its connection.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Said {
    /// Joined at once. Of a registration alone.
    pub(crate) channels: Vec<String>,
    /// Of a registration alone.
    pub(crate) user: Option<String>,
    pub(crate) state: Option<String>,
}

/// What is kept with a connection.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Kept {
    pub(crate) user: String,
    pub(crate) state: String,
    /// Bytes of the connection's other attributes.
    others: usize,
}

impl Kept {
    /// By the attributes of a connection.
    pub(crate) fn of(attributes: &BTreeMap<String, String>) -> Self {
        let mut kept = Self::default();
        for (key, value) in attributes {
            match key.as_str() {
                USER => kept.user.clone_from(value),
                STATE => kept.state.clone_from(value),
                _ => kept.others += key.len() + value.len(),
            }
        }
        kept
    }

    /// Of a connection whose state nobody knows any more.
    pub(crate) fn stateless(self) -> Self {
        Self { state: String::new(), ..self }
    }

    /// What it takes to remember it.
    pub(crate) fn bytes(&self) -> usize {
        self.user.len() + self.state.len()
    }

    /// After an answer that says so, and the attributes to set; they must fit, else the answer makes no sense.
    pub(crate) fn after(&self, said: &Said) -> Result<(Self, BTreeMap<String, String>), Failure> {
        let mut kept = self.clone();
        let mut set = BTreeMap::new();
        for (key, said, kept) in [(USER, &said.user, &mut kept.user), (STATE, &said.state, &mut kept.state)] {
            if let Some(value) = said.as_ref().filter(|value| *value != &*kept) {
                kept.clone_from(value);
                set.insert(key.to_owned(), value.clone());
            }
        }
        let bytes = kept.others + USER.len() + kept.user.len() + STATE.len() + kept.state.len();
        if !set.is_empty() && bytes > ATTRIBUTES_BYTES_MAX {
            let problem =
                format!("userId, connectionState and other attributes of {bytes} bytes, of {ATTRIBUTES_BYTES_MAX}");
            return Err(Failure::Nonsense(problem));
        }
        Ok((kept, set))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn what_was_said_is_found_in_the_attributes() {
        let kept = Kept::of(&attributes(&[("role", "admin")]));
        let said = Said { user: Some("ada".into()), state: Some("e30=".into()), ..Said::default() };
        let (kept, set) = kept.after(&said).unwrap();
        assert_eq!(set, attributes(&[("userId", "ada"), ("connectionState", "e30=")]));
        let mut all = set;
        all.extend(attributes(&[("role", "admin")]));
        assert_eq!(Kept::of(&all), kept);
    }

    #[test]
    fn only_what_changes_is_set_and_an_empty_state_is_one() {
        let kept = Kept::of(&attributes(&[("userId", "ada"), ("connectionState", "1")]));
        let state = |state: &str| Said { state: Some(state.into()), ..Said::default() };
        assert_eq!(kept.after(&Said::default()).unwrap(), (kept.clone(), attributes(&[])));
        assert_eq!(kept.after(&state("1")).unwrap().1, attributes(&[]));
        let (cleared, set) = kept.after(&state("")).unwrap();
        assert_eq!(
            (cleared.user.as_str(), cleared.state.as_str(), set),
            ("ada", "", attributes(&[("connectionState", "")]))
        );
    }

    #[test]
    fn what_does_not_fit_beside_other_attributes_is_refused() {
        let state = |bytes: usize| Said { state: Some("x".repeat(bytes)), ..Said::default() };
        let most = ATTRIBUTES_BYTES_MAX - USER.len() - STATE.len();
        assert!(Kept::default().after(&state(most)).is_ok());
        assert!(matches!(Kept::default().after(&state(most + 1)), Err(Failure::Nonsense(_))));
        let with_others = Kept::of(&attributes(&[("role", "admin")]));
        assert!(with_others.after(&state(most - 9)).is_ok());
        assert!(with_others.after(&state(most - 8)).is_err());
        // nothing is set: nothing to refuse, however full it is
        let full = Kept::of(&attributes(&[("a", &"x".repeat(ATTRIBUTES_BYTES_MAX - 1))]));
        assert!(full.after(&Said::default()).is_ok());
    }
}
