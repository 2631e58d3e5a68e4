//! Who may do what on gRPC and HTTP: bearer tokens, each with a role, and bounds on what it acts on. A header goes in, a caller or a
//! refusal comes out.

use std::{future::Future, sync::Arc};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use trunkline_proto::{limits, text, token::TokenDigest, v1};

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
    /// Role handler: the groups it may be a member of. Default those named as its `apis` are, else any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// Roles handler and publisher: the APIs whose connections it is for: events, commands and lookups. At most 255 bytes together,
    /// with a comma between. Default any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub apis: Vec<String>,
    /// Roles handler and publisher: the channels it may publish to, look at, and have its connections join and leave: names, or
    /// beginnings of names and `*`. Channels are shared by all APIs. Default none with `apis`, else any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub channels: Vec<String>,
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

/// The tokens that are good; they may be replaced while it is in use. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Access(Arc<watch::Sender<Option<Tokens>>>);

/// None: everybody may do everything, the listener is on loopback or `insecure`. No token is another thing: nobody is let in.
type Tokens = Arc<[Arc<TokenConfig>]>;

impl Default for Access {
    /// Everybody may do everything.
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }
}

/// Who calls, and what that one may act on.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    /// None: nobody asked.
    token: Option<Arc<TokenConfig>>,
    /// Bound to the connections of this API alone, whatever the token is for.
    api: Option<String>,
}

impl Access {
    /// With these tokens. Without any, everybody may do everything.
    pub fn new(tokens: Vec<TokenConfig>) -> Self {
        let access = Self::default();
        if !tokens.is_empty() {
            access.replace(tokens);
        }
        access
    }

    /// From now on these tokens are good and no others; without any, none is.
    pub fn replace(&self, tokens: Vec<TokenConfig>) {
        self.0.send_replace(Some(tokens.into_iter().map(Arc::new).collect()));
    }

    /// Judges the value of an Authorization header. Every token is looked at, whichever it is.
    pub fn judge(&self, authorization: Option<&[u8]>, need: Need) -> Result<Caller, Denied> {
        let tokens = self.0.borrow();
        let Some(tokens) = tokens.as_ref() else { return Ok(Caller::default()) };
        let written = authorization.and_then(|value| std::str::from_utf8(value).ok());
        let token = written.and_then(text::bearer).filter(|token| !token.is_empty());
        let digest = token.map(TokenDigest::of).ok_or(Denied::Unauthenticated)?;
        let found = tokens.iter().fold(None, |found, token| if token.sha256 == digest { Some(token) } else { found });
        let token = found.ok_or(Denied::Unauthenticated)?;
        if !token.role.may(need) {
            return Err(Denied::Forbidden("the token's role does not allow this".to_owned()));
        }
        Ok(Caller { token: Some(token.clone()), api: None })
    }

