//! Holds the repository to its own word: what ARCHITECTURE.md and README.md say is there, modules import downwards only, files
//! stay readable, dependencies are allowed. Prose alone drifts.

#![allow(clippy::unwrap_used)] // a test of the repository ends where the repository cannot be read

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

/// Most lines of a file that are not tests. A file that nears 500 is asked what its second topic is.
const LINES_MAX: usize = 600;

/// Files that may be longer, and why.
const LONG: &[(&str, &str)] = &[];

/// Crates whose modules have ranks in ARCHITECTURE.md.
const RANKED: &[&str] = &["broker", "edge"];

/// Folders with Rust sources.
const CRATES: &[&str] = &["proto", "broker", "edge", "sdk/rust", "sdk/functions", "cli", "bench", "tests"];

/// Licences our users can live with when they ship our binary. Keep in step with deny.toml.
const LICENCES: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// One TLS stack (rustls with ring), and what must not come in beside it.
const BANNED: &[&str] = &["aws-lc-rs", "aws-lc-sys", "native-tls", "openssl", "openssl-sys"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn fail_with(problems: &[String]) {
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

/// Every Rust file under `folder` (relative to the root), as (path relative to the root, text).
fn sources(folder: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    collect(&root().join(folder), folder, &mut found);
    found.sort();
    found
}

fn collect(at: &Path, shown: &str, found: &mut Vec<(String, String)>) {
    let Ok(entries) = fs::read_dir(at) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let shown = format!("{shown}/{name}");
        if entry.path().is_dir() && name != "target" {
            collect(&entry.path(), &shown, found);
        } else if name.ends_with(".rs") {
            let text = fs::read_to_string(entry.path()).unwrap();
            found.push((shown, text));
        }
    }
}

/// Whether the file holds nothing but tests.
fn is_test_file(path: &str) -> bool {
    let stem = path.rsplit('/').next().unwrap_or(path).trim_end_matches(".rs");
    stem == "tests"
        || stem.ends_with("_tests")
        || path
            .split('/')
            .skip(1)
            .any(|part| matches!(part, "tests" | "benches" | "examples") || part.ends_with("_tests"))
}

/// The text without line comments and without what follows `#[cfg(test)]` on a module with a body, which stands last by habit.
fn code(text: &str) -> String {
    let mut kept = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let inline_tests = line.trim() == "#[cfg(test)]"
            && lines.peek().is_some_and(|next| next.trim_start().starts_with("mod ") && next.trim_end().ends_with('{'));
        if inline_tests {
            break;
        }
        let end = line.find("//").filter(|at| !line[..*at].contains('"')).unwrap_or(line.len());
        kept.push_str(&line[..end]);
        kept.push('\n');
    }
    kept
}

/// `a{b,c}d` as `abd` and `acd`.
fn expand_braces(path: &str) -> Vec<String> {
    let Some((before, rest)) = path.split_once('{') else { return vec![path.to_owned()] };
    let Some((inside, after)) = rest.split_once('}') else { return vec![path.to_owned()] };
    inside.split(',').map(|part| format!("{before}{}{after}", part.trim())).collect()
}

/// The text of every pair of backticks.
fn quoted(line: &str) -> Vec<&str> {
    line.split('`').skip(1).step_by(2).collect()
}

#[test]
fn the_files_of_the_walk_exist() {
    let text = read("ARCHITECTURE.md");
    let mut problems = Vec::new();
    let mut steps = 0;
    for line in text.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let Some(step) = cells.get(1).and_then(|cell| cell.parse::<u32>().ok()) else { continue };
        steps += 1;
        let file = cells.get(2).and_then(|cell| quoted(cell).first().copied()).unwrap_or_default();
        for path in expand_braces(file) {
            if !root().join(&path).is_file() {
                problems.push(format!("ARCHITECTURE.md, step {step}: there is no file {path:?}"));
            } else if !says_its_step(&read(&path)) {
                problems.push(format!("{path}: is step {step} of the walk and does not say so in its first lines"));
            }
        }
    }
    assert!(steps >= 10, "ARCHITECTURE.md has no table of the walk: lines of | number | `file` | ...");
    fail_with(&problems);
}

/// A file on the walk opens with its step and its neighbours.
fn says_its_step(text: &str) -> bool {
    let opening: String =
        text.lines().take_while(|line| line.starts_with("//!")).collect::<Vec<_>>().join(" ").to_lowercase();
    opening.contains("step")
}

