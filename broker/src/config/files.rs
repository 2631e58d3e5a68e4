//! Files that are read again while the broker serves: tokens, and what pushes and requests to `@connections` are signed with. Each is taken
//! as a whole or not at all.

use std::path::Path;

use serde::{Deserialize, de::DeserializeOwned};
use trunkline_proto::secret::SecretText;
use trunkline_quic::files;

use super::{AwsConfig, AwsKeyConfig, PushConfig, TokenConfig};
use crate::access;

/// What `broker.tokens_file` holds. An empty file is not one: half of a file that is being written might be.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tokens {
    tokens: Vec<TokenConfig>,
}

/// What `broker.push.secrets_file` holds.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Secrets {
    secrets: Vec<SecretText>,
}

/// What `broker.aws.keys_file` holds.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pairs {
    keys: Vec<AwsKeyConfig>,
}

/// The tokens of the config and those of the file.
///
/// # Errors
/// What is wrong with it, without a word of what stands there but names.
pub fn tokens(configured: &[TokenConfig], path: &Path) -> Result<Vec<TokenConfig>, String> {
    let all = [configured, &read::<Tokens>(path)?.tokens].concat();
    checked(path, |check| access::check(&all, check))?;
    Ok(all)
}

/// The secrets of the config and those of the file.
///
/// # Errors
/// As [`tokens`].
pub fn secrets(configured: &[SecretText], path: &Path) -> Result<Vec<SecretText>, String> {
    let secrets = [configured, &read::<Secrets>(path)?.secrets].concat();
    let all = PushConfig { secrets, ..PushConfig::default() };
    checked(path, |check| all.check(check))?;
    Ok(all.secrets)
}

/// The pairs of keys of the config and those of the file.
///
/// # Errors
/// As [`tokens`].
pub fn pairs(configured: &[AwsKeyConfig], path: &Path) -> Result<Vec<AwsKeyConfig>, String> {
    let keys = [configured, &read::<Pairs>(path)?.keys].concat();
    let all = AwsConfig { keys, ..AwsConfig::default() };
    checked(path, |check| all.check(check))?;
    Ok(all.keys)
}

fn checked(path: &Path, check: impl FnOnce(&mut dyn FnMut(bool, String))) -> Result<(), String> {
    let mut problems = Vec::new();
    check(&mut |good, problem| {
        if !good {
            problems.push(format!("{}: {problem}", path.display()));
        }
    });
    if problems.is_empty() { Ok(()) } else { Err(problems.join("\n")) }
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T, String> {
    let shown = path.display();
    let bytes = files::read(path).map_err(|error| format!("{shown}: {error}"))?;
    let text = std::str::from_utf8(&bytes).map_err(|_| format!("{shown}: is no UTF-8"))?;
    toml::from_str(text).map_err(|error| format!("{shown}: {}", toml_problem(text, &error)))
}

/// What is wrong with a TOML text: its line, its key and the reason, and nothing of its values, of which any may be a secret.
pub fn toml_problem(text: &str, error: &toml::de::Error) -> String {
    let message = without_value(error.message());
    let Some(start) = error.span().map(|span| span.start).filter(|start| text.is_char_boundary(*start)) else {
        return message;
    };
    let (before, after) = text.split_at(start);
    let line = before.matches('\n').count() + 1;
    let begun = before.rsplit('\n').next().unwrap_or_default();
    let whole = format!("{begun}{}", after.lines().next().unwrap_or_default());
    let is_key = |key: &str| !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b));
    let key = whole.split_once('=').map(|(key, _)| key.trim()).filter(|key| is_key(key));
    match key {
        Some(key) => format!("line {line}: {key}: {message}"),
        None => format!("line {line}: {message}"),
    }
}

/// A message of serde without the value it may show: `invalid type: string "…", expected a sequence`.
pub fn without_value(message: &str) -> String {
    for what in ["invalid type: ", "invalid value: "] {
        let Some(rest) = message.strip_prefix(what) else { continue };
        let kind = rest.split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or_default();
        let expected = rest.rfind(", expected").and_then(|at| rest.get(at..)).unwrap_or_default();
        return format!("{what}{kind}{expected}");
    }
    message.to_owned()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_wrong_with_a_file_shows_nothing_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file.toml");
        let good = "0123456789abcdef";
        for (text, said) in [
            ("secrets = \"whsec_hidden\"", "line 1: secrets: invalid type: string, expected a sequence"),
            ("secrets = [\n  \"0123456789abcdef\",\n  hidden\n]", "line 3: "),
            ("secrets = [\"hidden\"]", "guessed too easily"),
            ("secrets = [12345678901234567]", "line 1: secrets: invalid type: integer, expected a string"),
            ("hidden_secrets = []", "line 1"),
            ("", "missing field `secrets`"),
        ] {
            fs::write(&path, text).unwrap();
            let problem = secrets(&[], &path).unwrap_err();
            assert!(problem.contains(said), "{problem}");
            let shown = problem.replace("hidden_secrets", "");
            assert!(!shown.contains("hidden") && !shown.contains("1234567890"), "{problem}");
        }
        fs::write(&path, format!("secrets = [\"{good}\"]")).unwrap();
        assert_eq!(secrets(&[SecretText::new("fedcba9876543210")], &path).unwrap().len(), 2);
        fs::write(&path, "secrets = []").unwrap();
        assert!(secrets(&[], &path).unwrap().is_empty(), "said, not forgotten");
        assert!(secrets(&[], &folder.path().join("none")).is_err());
    }

    #[test]
    fn tokens_and_pairs_are_checked_with_those_of_the_config() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file.toml");
        let digest = trunkline_proto::token::TokenDigest::of("t");
        let text = format!("[[tokens]]\nname = \"a\"\nsha256 = \"{digest}\"\nrole = \"operator\"\n");
        fs::write(&path, &text).unwrap();
        let one = tokens(&[], &path).unwrap();
        assert_eq!(one.len(), 1);
        assert!(tokens(&one, &path).unwrap_err().contains("there twice"));
        fs::write(&path, text.replace("operator", "king")).unwrap();
        assert!(tokens(&[], &path).unwrap_err().contains("line 4"));
        fs::write(&path, "[[keys]]\nid = \"AKID\"\nsecret = \"0123456789abcdef\"\n").unwrap();
        let one = pairs(&[], &path).unwrap();
        assert!(pairs(&one, &path).unwrap_err().contains("there once"));
    }
}