    /// Until the caller's token is good no more, or is good for something else.
    pub fn revoked(&self, caller: &Caller) -> impl Future<Output = ()> + Send + use<> {
        let (mut tokens, token) = (self.0.subscribe(), caller.token.clone());
        async move {
            let is_gone = |tokens: &Option<Tokens>| match (&token, tokens) {
                (Some(token), Some(tokens)) => !tokens.contains(token),
                _ => false,
            };
            if tokens.wait_for(is_gone).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

impl Caller {
    /// Who is called so, and may everything.
    #[cfg(test)]
    pub(crate) fn named(name: &str) -> Self {
        let (role, sha256) = (Role::Operator, TokenDigest::of(name));
        let token = TokenConfig { name: name.to_owned(), sha256, role, groups: vec![], apis: vec![], channels: vec![] };
        Self { token: Some(Arc::new(token)), api: None }
    }

    /// Its name; empty: nobody asked.
    pub fn name(&self) -> &str {
        self.token.as_ref().map_or("", |token| &token.name)
    }

    /// The same one, who acts on connections of `api` alone, which must be a name.
    pub fn within(&self, api: &str) -> Result<Self, Denied> {
        self.may_use_api(api)?;
        Ok(Self { token: self.token.clone(), api: Some(api.to_owned()) })
    }

    fn apis(&self) -> &[String] {
        self.token.as_ref().map_or(&[], |token| &token.apis)
    }

    /// What its commands for connections are bound to ([`trunkline_proto::Record::api`]); empty: nothing.
    pub fn bound(&self) -> String {
        self.api.clone().unwrap_or_else(|| self.apis().join(","))
    }

    /// Whether connections of `api` are there for it.
    pub fn sees(&self, api: &str) -> bool {
        let apis = self.apis();
        (apis.is_empty() || apis.iter().any(|one| one == api)) && self.api.as_ref().is_none_or(|only| only == api)
    }

    /// Whether it may name this API.
    pub fn may_use_api(&self, api: &str) -> Result<(), Denied> {
        if self.sees(api) { Ok(()) } else { Err(Denied::Forbidden("the token is not for this API".to_owned())) }
    }

    /// Whether it may name this channel.
    pub fn may_use_channel(&self, channel: &str) -> Result<(), Denied> {
        let Some(token) = &self.token else { return Ok(()) };
        let is_unbound = token.apis.is_empty() && token.channels.is_empty();
        let matches = |one: &String| one.strip_suffix('*').map_or(one == channel, |start| channel.starts_with(start));
        if is_unbound || token.channels.iter().any(matches) {
            return Ok(());
        }
        Err(Denied::Forbidden(
            "the token is not for this channel: all APIs share channels, its `channels` name some".to_owned(),
        ))
    }

    /// Whether it may join this group for these APIs.
    pub fn may_join(&self, join: &v1::Join) -> Result<(), Denied> {
        let Some(token) = self.token.as_ref().filter(|token| token.role != Role::Operator) else { return Ok(()) };
        // a member has its group's partitions whole, and passes over what it does not subscribe to: not in another API's group
        let groups = if token.groups.is_empty() { &token.apis } else { &token.groups };
        if !groups.is_empty() && !groups.contains(&join.group) {
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
}

/// Says what is wrong with a list of tokens.
pub(crate) fn check(tokens: &[TokenConfig], check: &mut (impl FnMut(bool, String) + ?Sized)) {
    check(tokens.len() <= TOKENS_MAX, format!("broker.tokens: more than {TOKENS_MAX}"));
    for (n, token) in tokens.iter().enumerate() {
        let name = &token.name;
        check(limits::is_name(name), format!("broker.tokens: name {name:?} must be 1 to 64 of A-Z a-z 0-9 . _ -"));
        check(
            tokens.iter().take(n).all(|other| other.sha256 != token.sha256),
            format!("broker.tokens: the token of {name:?} is there twice"),
        );
        check(
            token.role == Role::Handler || token.groups.is_empty(),
            format!("broker.tokens: groups of {name:?} bound nothing: only role \"handler\" has them"),
        );
        check(
            matches!(token.role, Role::Handler | Role::Publisher)
                || (token.apis.is_empty() && token.channels.is_empty()),
            format!(
                "broker.tokens: apis and channels of {name:?} bound nothing: only roles \"handler\" and \"publisher\" have them"
            ),
        );
        let mut names = token.groups.iter().chain(&token.apis);
        check(
            names.all(|name| limits::is_name(name)),
            format!("broker.tokens: groups and apis of {name:?} must be names"),
        );
        check(
            token.apis.join(",").len() <= limits::BOUND_BYTES_MAX,
            format!("broker.tokens: apis of {name:?} have more than {} bytes together", limits::BOUND_BYTES_MAX),
        );
        check(
            token.channels.iter().all(|channel| limits::is_channel(channel)),
            format!("broker.tokens: channels of {name:?} must be names of channels, or beginnings of them and *"),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(name: &str, role: Role) -> TokenConfig {
        let sha256 = TokenDigest::of(&format!("token-of-{name}"));
        TokenConfig { name: name.to_owned(), sha256, role, groups: Vec::new(), apis: Vec::new(), channels: Vec::new() }
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
            assert_eq!(caller(name).sees(api), allowed, "{name} {api}");
        }
        assert!(Caller::default().may_join(&join("any", &[])).is_ok());
    }

    #[test]
    fn wrong_tokens_are_named_but_not_shown() {
        let mut problems = Vec::new();
        let names = |name: &str, count: usize| vec![name.to_owned(); count];
        let publisher = TokenConfig { groups: names("a", 1), ..token("p", Role::Publisher) };
        let tokens = [
            token("a b", Role::Operator),
            publisher.clone(),
            TokenConfig { groups: Vec::new(), ..publisher },
            TokenConfig { apis: names("a", 1), ..token("reader", Role::ReadOnly) },
            TokenConfig { channels: names("a*", 1), ..token("operator", Role::Operator) },
            TokenConfig { apis: names(&"a".repeat(64), 4), ..token("long", Role::Handler) },
            TokenConfig { channels: names("a\nb", 1), ..token("control", Role::Handler) },
            TokenConfig { apis: names("a", 2), channels: names("a*", 2), ..token("good", Role::Publisher) },
        ];
        check(&tokens, &mut |holds, problem| {
            if !holds {
                problems.push(problem);
            }
        });
        assert_eq!(problems.len(), 7, "{problems:?}");
    }

    #[test]
    fn apis_and_channels_bound_what_a_caller_names() {
        let publisher = TokenConfig {
            apis: vec!["chat".to_owned(), "news".to_owned()],
            channels: vec!["lobby".to_owned(), "chat.*".to_owned()],
            ..token("bound", Role::Publisher)
        };
        let access = Access::new(vec![publisher, token("free", Role::Publisher)]);
        let caller =
            |name: &str| access.judge(Some(format!("Bearer token-of-{name}").as_bytes()), Need::Command).unwrap();
        let (bound, free) = (caller("bound"), caller("free"));
        assert_eq!((bound.bound().as_str(), free.bound().as_str()), ("chat,news", ""));
        let news = bound.within("news").unwrap();
        assert_eq!((news.bound().as_str(), free.within("bank").unwrap().bound().as_str()), ("news", "bank"));
        assert!(
            news.sees("news") && !news.sees("chat") && bound.within("bank").is_err() && news.within("chat").is_err()
        );
        assert!(bound.sees("news") && !bound.sees("bank") && !bound.sees("chat,news") && free.sees("bank"));
        for (channel, allowed) in
            [("lobby", true), ("chat.1", true), ("chat.", true), ("chat", false), ("lobby2", false)]
        {
            assert_eq!(bound.may_use_channel(channel).is_ok(), allowed, "{channel}");
            assert!(free.may_use_channel(channel).is_ok());
        }
        let without = TokenConfig { apis: vec!["chat".to_owned()], ..token("p", Role::Publisher) };
        let caller = Caller { token: Some(Arc::new(without)), api: None };
        assert!(caller.may_use_channel("lobby").is_err(), "channels are shared with APIs that are not its");
    }

    #[tokio::test]
    async fn who_is_replaced_is_told_and_nobody_is_let_in_without_a_token() {
        let access = access();
        let judge = |name: &str| access.judge(Some(format!("Bearer token-of-{name}").as_bytes()), Need::Look);
        let (operator, reader) = (judge("operator").unwrap(), judge("reader").unwrap());
        let kept = access.revoked(&operator);
        let changed = access.revoked(&reader);
        tokio::pin!(kept);
        access.replace(vec![token("operator", Role::Operator), token("reader", Role::Operator)]);
        changed.await;
        tokio::select! {
            biased;
            () = &mut kept => panic!("its token is as it was"),
            () = tokio::task::yield_now() => {}
        }
        access.replace(Vec::new());
        kept.await;
        assert_eq!(judge("operator").err(), Some(Denied::Unauthenticated));
        assert_eq!(access.judge(None, Need::Look).err(), Some(Denied::Unauthenticated), "no tokens is not no question");
    }
}
