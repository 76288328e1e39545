//! The scripts: what a header says is what the script does. Read from the source of every `.lua`
//! file, together with the prelude that its owner puts before it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::lua::{self, Call, Script};

/// Commands without a key, and channels: a channel is routed as the keys beside it.
const KEYLESS: [&str; 3] = ["TIME", "PUBLISH", "SPUBLISH"];

/// Commands that a full server must not refuse: they free memory, or take none.
const FREEING: [&str; 7] = [
    "DEL", "HDEL", "ZREM", "ZPOPMIN", "PEXPIRE", "PUBLISH", "SPUBLISH",
];

/// Commands that only read.
const READING: [&str; 14] = [
    "EXISTS", "GET", "GETRANGE", "HGET", "HKEYS", "HLEN", "HMGET", "MGET", "PTTL", "STRLEN",
    "TIME", "TYPE", "ZRANGE", "ZCARD",
];

/// Scripts that write and yet must run on a full server, each with its reason.
const ALLOWED_WHEN_FULL: [(&str, &str); 4] = [
    (
        "lock/release.lua",
        "a hand-over replaces a lease by one of the same size",
    ),
    (
        "lock/pass.lua",
        "a hand-over replaces a lease by one of the same size",
    ),
    (
        "lock/break.lua",
        "a lock that nobody can break would outlive the shortage",
    ),
    (
        "tags/invalidate.lua",
        "a stale value must not be served because memory is short",
    ),
];

#[test]
fn every_script_opens_with_the_engine_and_says_all_four_things() {
    check(|script| {
        let mut broken = Vec::new();
        if !script.shebang.starts_with("#!lua") {
            broken.push("does not open with #!lua".to_owned());
        }
        for part in ["Purpose", "KEYS", "ARGV", "Returns", "Retry"] {
            let lines: Vec<&str> = script.header(part).collect();
            if lines.is_empty() || lines.iter().any(|line| line.trim().is_empty()) {
                broken.push(format!("does not say {part}"));
            }
        }
        let retry = script.header("Retry").next().unwrap_or_default();
        let (class, reason) = retry.split_once(' ').unwrap_or((retry, ""));
        if !["safe", "unsafe"].contains(&class) {
            broken.push(format!("says Retry: {class}, not safe or unsafe"));
        }
        if reason.split_whitespace().count() < 3 {
            broken.push("does not say why it may, or may not, be sent again".to_owned());
        }
        for part in ["KEYS", "ARGV"] {
            broken.extend(script.declared(part).err());
        }
        broken
    });
}

#[test]
fn keys_and_arguments_in_use_are_those_declared() {
    check(|script| {
        let mut broken = Vec::new();
        for part in ["KEYS", "ARGV"] {
            let Ok(declared) = script.declared(part) else {
                continue;
            };
            let used = lua::used(&script.reachable(), part);
            for index in &used.fixed {
                if *index > declared.fixed && !declared.open {
                    broken.push(format!("uses {part}[{index}], which is not declared"));
                }
            }
            // Scripts that share a prelude share the order of its keys, whether each needs all.
            let shared = lua::used(&script.whole(), part);
            for index in 1..=declared.fixed {
                if !shared.fixed.contains(&index) && !shared.open {
                    broken.push(format!("declares {part} {index} and does not use it"));
                }
            }
            if declared.open && !used.open {
                broken.push(format!("declares an open list of {part} and reads no list"));
            }
        }
        broken
    });
}

#[test]
fn every_key_of_a_command_comes_from_keys() {
    check(|script| {
        let whole = script.whole();
        let from_keys = lua::assigned_from_keys(&whole);
        let mut broken = Vec::new();
        for call in lua::calls(&whole) {
            match call {
                Err(text) => broken.push(format!("calls no literal command: {text}")),
                Ok(Call { command, .. }) if KEYLESS.contains(&command.as_str()) => {}
                Ok(Call { command, first }) => {
                    if !first.starts_with("KEYS[") && !from_keys.contains(first.as_str()) {
                        broken.push(format!("{command} {first}: not a key that was declared"));
                    }
                }
            }
        }
        broken
    });
}

#[test]
fn no_script_builds_a_script() {
    check(|script| {
        [
            "loadstring",
            "load(",
            "dofile",
            "setfenv",
            "EVAL",
            "'SCRIPT'",
            "'FCALL",
        ]
        .iter()
        .filter(|word| script.whole().contains(*word))
        .map(|word| format!("{word}: scripts are constant text"))
        .collect()
    });
}

#[test]
fn the_clock_is_read_at_one_place_of_a_script() {
    check(|script| {
        let readings = script.reachable().matches("'TIME'").count();
        let more = readings > 1;
        more.then(|| format!("reads the clock at {readings} places"))
            .into_iter()
            .collect()
    });
}

