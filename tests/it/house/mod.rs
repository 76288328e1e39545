//! The sources as a house: which room may use which, and how they read.
//!
//! These tests read files. They need no server.

mod arguments;
mod circles;
mod faces;
mod glossary;
mod layers;
mod lua_digits;
mod observability;
mod readme;
mod script_texts;
mod scripts;
mod text;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// All files of `src`, by path below it, but for the command-line tool, which is a user.
fn sources() -> BTreeMap<PathBuf, String> {
    fn visit(root: &Path, below: &Path, found: &mut BTreeMap<PathBuf, String>) {
        for entry in fs::read_dir(root.join(below)).expect("src is there") {
            let path = below.join(entry.expect("readable").file_name());
            if root.join(&path).is_dir() {
                if path != Path::new("bin") {
                    visit(root, &path, found);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(root.join(&path)).expect("text");
                found.insert(path, text);
            }
        }
    }
    let mut found = BTreeMap::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    visit(&root, Path::new(""), &mut found);
    found
}

/// Whether an item is compiled for tests only.
fn is_of_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        syn::Meta::List(list) if list.path.is_ident("cfg") => list.tokens.to_string() == "test",
        _ => false,
    })
}
