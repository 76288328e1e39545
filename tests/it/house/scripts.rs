//! The scripts: what a header says is what the script does. Read from the source of every `.lua`
//! file, together with the prelude that its owner puts before it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::lua_digits::joined_numbers;
use crate::support::lua::{self, Call, Script};

/// Commands whose first argument is their one key.
const ONE_KEY: [&str; 23] = [
    "GET",
    "GETRANGE",
    "HDEL",
    "HGET",
    "HGETALL",
    "HKEYS",
    "HLEN",
    "HMGET",
    "HSET",
    "PEXPIRE",
    "PEXPIREAT",
    "PTTL",
    "SET",
    "SETRANGE",
    "STRLEN",
    "TYPE",
    "ZADD",
    "ZCARD",
    "ZCOUNT",
    "ZRANGE",
    "ZRANK",
    "ZREM",
    "ZSCORE",
];

/// Commands whose arguments are all keys.
const KEYS_ONLY: [&str; 5] = ["DEL", "EXISTS", "MGET", "RENAME", "UNLINK"];

/// Commands without a key, and channels: a channel is routed as the keys beside it.
const KEYLESS: [&str; 3] = ["TIME", "PUBLISH", "SPUBLISH"];

/// Commands that a full server must not refuse: they free memory, or take none.
const FREEING: [&str; 8] = [
    "DEL", "UNLINK", "HDEL", "ZREM", "ZPOPMIN", "PEXPIRE", "PUBLISH", "SPUBLISH",
];

/// Commands that only read.
const READING: [&str; 18] = [
    "EXISTS", "GET", "GETRANGE", "HGET", "HGETALL", "HKEYS", "HLEN", "HMGET", "MGET", "PTTL",
    "STRLEN", "TIME", "TYPE", "ZCARD", "ZCOUNT", "ZRANGE", "ZRANK", "ZSCORE",
];

/// Scripts that write and yet must run on a full server, each with its reason.
const ALLOWED_WHEN_FULL: [(&str, &str); 9] = [
    (
        "sync/lock/release.lua",
        "a hand-over replaces a lease by one of the same size",
    ),
    (
        "sync/lock/pass.lua",
        "a hand-over replaces a lease by one of the same size",
    ),
    (
        "sync/core/release.lua",
        "each grant takes the place of a position in the queue",
    ),
    (
        "sync/semaphore/renew.lua",
        "it writes a number over one of the same length",
    ),
    (
        "sync/lock/break.lua",
        "a lock that nobody can break would outlive the shortage",
    ),
    (
        "cache/load/renew.lua",
        "it writes a number over one of the same length; a load that is taken over brings a herd",
    ),
    (
        "cache/verbs/expire.lua",
        "it writes deadlines over others of the same length; a shorter TTL frees memory",
    ),
    ("limit/refund.lua", "it writes no more than it finds"),
    (
        "tags/invalidate.lua",
        "a stale value must not be served because memory is short",
    ),
];

#[test]
fn every_script_opens_with_the_engine_and_says_all_four_things() {
    check(header);
}

#[test]
fn keys_and_arguments_in_use_are_those_declared() {
    check(declarations);
}

#[test]
fn every_key_of_a_command_comes_from_keys() {
    check(keys);
}

#[test]
fn no_script_builds_a_script() {
    check(constant_text);
}

#[test]
fn the_clock_is_read_at_one_place_of_a_script() {
    check(clock);
}

#[test]
fn what_frees_memory_runs_on_a_full_server_and_what_reads_cannot_write() {
    check(flags);
}

#[test]
fn no_number_is_written_in_fewer_digits_than_it_has() {
    check(digits);
}

#[test]
fn replies_carry_status_words_and_no_error_texts() {
    check(replies);
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
        owned.extend(script.preludes);
    }
    let files: BTreeSet<PathBuf> = lua::files().into_keys().collect();
    assert_eq!(owned, files);
    assert!(
        files.contains(Path::new("counter/add.lua")),
        "the right place is read"
    );
}