#[test]
fn what_frees_memory_runs_on_a_full_server_and_what_reads_cannot_write() {
    check(|script| {
        let commands: BTreeSet<String> = lua::calls(&script.reachable())
            .into_iter()
            .flatten()
            .map(|call| call.command)
            .collect();
        let within = |known: &[&str]| {
            let known = |command: &String| {
                known.contains(&command.as_str()) || READING.contains(&command.as_str())
            };
            commands.iter().all(known)
        };
        let listed = ALLOWED_WHEN_FULL
            .iter()
            .any(|(name, _)| *name == script.name);
        let wanted = if within(&[]) {
            "#!lua flags=no-writes"
        } else if within(&FREEING) || listed {
            "#!lua flags=allow-oom"
        } else {
            "#!lua"
        };
        let wrong = script.shebang != wanted;
        wrong
            .then(|| format!("opens with {}, not {wanted}", script.shebang))
            .into_iter()
            .collect()
    });
}

#[test]
fn scripts_and_preludes_fit_a_screen() {
    for (path, text) in lua::files() {
        let lines = text.lines().count();
        let most = if text.starts_with("#!") { 60 } else { 110 };
        assert!(lines <= most, "{}: {lines} lines", path.display());
        let long = text.lines().find(|line| line.len() > 140);
        assert_eq!(long, None, "{}", path.display());
    }
}

#[test]
fn every_lua_file_has_an_owner() {
    let mut owned: BTreeSet<PathBuf> = BTreeSet::new();
    for script in lua::scripts() {
        owned.insert(script.name.into());
        owned.extend(script.prelude_name);
    }
    let files: BTreeSet<PathBuf> = lua::files().into_keys().collect();
    assert_eq!(owned, files);
    assert!(
        files.contains(Path::new("counter/add.lua")),
        "the right place is read"
    );
}

#[test]
fn a_broken_script_is_seen() {
    let script = |prelude: &str, body: &str| Script {
        name: "x/y.lua".to_owned(),
        prelude_name: None,
        shebang: "#!lua".to_owned(),
        prelude: prelude.to_owned(),
        body: format!("-- KEYS: 1 a\n-- ARGV: 1 b\n-- ARGV: 2.. c\n{body}"),
    };
    let one = script(
        "",
        "redis.call('SET', KEYS[1], ARGV[1])\nredis.pcall('get', name)",
    );
    let whole = one.whole();
    let from_keys = lua::assigned_from_keys(&whole);
    let calls: Vec<Call> = lua::calls(&whole).into_iter().flatten().collect();
    let firsts: Vec<&str> = calls.iter().map(|call| call.first.as_str()).collect();
    assert_eq!(firsts, ["KEYS[1]", "name"]);
    assert!(from_keys.is_empty());
    assert!(lua::assigned_from_keys("local name = KEYS[2]").contains("name"));
    assert!(!lua::assigned_from_keys("local name = KEYS[2] .. 'x'").contains("name"));
    assert!(!lua::assigned_from_keys("local n = KEYS[2]\nn = ARGV[1]").contains("n"));
    assert!(lua::calls("redis.call(command, KEYS[1])")[0].is_err());
    assert!(lua::calls("local f = redis.call")[0].is_err());

    let used = lua::used("KEYS[1] .. KEYS[12] -- KEYS[3]\nARGV[2 * i]", "KEYS");
    assert_eq!(used.fixed, BTreeSet::from([1, 12]));
    assert!(!used.open);
    assert!(lua::used("ARGV[2 * i]", "ARGV").open);

    assert_eq!(
        one.declared("KEYS").map(|it| (it.fixed, it.open)),
        Ok((1, false))
    );
    assert_eq!(
        one.declared("ARGV").map(|it| (it.fixed, it.open)),
        Ok((1, true))
    );
    for header in [
        "-- KEYS: 2 a",
        "-- KEYS: 1 a\n-- KEYS: 3 b",
        "-- KEYS: x",
        "-- KEYS: none\n-- KEYS: 1 a",
    ] {
        let gap = Script {
            body: header.to_owned(),
            ..script("", "")
        };
        assert!(gap.declared("KEYS").is_err(), "{header}");
    }

    let prelude = "local function a()\n  b()\nend\n\nlocal function b()\n  KEYS[7]\nend\n\nlocal function c()\n  KEYS[8]\nend\n";
    let reachable = script(prelude, "a()").reachable();
    assert!(reachable.contains("KEYS[7]") && !reachable.contains("KEYS[8]"));
}

/// Runs a rule over all scripts and fails with everything that it found.
fn check(rule: impl Fn(&Script) -> Vec<String>) {
    let broken: BTreeMap<String, Vec<String>> = lua::scripts()
        .into_iter()
        .map(|script| (script.name.clone(), rule(&script)))
        .filter(|(_, broken)| !broken.is_empty())
        .collect();
    assert!(broken.is_empty(), "{broken:#?}");
}
