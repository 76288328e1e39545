//! The glossary names types that are there, and each word once.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

#[test]
fn the_types_of_the_glossary_are_defined_where_it_says() {
    let text = fs::read_to_string(root().join("docs/glossary.md")).expect("it is there");
    let wrong = wrong(&text);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(rows(&text).len() > 50, "the table is read");
}

#[test]
fn a_row_that_is_wrong_is_seen() {
    let row = |row: &str| format!("| word | meaning | type | file |\n|---|---|---|---|\n{row}\n");
    for (text, expected) in [
        ("| lease | a | `Ttl` | `src/time.rs` |", 0),
        ("| lease | a | | |", 0),
        ("| lease | a | `Ttl` | `src/error.rs` |", 1),
        ("| lease | a | `Ttl` | `src/nowhere.rs` |", 1),
        ("| lease | a | `Ttl` | |", 1),
        ("| lease | a | | |\n| lease | b | | |", 1),
        ("| lease | a | b | | |", 1),
    ] {
        let found = wrong(&row(text));
        assert_eq!(found.len(), expected, "{text}: {found:?}");
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The rows of all tables: word, type, file.
fn rows(text: &str) -> Vec<(String, String, String)> {
    let mut rows = Vec::new();
    for line in text.lines().filter(|line| line.starts_with('|')) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [word, _, name, file] = cells[..] else {
            // Found wrong as a word that defines nothing.
            rows.push((line.to_owned(), "four cells".to_owned(), String::new()));
            continue;
        };
        if word != "word" && !word.starts_with('-') {
            let plain = |cell: &str| cell.replace('`', "");
            rows.push((word.to_owned(), plain(name), plain(file)));
        }
    }
    rows
}

fn wrong(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut words = BTreeSet::new();
    for (word, name, file) in rows(text) {
        if !words.insert(word.clone()) {
            wrong.push(format!("{word}: it stands there twice"));
        }
        if name.is_empty() && file.is_empty() {
            continue;
        }
        let source = fs::read_to_string(root().join(&file)).unwrap_or_default();
        let defined = |name: &str| {
            let name = name.rsplit("::").next().unwrap_or_default();
            let kinds = [
                "struct", "enum", "trait", "type", "fn", "mod", "const", "static",
            ];
            kinds.iter().any(|kind| {
                let definition = format!("{kind} {name}");
                source.match_indices(&definition).any(|(at, found)| {
                    let after = source[at + found.len()..].chars().next();
                    !after.is_some_and(|c| c.is_alphanumeric() || c == '_')
                })
            })
        };
        for name in name.split(',').map(str::trim) {
            if !defined(name) {
                wrong.push(format!("{word}: {file} defines no `{name}`"));
            }
        }
    }
    wrong
}