#[test]
fn every_file_that_the_architecture_page_names_exists() {
    let text = read("ARCHITECTURE.md");
    let problems: Vec<String> = text
        .lines()
        .flat_map(quoted)
        .filter(|name| {
            CRATES.iter().any(|folder| name.starts_with(&format!("{folder}/"))) && !name.contains(char::is_whitespace)
        })
        .flat_map(expand_braces)
        .filter(|path| !path.contains('*') && !root().join(path).exists())
        .map(|path| format!("ARCHITECTURE.md names {path:?}, which does not exist"))
        .collect();
    fail_with(&problems);
}

/// Module → rank, from a line `- broker: `a b` < `c` (why) < …` of ARCHITECTURE.md.
fn ranks(krate: &str) -> BTreeMap<String, usize> {
    let text = read("ARCHITECTURE.md");
    let start = format!("- {krate}: `");
    let line = text
        .lines()
        .find(|line| line.starts_with(&start))
        .unwrap_or_else(|| panic!("ARCHITECTURE.md has no line {start:?}"));
    let names = |(rank, part): (usize, &str)| {
        let list = quoted(part).first().copied().unwrap_or_default().to_owned();
        list.split_whitespace().map(|name| (name.to_owned(), rank)).collect::<Vec<_>>()
    };
    line.split(" < ").enumerate().flat_map(names).collect()
}

/// Modules that `lib.rs` declares for tests only.
fn test_modules(krate: &str) -> BTreeSet<String> {
    let lib = read(&format!("{krate}/src/lib.rs"));
    let lines: Vec<&str> = lib.lines().map(str::trim).collect();
    let declared = |pair: &[&str]| {
        let name = pair[1].trim_start_matches("pub ").strip_prefix("mod ")?.strip_suffix(';')?;
        (pair[0] == "#[cfg(test)]").then(|| name.to_owned())
    };
    lines.windows(2).filter_map(declared).collect()
}

/// The first names after each `crate::`, also of `crate::{a, b::{c, d}}`.
fn crate_imports(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        if code[..at].ends_with('$') {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(list) => found.extend(first_names(list)),
            None => found.extend(identifier(rest)),
        }
    }
    found
}

fn identifier(text: &str) -> Option<String> {
    let name: String = text.trim_start().chars().take_while(|char| char.is_alphanumeric() || *char == '_').collect();
    (!name.is_empty()).then_some(name)
}

/// The leading names of a brace list whose opening brace is gone.
fn first_names(list: &str) -> Vec<String> {
    let mut depth = 0;
    let mut start = 0;
    let mut names = Vec::new();
    for (at, char) in list.char_indices() {
        match char {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            '}' => {
                names.extend(identifier(&list[start..at]));
                break;
            }
            ',' if depth == 0 => {
                names.extend(identifier(&list[start..at]));
                start = at + 1;
            }
            _ => {}
        }
    }
    names
}

#[test]
fn modules_import_downwards_only() {
    let mut problems = Vec::new();
    for krate in RANKED {
        let (ranks, for_tests) = (ranks(krate), test_modules(krate));
        for (path, text) in sources(&format!("{krate}/src")) {
            let Some(module) = path.split('/').nth(2).map(|part| part.trim_end_matches(".rs").to_owned()) else {
                continue;
            };
            if module == "lib" || module == "main" || is_test_file(&path) || for_tests.contains(&module) {
                continue;
            }
            let Some(own) = ranks.get(&module) else {
                problems.push(format!("{path}: module {module:?} has no rank in ARCHITECTURE.md"));
                continue;
            };
            for import in crate_imports(&code(&text)) {
                match ranks.get(&import) {
                    Some(rank) if rank > own => {
                        problems.push(format!("{path}: {module} (rank {own}) imports {import} (rank {rank})"));
                    }
                    None if import.starts_with(char::is_lowercase) => {
                        problems.push(format!("{path}: imports crate::{import}, which has no rank"));
                    }
                    _ => {}
                }
            }
        }
    }
    fail_with(&problems);
}

#[test]
fn files_have_one_topic() {
    let mut problems = Vec::new();
    let long: BTreeMap<&str, &str> = LONG.iter().copied().collect();
    for (path, text) in CRATES.iter().flat_map(|folder| sources(folder)) {
        let lines = code(&text).lines().count();
        if is_test_file(&path) {
            continue;
        }
        match long.get(path.as_str()) {
            None if lines > LINES_MAX => {
                problems.push(format!("{path}: {lines} lines that are not tests; more than {LINES_MAX}"));
            }
            Some(_) if lines <= LINES_MAX => problems.push(format!("{path}: is short now, take it off the list")),
            _ => {}
        }
    }
    let all: BTreeSet<String> = CRATES.iter().flat_map(|folder| sources(folder)).map(|(path, _)| path).collect();
    problems.extend(
        LONG.iter()
            .filter(|(path, _)| !all.contains(*path))
            .map(|(path, _)| format!("{path}: is on the list and gone")),
    );
    fail_with(&problems);
}

