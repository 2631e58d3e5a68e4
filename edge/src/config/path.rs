//! Path patterns of APIs: `/chat`, `/release/websocket`, `/rooms/{room}`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Most segments of a pattern, so that matching a hostile path costs little.
pub const SEGMENTS_MAX: usize = 32;

/// A path that an API answers: literal segments and `{parameter}`s, each of which takes exactly one non-empty segment.
/// Compared byte by byte: no case folding, no percent decoding, and a trailing slash counts.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct PathPattern {
    text: String,
    segments: Vec<Segment>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum Segment {
    Literal(String),
    Parameter(String),
}

/// Why a text is no [`PathPattern`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// It must be absolute.
    #[error("path {path:?} does not start with a slash")]
    Relative {
        /// As written.
        path: String,
    },
    /// Only what may stand in a request path.
    #[error(
        "path {path:?} holds {character:?}; letters, digits and -._~!$&'()*+,;=:@% are allowed, and {{name}} as a whole segment"
    )]
    Character {
        /// As written.
        path: String,
        /// The offender.
        character: char,
    },
    /// `{}` or a name that is no identifier.
    #[error("path {path:?} has a parameter {name:?}; a name is 1 to 32 of [A-Za-z0-9_]")]
    Parameter {
        /// As written.
        path: String,
        /// The offender.
        name: String,
    },
    /// The same name twice.
    #[error("path {path:?} names parameter {name:?} twice")]
    Twice {
        /// As written.
        path: String,
        /// The name.
        name: String,
    },
    /// More than [`SEGMENTS_MAX`].
    #[error("path {path:?} has more than {SEGMENTS_MAX} segments")]
    Segments {
        /// As written.
        path: String,
    },
}

impl PathPattern {
    /// As written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// If the pattern answers `path` (without its query): its parameters, in the pattern's order, as they stand in the path.
    pub fn matches<'a>(&'a self, path: &'a str) -> Option<Vec<(&'a str, &'a str)>> {
        let mut rest = path.strip_prefix('/')?.split('/');
        let mut parameters = Vec::new();
        for segment in &self.segments {
            let given = rest.next()?;
            match segment {
                Segment::Literal(literal) if literal == given => {}
                Segment::Parameter(name) if !given.is_empty() => parameters.push((name.as_str(), given)),
                _ => return None,
            }
        }
        rest.next().is_none().then_some(parameters)
    }

    /// Whether some path is answered by both and neither is more specific: they differ in parameter names only.
    pub fn clashes_with(&self, other: &Self) -> bool {
        self.segments.len() == other.segments.len()
            && self.segments.iter().zip(&other.segments).all(|pair| match pair {
                (Segment::Literal(own), Segment::Literal(theirs)) => own == theirs,
                (Segment::Parameter(_), Segment::Parameter(_)) => true,
                _ => false,
            })
    }

    /// Whether this pattern is to be tried before `other`: at their first difference it is literal and the other is not.
    pub fn is_before(&self, other: &Self) -> bool {
        let difference = self
            .segments
            .iter()
            .zip(&other.segments)
            .find(|(own, theirs)| matches!(own, Segment::Literal(_)) != matches!(theirs, Segment::Literal(_)));
        matches!(difference, Some((Segment::Literal(_), _)))
    }
}

impl FromStr for PathPattern {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, PathError> {
        let path = || text.to_owned();
        let body = text.strip_prefix('/').ok_or_else(|| PathError::Relative { path: path() })?;
        let mut segments = Vec::new();
        for part in body.split('/') {
            if segments.len() == SEGMENTS_MAX {
                return Err(PathError::Segments { path: path() });
            }
            let segment = match part.strip_prefix('{').and_then(|part| part.strip_suffix('}')) {
                Some(name) if is_parameter(name) => Segment::Parameter(name.to_owned()),
                Some(name) => return Err(PathError::Parameter { path: path(), name: name.to_owned() }),
                None => match part.chars().find(|character| !is_path_character(*character)) {
                    Some(character) => return Err(PathError::Character { path: path(), character }),
                    None => Segment::Literal(part.to_owned()),
                },
            };
            match &segment {
                Segment::Parameter(name) if segments.contains(&segment) => {
                    return Err(PathError::Twice { path: path(), name: name.clone() });
                }
                _ => segments.push(segment),
            }
        }
        Ok(Self { text: path(), segments })
    }
}

fn is_parameter(name: &str) -> bool {
    (1..=32).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// RFC 3986 §3.3 `pchar`, percent signs included.
fn is_path_character(character: char) -> bool {
    character.is_ascii_alphanumeric() || "-._~!$&'()*+,;=:@%".contains(character)
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

impl Serialize for PathPattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for PathPattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> PathPattern {
        text.parse().unwrap()
    }

    #[test]
    fn exact_paths_match_themselves_only() {
        let chat = pattern("/chat");
        assert_eq!(chat.matches("/chat"), Some(vec![]));
        for other in ["/chat/", "/Chat", "/chatter", "/", "", "chat", "//chat", "/chat/x"] {
            assert_eq!(chat.matches(other), None, "{other}");
        }
        assert_eq!(pattern("/").matches("/"), Some(vec![]));
        assert_eq!(pattern("/release/websocket").matches("/release/websocket"), Some(vec![]));
    }

    #[test]
    fn parameters_take_one_whole_segment() {
        let room = pattern("/rooms/{room}/{seat}");
        assert_eq!(room.matches("/rooms/a%2Fb/7"), Some(vec![("room", "a%2Fb"), ("seat", "7")]));
        for other in ["/rooms//7", "/rooms/a", "/rooms/a/7/8", "/rooms/a/"] {
            assert_eq!(room.matches(other), None, "{other}");
        }
    }

    #[test]
    fn literal_goes_before_parameter() {
        assert!(pattern("/a/b").is_before(&pattern("/a/{x}")));
        assert!(!pattern("/a/{x}").is_before(&pattern("/a/b")));
        assert!(pattern("/a/{x}").is_before(&pattern("/{y}/b")));
        assert!(pattern("/a/{x}").clashes_with(&pattern("/a/{y}")));
        assert!(!pattern("/a/{x}").clashes_with(&pattern("/a/x")));
    }

    #[test]
    fn wrong_patterns_are_named() {
        for (text, part) in [
            ("chat", "slash"),
            ("", "slash"),
            ("/a b", "' '"),
            ("/a?x", "'?'"),
            ("/a/{}", "1 to 32"),
            ("/a/{b c}", "1 to 32"),
            ("/a/{b}c", "'{'"),
            ("/{a}/{a}", "twice"),
            ("/é", "'é'"),
        ] {
            let error = text.parse::<PathPattern>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        assert!("/a".repeat(33).parse::<PathPattern>().is_err());
    }
}
