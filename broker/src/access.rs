//! Who may do what on gRPC and HTTP: bearer tokens, each with a role. Pure: a header goes in, a caller or a refusal comes out.

use serde::{Deserialize, Serialize};
use trunkline_proto::{limits, token::TokenDigest, v1};

/// Most tokens: each is compared with what a call brings.
const TOKENS_MAX: usize = 1000;

/// One of `[[broker.tokens]]`; `trunkline token new` prints it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenConfig {
    /// Whose it is: the principal of what is done with it. 1 to 64 of `[A-Za-z0-9._-]`; the same one again while a token is replaced.
    pub name: String,
    /// The token's digest, 64 hexadecimal digits.
    pub sha256: TokenDigest,
    /// What it is good for.
    pub role: Role,
    /// Role handler: the groups it may be a member of. Default any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// Role handler: the APIs whose events it may get. Default any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub apis: Vec<String>,
}

/// What a token is good for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// To be a member of handler groups, to look at connections and to send commands.
    Handler,
    /// To look at connections and to send commands.
    Publisher,
    /// Everything.
    Operator,
    /// To look at everything.
    ReadOnly,
}

/// What a call is about to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Need {
    /// Look at live connections and the cluster.
    Look,
    /// Read the log, past states, groups and metrics.
    Read,
    /// Send commands.
    Command,
    /// Be a member of a group.
    Handle,
    /// Change groups and the cluster.
    Operate,
}

impl Role {
    fn may(self, need: Need) -> bool {
        match self {
            Self::Operator => true,
            Self::Handler => matches!(need, Need::Look | Need::Command | Need::Handle),
            Self::Publisher => matches!(need, Need::Look | Need::Command),
            Self::ReadOnly => matches!(need, Need::Look | Need::Read),
        }
    }
}

/// Why a call is refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Denied {
    /// No token, or none that is known.
    #[error("a bearer token is needed: `Authorization: Bearer TOKEN`")]
    Unauthenticated,
    /// It is good for other things.
    #[error("{0}")]
    Forbidden(String),
}

/// The tokens that are good. Without any everybody may do everything: the listener is on loopback, or `insecure`.
#[derive(Clone, Debug, Default)]
pub struct Access {
    tokens: Vec<TokenConfig>,
}

/// Who calls.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    /// None: nobody asked.
    token: Option<TokenConfig>,
}

impl Access {
    /// With these tokens.
    pub fn new(tokens: Vec<TokenConfig>) -> Self {
        Self { tokens }
    }

    /// Judges the value of an Authorization header. Every token is looked at, whichever it is.
    pub fn judge(&self, authorization: Option<&[u8]>, need: Need) -> Result<Caller, Denied> {
        if self.tokens.is_empty() {
            return Ok(Caller::default());
        }
        let digest = authorization.and_then(bearer).map(TokenDigest::of).ok_or(Denied::Unauthenticated)?;
        let found =
            self.tokens.iter().fold(None, |found, token| if token.sha256 == digest { Some(token) } else { found });
        let token = found.ok_or(Denied::Unauthenticated)?;
        if !token.role.may(need) {
            return Err(Denied::Forbidden("the token's role does not allow this".to_owned()));
        }
        Ok(Caller { token: Some(token.clone()) })
    }
}

impl Caller {
    /// Its name; empty: nobody asked.
    pub fn name(&self) -> &str {
        self.token.as_ref().map_or("", |token| &token.name)
    }

    /// Whether it may join this group for these APIs.
    pub fn may_join(&self, join: &v1::Join) -> Result<(), Denied> {
        let Some(token) = self.token.as_ref().filter(|token| token.role != Role::Operator) else { return Ok(()) };
        if !token.groups.is_empty() && !token.groups.contains(&join.group) {
            return Err(Denied::Forbidden("the token is not for this handler group".to_owned()));
        }
        // no API named means all of them
        let asks_for_others = join.apis.is_empty() || !join.apis.iter().all(|api| token.apis.contains(api));
        if !token.apis.is_empty() && asks_for_others {
            let apis = token.apis.join(", ");
            return Err(Denied::Forbidden(format!("the token is for these APIs only, which must be named: {apis}")));
        }
        Ok(())
    }

    /// Whether events of this API are its business.
    pub fn may_handle(&self, api: &str) -> Result<(), Denied> {
        match &self.token {
            Some(token) if !token.apis.is_empty() && !token.apis.iter().any(|own| own == api) => {
                Err(Denied::Forbidden("the token is for other APIs".to_owned()))
            }
            _ => Ok(()),
        }
    }
}

