//! The house: which module may use which, and who may name the driver. Read from the source, so
//! that no layer is crossed unseen.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::circles::{Exports, arrows};
use super::sources;

/// Modules by layer. A module may use those of layers below its own, and itself.
const LAYERS: [&[&str]; 12] = [
    &["hash", "meters", "name"],
    &["error", "pulse"],
    &["background", "embedded", "key", "time"],
    &["codec", "wire"],
    &["script"],
    &["net"],
    &["topology"],
    &["client"],
    &["counter", "limit", "sync", "tags"],
    &["cache"],
    &["ops"],
    &["http", "session"],
];

/// Uses inside one layer, each with its reason. None is needed yet.
const EXCEPTIONS: [(&str, &str); 0] = [];

/// Where the driver may be named: a change of driver must stay in these.
const DRIVER: [&str; 7] = [
    "client", "error", "net", "ops", "script", "topology", "wire",
];

#[test]
fn a_module_uses_only_modules_of_layers_below_it() {
    let broken = violations(&sources(), crossing);
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// As above, but by what is used in whatever form: a path in code, `super::`, through a re-export.
#[test]
fn no_file_uses_a_file_of_a_layer_above() {
    let broken = upward(&sources());
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn a_use_of_a_layer_above_is_seen_in_every_form() {
    for text in [
        "pub(crate) use super::cache::X;",
        "#[cfg(feature = \"x\")] use super::cache;",
        "fn f() { use super::cache::X; }",
        "fn f() { super::cache::f() }",
        "use self::super::cache::X;",
        "fn f() { join!(crate::cache::f()) }",
    ] {
        let files = [
            ("lib.rs", "mod cache; mod tags;"),
            ("cache.rs", "pub struct X;"),
            ("tags.rs", text),
        ];
        let files = files.map(|(path, text)| (PathBuf::from(path), text.to_owned()));
        let broken = upward(&files.into());
        assert_eq!(broken.len(), 1, "{text}: {broken:?}");
    }
}

/// The uses that do not lead to a layer below, or stay in their module.
fn upward(files: &BTreeMap<PathBuf, String>) -> Vec<String> {
    let layer = |path: &Path| {
        let module = module(path);
        LAYERS
            .iter()
            .position(|layer| layer.contains(&module.as_str()))
    };
    let mut broken = Vec::new();
    for (from, uses) in arrows(files, Exports::Always) {
        for (to, what) in uses {
            let own = from == Path::new("lib.rs") || module(&from) == module(&to);
            if !own && layer(&to) >= layer(&from) {
                let what: Vec<String> = what.into_iter().collect();
                let (from, to) = (from.display(), to.display());
                broken.push(format!("src/{from} uses {} of src/{to}", what.join(", ")));
            }
        }
    }
    broken
}

#[test]
fn the_driver_is_named_in_few_places_only() {
    let broken = violations(&sources(), naming_the_driver);
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn every_module_has_a_layer_and_every_layer_has_its_modules() {
    let mut found: Vec<String> = sources().into_keys().map(|path| module(&path)).collect();
    found.dedup();
    found.retain(|module| module != "lib");
    let mut known: Vec<&str> = LAYERS.concat();
    known.sort_unstable();
    assert_eq!(found, known);
}

#[test]
fn the_library_root_holds_no_logic() {
    for line in uncommented(&sources()[Path::new("lib.rs")]) {
        let line = line.trim();
        assert!(
            line.is_empty()
                || ["mod ", "pub use ", "pub mod ", "#[", "#!["]
                    .iter()
                    .any(|start| line.starts_with(start))
                || (line.ends_with([',', '}', ';']) && !line.contains(['(', '='])),
            "lib.rs: {line}"
        );
    }
}

#[test]
fn a_broken_rule_is_seen() {
    let file = |path: &str, text: &str| BTreeMap::from([(PathBuf::from(path), text.to_owned())]);
    for (path, text) in [
        ("key.rs", "use crate::script::Call;"),
        ("codec/mod.rs", "use crate::script::Call;"),
        (
            "sync/lock/guard.rs",
            "use crate::{\n    error::Error,\n    cache::Cache,\n};",
        ),
        ("tags/mod.rs", "fn f() -> crate::cache::Cache;"),
        ("script/mod.rs", "pub(crate) use crate::client::Client;"),
        ("time.rs", "use crate::{error, error::{self, Error}, sync};"),
        ("counter/mod.rs", "use crate::Client;"),
        ("counter/mod.rs", "use super::super::sync::lock::Lock;"),
        ("sync.rs", "use super::cache;"),
    ] {
        let broken = violations(&file(path, text), crossing);
        assert_eq!(broken.len(), 1, "{path}: {text}: {broken:?}");
    }
    for (path, text) in [
        ("counter/mod.rs", "use redis::Value;"),
        ("sync/lock/guard.rs", "let x: ::redis::Cmd;"),
        ("cache/mod.rs", "use {bytes::Bytes, redis};"),
    ] {
        let broken = violations(&file(path, text), naming_the_driver);
        assert_eq!(broken.len(), 1, "{path}: {text}: {broken:?}");
    }
    for (path, text) in [
        ("cache/mod.rs", "use crate::tags::Tags; // crate::django"),
        (
            "net/pipeline/mod.rs",
            "use redis::Value;\nuse super::link::Link;",
        ),
        ("key.rs", "mod tests {\n\n    use super::*;"),
        (
            "client/mod.rs",
            "use crate::{error::{Error, Result}, key::Key};",
        ),
        (
            "sync/lock/mod.rs",
            "//! redis::Cmd is not ours\nconst A: &str = \"redis://\";",
        ),
        ("tags/mod.rs", "redis.call(); $crate::script::Script"),
    ] {
        let file = file(path, text);
        assert!(violations(&file, crossing).is_empty(), "{path}: {text}");
        assert!(
            violations(&file, naming_the_driver).is_empty(),
            "{path}: {text}"
        );
    }
}

/// What `rule` finds in the files, with file and line.
fn violations(
    files: &BTreeMap<PathBuf, String>,
    rule: fn(&str, &Path, &str) -> Option<String>,
) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in files {
        let module = module(path);
        let text = uncommented(text).join("\n");
        for (number, statement) in statements(&text) {
            if let Some(what) = rule(&module, path, &statement) {
                found.push(format!("src/{}:{number}: {what}", path.display()));
            }
        }
    }
    found
}

/// A use of a module that is not below `own`. The faces on the top layer also use what the root
/// exports; `faces` holds them to that.
fn crossing(own: &str, path: &Path, statement: &str) -> Option<String> {
    let layer = |module: &str| LAYERS.iter().position(|layer| layer.contains(&module));
    let own_layer = layer(own)?;
    // Enough of them lead to the root of the crate. Inner modules (`tests`) are indented, and
    // need one more; they have no business there.
    let out = "super::".repeat(depth(path));
    let roots = statement
        .match_indices("crate::")
        .map(|(at, root)| at + root.len())
        .chain(match statement.strip_prefix("use ") {
            Some(rest) if rest.starts_with(&out) => Some("use ".len() + out.len()),
            _ => None,
        });
    for root in roots {
        for used in first_names(&statement[root..]) {
            let fine = used == own
                || layer(&used).is_some_and(|used| used < own_layer)
                || own_layer == LAYERS.len() - 1 && used.starts_with(char::is_uppercase)
                || EXCEPTIONS.contains(&(own, used.as_str()));
            if !fine {
                return Some(format!("{own} (layer {own_layer}) uses {used}"));
            }
        }
    }
    None
}

/// How many modules a file is away from the root of the crate.
fn depth(path: &Path) -> usize {
    path.components().count() - usize::from(path.ends_with("mod.rs"))
}

/// The first segments of what follows `crate::`: one, or those of a brace list.
fn first_names(rest: &str) -> Vec<String> {
    let name = |text: &str| -> String {
        text.trim()
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect()
    };
    let Some(list) = rest.strip_prefix('{') else {
        return vec![name(rest)];
    };
    let (mut depth, mut names, mut start) = (1, Vec::new(), 0);
    for (at, character) in list.char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if (character == ',' && depth == 1) || depth == 0 {
            names.push(name(&list[start..at]));
            start = at + 1;
        }
        if depth == 0 {
            break;
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

/// A mention of the driver where it must not be.
fn naming_the_driver(own: &str, _: &Path, statement: &str) -> Option<String> {
    if DRIVER.contains(&own) || own == "lib" {
        return None;
    }
    let part_of_word = |c: char| c.is_alphanumeric() || c == '_' || c == '-' || c == '/';
    let named = statement.match_indices("redis").any(|(at, _)| {
        let rest = &statement[at + "redis".len()..];
        let alone = !statement[..at].ends_with(part_of_word);
        let imported =
            statement.trim_start().starts_with("use ") && !rest.starts_with(part_of_word);
        alone && (rest.starts_with("::") || imported)
    });
    named.then(|| format!("{own} names the driver"))
}

/// Statements with the number of the line that each begins in: what `;` and blank lines part. The
/// indent of the first line is kept.
fn statements(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let (mut current, mut start) = (String::new(), 1);
    for (number, line) in text.lines().enumerate() {
        if current.is_empty() {
            start = number + 1;
            current.push_str(line);
        } else {
            current.push_str(line.trim());
        }
        current.push(' ');
        if line.trim_end().ends_with(';') || line.trim().is_empty() {
            found.push((start, std::mem::take(&mut current)));
        }
    }
    found.push((start, current));
    found.retain(|(_, statement)| !statement.trim().is_empty());
    found
}

/// The lines without comments (text that looks like one inside a string goes too).
fn uncommented(text: &str) -> Vec<&str> {
    text.lines()
        .map(|line| {
            let comment = line
                .match_indices("//")
                .find(|(at, _)| !line[..*at].ends_with(':'))
                .map_or(line.len(), |(at, _)| at);
            &line[..comment]
        })
        .collect()
}

/// The module that a file of `src` belongs to.
fn module(path: &Path) -> String {
    let first = path
        .components()
        .next()
        .map(|part| Path::new(part.as_os_str()));
    let stem = first
        .and_then(Path::file_stem)
        .and_then(|stem| stem.to_str());
    stem.expect("a path below src").to_owned()
}