/// A row begins with the name of a script in the section of its folder; its last cell is the retry
/// class.
#[test]
fn every_script_stands_in_the_tables_of_the_documentation() {
    let text = std::fs::read_to_string("docs/keys-and-scripts.md").expect("it is there");
    let mut documented = BTreeSet::new();
    let mut folder = "";
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix("### ") {
            folder = heading.split("`src/").nth(1).unwrap_or_default();
            folder = folder.split('`').next().unwrap_or_default();
        } else if let Some(row) = line.strip_prefix("| `") {
            let name = row.split('`').next().unwrap_or_default();
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let retry = cells.len().checked_sub(2).map_or("", |last| cells[last]);
            if !folder.is_empty() {
                documented.insert(format!("{folder}{name}.lua: {retry}"));
            }
        }
    }
    let said = |script: Script| {
        let retry = script.header("Retry").next().unwrap_or_default();
        let retry = retry.split(' ').next().unwrap_or_default();
        let full = script.shebang.contains("allow-oom");
        let full = if full { ", *oom*" } else { "" };
        format!("{}: {retry}{full}", script.name)
    };
    let scripts: BTreeSet<String> = lua::scripts().into_iter().map(said).collect();
    assert_eq!(documented, scripts);
}

#[test]
fn every_rule_sees_what_breaks_it() {
    type Rule = fn(&Script) -> Vec<String>;
    let rules: [(&str, Rule); 8] = [
        ("header", header),
        ("declarations", declarations),
        ("keys", keys),
        ("constant text", constant_text),
        ("clock", clock),
        ("flags", flags),
        ("digits", digits),
        ("replies", replies),
    ];
    for (name, rule) in rules {
        assert_eq!(rule(&example("", "")), [""; 0], "{name}");
    }
    let purpose = "-- Purpose: writes two values and the time.\n";
    let second_key = "-- KEYS: 2 other\n";
    let set = "redis.call('SET', KEYS[1]";
    for (name, what, instead) in [
        ("header", "#!lua\n", "\n"),
        (
            "header",
            "local function stamp",
            "#!lua\nlocal function stamp",
        ),
        ("header", purpose, ""),
        ("header", purpose, "-- Purpose: \n"),
        ("header", "-- Returns: {'OK'}\n", ""),
        ("header", "-- Retry: safe", "-- Retry: perhaps"),
        (
            "header",
            "-- Retry: safe because a second run writes the same",
            "-- Retry: safe",
        ),
        ("header", "-- KEYS: 1 one\n", ""),
        ("header", "-- ARGV: 2 value", "-- ARGV: 3 value"),
        ("header", "-- KEYS: 1 one", "-- KEYS: none"),
        ("declarations", second_key, ""),
        (
            "declarations",
            "-- ARGV: 2 value",
            "-- ARGV: 2 value\n-- ARGV: 3 value",
        ),
        (
            "declarations",
            "-- KEYS: 2 other",
            "-- KEYS: 2 other\n-- KEYS: 3 third",
        ),
        (
            "declarations",
            "-- ARGV: 2 value",
            "-- ARGV: 2 value\n-- ARGV: 3.. values",
        ),
        (
            "declarations",
            "ARGV[1] .. ARGV[2]",
            "ARGV[1] .. ARGV[2] .. ARGV[3]",
        ),
        (
            "declarations",
            "ARGV[1] .. ARGV[2]",
            "ARGV[1] .. ARGV[2] .. ARGV[1 + 1]",
        ),
        ("declarations", "ARGV[1] .. ARGV[2]", "table.concat(ARGV)"),
        (
            "declarations",
            "ARGV[1] .. ARGV[2]",
            "ARGV[1] .. ARGV[2] .. #KEYS",
        ),
        (
            "declarations",
            "stamp()))",
            "unused()))\nredis.call('DEL', KEYS[3])",
        ),
        ("keys", "KEYS[1], ARGV[1]", "'fixed', ARGV[1]"),
        ("keys", "KEYS[1], ARGV[1]", "ARGV[1], ARGV[1]"),
        ("keys", "KEYS[1], ARGV[1]", "KEYS[1] .. ARGV[2], ARGV[1]"),
        (
            "keys",
            "local other = KEYS[2]",
            "local other = KEYS[2] .. ':x'",
        ),
        (
            "keys",
            "local other = KEYS[2]",
            "local other = KEYS[2]\nother = ARGV[1]",
        ),
        (
            "keys",
            "redis.call('GET', KEYS[1])",
            "redis.pcall('GET', name)",
        ),
        (
            "keys",
            set,
            "redis.call('DEL', KEYS[1], ARGV[1])\nredis.call('SET', KEYS[1]",
        ),
        (
            "keys",
            set,
            "redis.call('RENAME', KEYS[1], ARGV[1])\nredis.call('SET', KEYS[1]",
        ),
        ("keys", set, "redis.call('GET')\nredis.call('SET', KEYS[1]"),
        ("keys", set, "redis.call(ARGV[1], KEYS[1]"),
        ("keys", set, "local call = redis.call\ncall('SET', KEYS[1]"),
        ("constant text", "stamp()))", "loadstring(ARGV[1])()))"),
        ("clock", "stamp()))", "stamp() + redis.call('TIME')[2]))"),
        ("flags", "#!lua\n", "#!lua flags=allow-oom\n"),
        ("flags", "#!lua\n", "#!lua flags=allow-cross-slot-keys\n"),
        ("flags", "#!lua\n", "#!lua flags=no-writes\n"),
        (
            "digits",
            "string.format('%.0f', stamp())",
            "tostring(stamp())",
        ),
        (
            "digits",
            "string.format('%.0f', stamp())",
            "string.format('%g', stamp())",
        ),
        (
            "digits",
            "string.format('%.0f', stamp())",
            "'at ' .. stamp() * 1000",
        ),
        (
            "digits",
            "string.format('%.0f', stamp())",
            "stamp() + 1 .. ''",
        ),
        (
            "digits",
            "redis.call('SET', other, string.format('%.0f', stamp()))",
            "local at = stamp() + 1\nredis.call('SET', other, 'at ' .. at)",
        ),
        (
            "digits",
            "string.format('%.0f', stamp())",
            "table.concat({ARGV[1], stamp() + 1}, ' ')",
        ),
        (
            "digits",
            "redis.call('SET', other, string.format('%.0f', stamp()))",
            "local all = {}\nall[1] = tonumber(stamp())\nredis.call('SET', other, table.concat(all))",
        ),
        ("replies", "return {'OK'}", "error('no')"),
        ("replies", "return {'OK'}", "return redis.error_reply('no')"),
        ("replies", "return {'OK'}", "return {err = 'no'}"),
    ] {
        let rule = rules.iter().find(|(known, _)| *known == name);
        let (_, rule) = rule.expect("a rule of that name");
        let broken = rule(&example(what, instead));
        assert_eq!(
            broken.len(),
            1,
            "{name}: {what:?} -> {instead:?}: {broken:?}"
        );
    }
    for (purpose, command) in [("frees", "DEL"), ("reads", "GET")] {
        let body = format!("redis.call('{command}', KEYS[1])\nreturn {{'OK'}}\n");
        let script = Script::of(purpose, Vec::new(), "", &format!("#!lua\n{body}"));
        assert_eq!(flags(&script).len(), 1, "{purpose} and does not say so");
    }
}

