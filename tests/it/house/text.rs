//! The text of the project: documents, and comments in the sources.

use std::fs;
use std::path::{Path, PathBuf};

/// The widest that a line of text may be.
const WIDTH: usize = 100;

#[test]
fn text_is_wrapped() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut wide = Vec::new();
    for path in texts(root) {
        let text = fs::read_to_string(root.join(&path)).expect("text");
        let found = too_wide(&path, &text);
        wide.extend(found.map(|number| format!("{}:{number}", path.display())));
    }
    assert!(wide.is_empty(), "{}", wide.join("\n"));
}

#[test]
fn a_line_that_is_too_wide_is_seen() {
    let long = "word ".repeat(30);
    for (path, text, lines) in [
        ("a.md", format!("# A\n\n{long}\n"), vec![3]),
        ("a.md", format!("| {long} |\n\nhttps://{long}\n"), vec![]),
        ("a.md", format!("```\n{long}\n```\n{long}"), vec![4]),
        (
            "a.rs",
            format!("/// {long}\nfn a() {{}}\n    // {long}"),
            vec![1, 3],
        ),
        (
            "a.rs",
            format!("//! | {long} |\nlet a = \"{long}\";"),
            vec![],
        ),
        (
            "a.rs",
            format!("//! ```\n//! {long}\n//! ```\n//! {long}"),
            vec![4],
        ),
    ] {
        let found: Vec<usize> = too_wide(Path::new(path), &text).collect();
        assert_eq!(found, lines, "{path}: {text}");
    }
}

/// The lines of text that are too wide. Tables, addresses and code cannot be wrapped.
fn too_wide(path: &Path, text: &str) -> impl Iterator<Item = usize> {
    let is_rust = path.extension().is_some_and(|it| it == "rs");
    let mut is_code = false;
    let mut found = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let said = match is_rust {
            true => match line.trim_start().strip_prefix("//") {
                Some(comment) => comment.trim_start_matches(['/', '!']).trim_start(),
                None => {
                    is_code = false;
                    continue;
                }
            },
            false => line.trim_start(),
        };
        if said.starts_with("```") {
            is_code = !is_code;
        }
        let is_exempt = is_code || said.starts_with(['|', '<']) || said.contains("://");
        if !is_exempt && line.chars().count() > WIDTH {
            found.push(number);
        }
    }
    found.into_iter()
}

/// The documents and the sources.
fn texts(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root.join(&folder)).expect("it is there") {
            let path = folder.join(entry.expect("readable").file_name());
            let name = path.file_name().and_then(|name| name.to_str());
            let is_ours = name.is_some_and(|name| !name.starts_with('.') && name != "target");
            if is_ours && root.join(&path).is_dir() {
                folders.push(path);
            } else if is_ours && path.extension().is_some_and(|it| it == "md" || it == "rs") {
                found.push(path);
            }
        }
    }
    found
}