/// The token of `Bearer TOKEN`.
fn bearer(value: &[u8]) -> Option<&str> {
    let (scheme, token) = std::str::from_utf8(value).ok()?.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// Says what is wrong with a list of tokens.
pub(crate) fn check(tokens: &[TokenConfig], check: &mut impl FnMut(bool, String)) {
    check(tokens.len() <= TOKENS_MAX, format!("broker.tokens: more than {TOKENS_MAX}"));
    for (n, token) in tokens.iter().enumerate() {
        let name = &token.name;
        check(limits::is_name(name), format!("broker.tokens: name {name:?} must be 1 to 64 of A-Z a-z 0-9 . _ -"));
        check(
            tokens.iter().take(n).all(|other| other.sha256 != token.sha256),
            format!("broker.tokens: the token of {name:?} is there twice"),
        );
        check(
            token.role == Role::Handler || (token.groups.is_empty() && token.apis.is_empty()),
            format!("broker.tokens: groups and apis of {name:?} bound nothing: only role \"handler\" has them"),
        );
        let mut names = token.groups.iter().chain(&token.apis);
        check(
            names.all(|name| limits::is_name(name)),
            format!("broker.tokens: groups and apis of {name:?} must be names"),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(name: &str, role: Role) -> TokenConfig {
        let sha256 = TokenDigest::of(&format!("token-of-{name}"));
        TokenConfig { name: name.to_owned(), sha256, role, groups: Vec::new(), apis: Vec::new() }
    }

    fn access() -> Access {
        let handler = TokenConfig {
            groups: vec!["chat".to_owned()],
            apis: vec!["chat".to_owned(), "news".to_owned()],
            ..token("handler", Role::Handler)
        };
        Access::new(vec![
            handler,
            token("publisher", Role::Publisher),
            token("operator", Role::Operator),
            token("reader", Role::ReadOnly),
        ])
    }

    const NEEDS: [Need; 5] = [Need::Look, Need::Read, Need::Command, Need::Handle, Need::Operate];

    #[test]
    fn each_role_may_do_its_own() {
        for (name, allowed) in [
            ("handler", [true, false, true, true, false]),
            ("publisher", [true, false, true, false, false]),
            ("operator", [true; 5]),
            ("reader", [true, true, false, false, false]),
        ] {
            let header = format!("Bearer token-of-{name}");
            let judged = NEEDS.map(|need| access().judge(Some(header.as_bytes()), need));
            assert_eq!(judged.each_ref().map(Result::is_ok), allowed, "{name}");
            for judged in judged {
                match judged {
                    Ok(caller) => assert_eq!(caller.name(), name),
                    Err(denied) => assert!(matches!(denied, Denied::Forbidden(_)), "{denied}"),
                }
            }
        }
    }

    #[test]
    fn what_is_no_token_is_nobody() {
        for header in [
            None,
            Some(&b""[..]),
            Some(b"Bearer"),
            Some(b"Bearer "),
            Some(b"Bearer token-of-operato"),
            Some(b"Bearer token-of-operatorx"),
            Some(b"Basic token-of-operator"),
            Some(b"token-of-operator"),
            Some(b"Bearer \xff\xfe"),
            Some(TokenDigest::of("token-of-operator").to_string().as_bytes()),
        ] {
            for need in NEEDS {
                assert_eq!(access().judge(header, need).err(), Some(Denied::Unauthenticated), "{header:?}");
            }
        }
        assert_eq!(access().judge(Some(b"bearer  token-of-operator "), Need::Operate).unwrap().name(), "operator");
        assert_eq!(Access::default().judge(None, Need::Operate).unwrap().name(), "", "no tokens: nobody asks");
    }

    #[test]
    fn a_handler_joins_its_own_groups_and_apis() {
        let caller =
            |name: &str| access().judge(Some(format!("Bearer token-of-{name}").as_bytes()), Need::Handle).unwrap();
        let join = |group: &str, apis: &[&str]| v1::Join {
            group: group.to_owned(),
            apis: apis.iter().map(|api| (*api).to_owned()).collect(),
            ..Default::default()
        };
        for (group, apis, allowed) in [
            ("chat", &["chat"][..], true),
            ("chat", &["news", "chat"], true),
            ("chat", &["chat", "bank"], false),
            ("chat", &[], false),
            ("bank", &["chat"], false),
        ] {
            assert_eq!(caller("handler").may_join(&join(group, apis)).is_ok(), allowed, "{group} {apis:?}");
            assert!(caller("operator").may_join(&join(group, apis)).is_ok());
        }
        for (name, api, allowed) in [("handler", "news", true), ("handler", "bank", false), ("operator", "bank", true)]
        {
            assert_eq!(caller(name).may_handle(api).is_ok(), allowed, "{name} {api}");
        }
        assert!(Caller::default().may_join(&join("any", &[])).is_ok());
    }

    #[test]
    fn wrong_tokens_are_named_but_not_shown() {
        let mut problems = Vec::new();
        let publisher = TokenConfig { apis: vec!["a".to_owned()], ..token("p", Role::Publisher) };
        let tokens = [token("a b", Role::Operator), publisher.clone(), TokenConfig { apis: Vec::new(), ..publisher }];
        check(&tokens, &mut |holds, problem| {
            if !holds {
                problems.push(problem);
            }
        });
        assert_eq!(problems.len(), 3, "{problems:?}");
    }
}