#[test]
fn nothing_is_left_unfinished() {
    let marks = [concat!("to", "do!("), concat!("unimple", "mented!("), concat!("FIX", "ME"), concat!("XX", "X")];
    let mut problems = Vec::new();
    for (path, text) in CRATES.iter().flat_map(|folder| sources(folder)) {
        for (number, line) in text.lines().enumerate() {
            problems.extend(
                marks.iter().filter(|mark| line.contains(**mark)).map(|mark| format!("{path}:{}: {mark}", number + 1)),
            );
        }
    }
    fail_with(&problems);
}

#[test]
fn only_the_named_layers_use_the_big_libraries() {
    // (crate's name in code, the only folder that may say it)
    let only = [("rocksdb::", "broker/src/store/"), ("openraft::", "broker/src/raft/")];
    let mut problems = Vec::new();
    for (path, text) in sources("broker/src") {
        for (library, folder) in only {
            if !path.starts_with(folder) && code(&text).contains(library) {
                problems.push(format!("{path}: uses {library} outside {folder}"));
            }
        }
    }
    fail_with(&problems);
}

#[test]
fn the_reference_names_every_metric() {
    let page = read("docs/reference.md");
    let places = ["broker/src/metrics", "edge/src", "sdk/functions/src"];
    let files = places.iter().flat_map(|place| sources(place));
    let named: BTreeSet<String> = files
        .flat_map(|(_, text)| {
            let constants = text.lines().filter(|line| line.contains("const ") && line.contains(": &str"));
            let names = constants.filter_map(|line| line.split('"').nth(1)?.strip_prefix("trunkline_"));
            names.map(str::to_owned).collect::<Vec<_>>()
        })
        .collect();
    assert!(named.len() >= 30, "{named:?}: the constants are elsewhere");
    let is_told = |name: &&String| page.contains(&format!("`{name}`")) || page.contains(&format!("`{name}{{"));
    let untold: Vec<String> = named.iter().filter(|name| !is_told(name)).cloned().collect();
    fail_with(&untold);
}

#[test]
fn the_readme_shows_a_handler_that_compiles() {
    let example = read("sdk/rust/examples/first.rs");
    let code = example.split_once("\n\n").map_or("", |(_, code)| code.trim());
    assert!(read("README.md").contains(code), "the handler in README.md is not sdk/rust/examples/first.rs");
}

#[test]
fn the_readme_tells_commands_that_exist() {
    let makefile = read("Makefile");
    let targets: BTreeSet<&str> = makefile
        .lines()
        .filter(|line| !line.starts_with(['\t', '.', '#']) && !line.contains(":="))
        .filter_map(|line| line.split_once(':').map(|(name, _)| name))
        .collect();
    for needed in ["setup", "demo", "test", "verify", "fix", "bench", "e2e"] {
        assert!(targets.contains(needed), "the Makefile has no target {needed}");
    }
    let mut problems = Vec::new();
    for file in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"] {
        let Ok(text) = fs::read_to_string(root().join(file)) else { continue };
        for (at, _) in text.match_indices("make ") {
            // a command stands in backticks or begins a line of a code block
            if !text[..at].ends_with(['`', '\n', '$']) && !text[..at].ends_with("$ ") && !text[..at].ends_with("    ") {
                continue;
            }
            let target: String =
                text[at + 5..].chars().take_while(|char| char.is_ascii_alphanumeric() || *char == '-').collect();
            if !target.is_empty() && !targets.contains(target.as_str()) {
                problems.push(format!("{file}: `make {target}` is no target of the Makefile"));
            }
        }
    }
    assert!(root().join("README.md").is_file(), "there is no README.md");
    fail_with(&problems);
}

#[test]
fn verify_installs_nothing() {
    let run = Command::new("make").args(["-n", "verify"]).env_remove("MAKEFLAGS").current_dir(root()).output().unwrap();
    let commands = String::from_utf8_lossy(&run.stdout).into_owned();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    assert!(commands.contains("tests/setup-system --check") && commands.contains("cargo test"), "{commands}");
    let installs = commands.lines().find(|line| line.contains("setup-system") && !line.contains("--check"));
    assert_eq!(installs, None);

    // a system that lacks everything, and tells if anything is installed
    let bin = tempfile::tempdir().unwrap();
    let install = "#!/bin/sh\ntouch \"$(dirname \"$0\")/installed\"\n";
    for name in ["apt-get", "sudo"] {
        let path = bin.path().join(name);
        fs::write(&path, install).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let checked = Command::new("/bin/bash")
        .args(["tests/setup-system", "--check"])
        .env("PATH", bin.path())
        .env("LIBCLANG_PATH", "/")
        .current_dir(root())
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&checked.stdout), String::from_utf8_lossy(&checked.stderr));
    assert!(!checked.status.success() && said.contains("missing: gcc g++ make"), "{said}");
    assert!(said.contains("apt-get install gcc g++ make"), "{said}");
    assert!(!bin.path().join("installed").exists(), "it installed something");
}