/// The example with one thing changed.
fn example(what: &str, instead: &str) -> Script {
    assert!(EXAMPLE.contains(what), "{what}");
    // The header repeats nothing of the code, so that the first is the one that is meant.
    let text = EXAMPLE.replacen(what, instead, 1);
    let (prelude, text) = text.split_once("===\n").expect("a prelude");
    Script::of("example.lua", Vec::new(), prelude, text)
}

/// The first line and the header.
fn header(script: &Script) -> Vec<String> {
    let mut broken = Vec::new();
    if !script.shebang.starts_with("#!lua") {
        broken.push("does not open with #!lua".to_owned());
    }
    if script.whole().contains("#!") {
        broken.push("opens twice".to_owned());
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
}

/// What the header declares against what prelude and body use.
fn declarations(script: &Script) -> Vec<String> {
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
        // A prelude may walk over keys whose number it knows.
        if lua::used(&script.body, part).open && !declared.open {
            broken.push(format!("reads a list of {part}, which is not declared"));
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
}

/// Where the keys of commands come from. A command that is not listed here may have more keys than
/// anybody looked for.
fn keys(script: &Script) -> Vec<String> {
    let whole = lua::uncommented(&script.whole());
    let from_keys = lua::assigned_from_keys(&whole);
    let mut broken = Vec::new();
    for call in lua::calls(&whole) {
        let Call { command, arguments } = match call {
            Ok(call) => call,
            Err(text) => {
                broken.push(format!("calls no literal command: {text}"));
                continue;
            }
        };
        let keys = match command.as_str() {
            command if KEYLESS.contains(&command) => &[][..],
            command if ONE_KEY.contains(&command) => &arguments[..arguments.len().min(1)],
            command if KEYS_ONLY.contains(&command) => &arguments,
            _ => {
                broken.push(format!("{command}: nobody has said yet where its keys are"));
                continue;
            }
        };
        if keys.is_empty() && !KEYLESS.contains(&command.as_str()) {
            broken.push(format!("{command} of no key"));
        }
        for key in keys {
            // Each of the rest of the keys.
            let is_list = key.starts_with("unpack(KEYS");
            if !is_list && !lua::is_element_of_keys(key) && !from_keys.contains(key.as_str()) {
                broken.push(format!("{command} {key}: not a key that was declared"));
            }
        }
    }
    broken
}

fn constant_text(script: &Script) -> Vec<String> {
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
}

/// The server's clock may move while a script runs: two readings need not agree.
fn clock(script: &Script) -> Vec<String> {
    let readings = script.reachable().matches("'TIME'").count();
    let more = readings > 1;
    more.then(|| format!("reads the clock at {readings} places"))
        .into_iter()
        .collect()
}

/// What the first line allows against what the commands do.
fn flags(script: &Script) -> Vec<String> {
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
    let mut flags = Vec::new();
    if within(&[]) {
        flags.push("no-writes");
    } else if within(&FREEING) || listed {
        flags.push("allow-oom");
    }
    // The channel of a bucket shares the slot of its keys; that of a waiter for a load is in
    // another slot of the same server.
    if commands.contains("SPUBLISH") && !script.name.starts_with("sync/") {
        flags.push("allow-cross-slot-keys");
    }
    let wanted = match flags.as_slice() {
        [] => "#!lua".to_owned(),
        flags => format!("#!lua flags={}", flags.join(",")),
    };
    let wrong = script.shebang != wanted;
    wrong
        .then(|| format!("opens with {}, not {wanted}", script.shebang))
        .into_iter()
        .collect()
}

/// Lua writes a number in 14 digits: `string.format('%.0f', ..)` writes them all.
fn digits(script: &Script) -> Vec<String> {
    let mut broken = words(script, &["tostring", "'%g", "'%s%g"], "drops digits");
    let joined = joined_numbers(&lua::uncommented(&script.whole()));
    broken.extend(joined.iter().map(|it| format!("{it} drops digits")));
    broken
}

/// Texts change with the server's version, status words do not.
fn replies(script: &Script) -> Vec<String> {
    let texts = ["error(", "error_reply", "{err", "assert("];
    words(script, &texts, "is no status word")
}

/// Which of `forbidden` the script contains, comments left out.
fn words(script: &Script, forbidden: &[&str], why: &str) -> Vec<String> {
    let code = lua::uncommented(&script.whole());
    let found = forbidden.iter().filter(|word| code.contains(**word));
    found.map(|word| format!("{word} {why}")).collect()
}

/// Runs a rule over all scripts and fails with everything that it found.
fn check(rule: fn(&Script) -> Vec<String>) {
    let broken: BTreeMap<String, Vec<String>> = lua::scripts()
        .into_iter()
        .map(|script| (script.name.clone(), rule(&script)))
        .filter(|(_, broken)| !broken.is_empty())
        .collect();
    assert!(broken.is_empty(), "{broken:#?}");
}

/// Breaks no rule; its prelude stands first.
const EXAMPLE: &str = r"
local function stamp()
  return redis.call('TIME')[1]
end

local function unused()
  return redis.call('GET', KEYS[1])
end
===
#!lua
-- Purpose: writes two values and the time.
-- KEYS: 1 one
-- KEYS: 2 other
-- ARGV: 1 value
-- ARGV: 2 value
-- Returns: {'OK'}
-- Retry: safe because a second run writes the same
local other = KEYS[2] -- not KEYS[9]
redis.call('SET', KEYS[1], ARGV[1] .. ARGV[2])
redis.call('SET', other, string.format('%.0f', stamp()))
return {'OK'}
";
