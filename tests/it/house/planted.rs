//! The mistakes of `tests/planted` can be planted in the sources as they are.

use std::fs;
use std::path::Path;

#[test]
fn each_mistake_can_be_planted() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut count = 0;
    for patch in fs::read_dir(root.join("tests/planted")).expect("it is there") {
        let patch = patch.expect("readable").path();
        let text = fs::read_to_string(&patch).expect("text");
        let missing = missing(&text, |path| {
            fs::read_to_string(root.join(path)).expect("the file that a patch changes")
        });
        assert!(missing.is_empty(), "{}: {missing:?}", patch.display());
        count += 1;
    }
    assert!(count >= 8, "{count} mistakes");
}

#[test]
fn a_mistake_that_cannot_be_planted_is_seen() {
    let patch = "why\n\n--- a/f\n+++ b/f\n@@ -1,3 +1,2 @@\n a\n-b\n c\n";
    assert!(missing(patch, |_| "x\na\nb\nc\n".to_owned()).is_empty());
    for other in ["a\nx\nc\n", "a\nb\nb\nc\n", ""] {
        assert_eq!(missing(patch, |_| other.to_owned()).len(), 1, "{other}");
    }
    assert_eq!(missing("no hunk", |_| String::new()).len(), 1);
}

/// The hunks of `patch` whose old lines do not stand in their file.
fn missing(patch: &str, read: impl Fn(&str) -> String) -> Vec<String> {
    let mut missing = Vec::new();
    let mut hunks = 0;
    let mut text = String::new();
    for file in patch.split("\n+++ b/").skip(1) {
        let (path, hunks_of_file) = file.split_once('\n').unwrap_or((file, ""));
        text.clear();
        text.push('\n');
        text.push_str(&read(path));
        for hunk in hunks_of_file.split("@@ -").skip(1) {
            hunks += 1;
            let lines = hunk.lines().skip(1);
            let old = lines.filter_map(|line| line.strip_prefix([' ', '-']));
            let old: String = old.map(|line| format!("\n{line}")).collect();
            if !text.contains(&format!("{old}\n")) {
                missing.push(format!("{path}:{old}"));
            }
        }
    }
    if hunks == 0 {
        missing.push("no hunk".to_owned());
    }
    missing
}