#[test]
fn no_second_tls_stack_comes_in() {
    let lock = read("Cargo.lock");
    let problems: Vec<String> = BANNED
        .iter()
        .filter(|name| lock.contains(&format!("name = \"{name}\"\n")))
        .map(|name| format!("Cargo.lock holds {name}"))
        .collect();
    fail_with(&problems);
    let deny = read("deny.toml");
    for name in BANNED {
        assert!(deny.contains(&format!("\"{name}\"")), "deny.toml does not ban {name}");
    }
}

#[test]
fn dependencies_have_licences_and_sources_we_allow() {
    let deny = read("deny.toml");
    for licence in LICENCES {
        assert!(deny.contains(&format!("\"{licence}\"")), "deny.toml does not list {licence}");
    }
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args([
            "metadata",
            "--offline",
            "--locked",
            "--format-version",
            "1",
            "--filter-platform",
            "x86_64-unknown-linux-gnu",
        ])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut problems = Vec::new();
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        let licence = package["license"].as_str().unwrap_or("none");
        if !is_allowed(licence) {
            problems.push(format!("{name}: licence {licence:?} is not on the list"));
        }
        match package["source"].as_str() {
            None | Some("registry+https://github.com/rust-lang/crates.io-index") => {}
            Some(other) => problems.push(format!("{name}: comes from {other}, not from the registry")),
        }
    }
    fail_with(&problems);
}

/// Whether an SPDX expression (with `/` for OR, as old crates write it) can be met with allowed licences.
fn is_allowed(expression: &str) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let tokens: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let allowed = any_of(&tokens, &mut at);
    allowed && at == tokens.len()
}

fn any_of(tokens: &[&str], at: &mut usize) -> bool {
    let mut allowed = all_of(tokens, at);
    while tokens.get(*at) == Some(&"OR") {
        *at += 1;
        allowed |= all_of(tokens, at);
    }
    allowed
}

fn all_of(tokens: &[&str], at: &mut usize) -> bool {
    let mut allowed = one(tokens, at);
    while tokens.get(*at) == Some(&"AND") {
        *at += 1;
        allowed &= one(tokens, at);
    }
    allowed
}

fn one(tokens: &[&str], at: &mut usize) -> bool {
    let Some(token) = tokens.get(*at) else { return false };
    *at += 1;
    if *token == "(" {
        let allowed = any_of(tokens, at);
        *at += 1;
        return allowed;
    }
    let mut name = (*token).to_owned();
    if tokens.get(*at) == Some(&"WITH") {
        name = format!("{name} WITH {}", tokens.get(*at + 1).copied().unwrap_or_default());
        *at += 2;
    }
    LICENCES.contains(&name.as_str())
}

mod of_this_file {
    use super::*;

    #[test]
    fn licence_expressions() {
        for good in [
            "MIT",
            "MIT/Apache-2.0",
            "GPL-3.0 OR MIT",
            "(MIT OR GPL-3.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception",
        ] {
            assert!(is_allowed(good), "{good}");
        }
        for bad in [
            "GPL-3.0",
            "MIT AND GPL-3.0",
            "none",
            "",
            "Apache-2.0 WITH Something",
            "BUSL-1.1",
            "(MIT OR ISC) AND GPL-3.0",
        ] {
            assert!(!is_allowed(bad), "{bad}");
        }
    }

    #[test]
    fn imports() {
        let found = crate_imports(
            "use crate::{a::{b, c}, d, self_::e};\nlet x = crate::f::g(); pub(crate) fn h() {} $crate::i;",
        );
        assert_eq!(found, ["a", "d", "f", "self_"].map(str::to_owned).into());
    }

    #[test]
    fn tests_and_comments_are_no_code() {
        let text = "// crate::a\nuse crate::b; // crate::c\n#[cfg(test)]\nmod tests {\n    use crate::d;\n}\n";
        assert_eq!(crate_imports(&code(text)), ["b".to_owned()].into());
        let elsewhere = "#[cfg(test)]\nmod tests;\nuse crate::b;\n";
        assert_eq!(crate_imports(&code(elsewhere)), ["b".to_owned()].into());
    }

    #[test]
    fn braces() {
        assert_eq!(expand_braces("x/peer_{client,server}.rs"), ["x/peer_client.rs", "x/peer_server.rs"]);
        assert_eq!(expand_braces("plain.rs"), ["plain.rs"]);
    }
}
