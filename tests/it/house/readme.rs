//! The README is also read on the registry's page, where there is no repository around it.

use std::path::Path;

#[test]
fn links_lead_somewhere_from_everywhere() {
    const HOME: &str = concat!(env!("CARGO_PKG_REPOSITORY"), "/");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("README.md")).expect("it is there");
    let mut seen = 0;
    for link in text.split("](").skip(1) {
        let target = link.split(')').next().unwrap_or_default();
        assert!(target.starts_with("https://"), "{target} is relative");
        if let Some(inside) = target.strip_prefix(HOME) {
            let path = inside.split('/').skip(2).collect::<Vec<_>>().join("/");
            let path = path.split('#').next().unwrap_or_default();
            assert!(root.join(path).exists(), "{target} leads nowhere");
            seen += 1;
        }
    }
    assert!(seen > 10, "links are read");
}

#[test]
fn it_names_each_feature_of_the_crate() {
    let readme = include_str!("../../../README.md");
    let manifest = include_str!("../../../Cargo.toml");
    let (_, features) = manifest.split_once("\n[features]\n").expect("a section");
    let (features, _) = features.split_once("\n\n").expect("its end");
    let names: Vec<&str> = features
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| Some(line.split_once(" = ")?.0))
        .filter(|name| *name != "default")
        .collect();
    assert!(names.len() > 10, "features are read: {names:?}");
    for name in names {
        assert!(readme.contains(&format!("\n| `{name}` |")), "{name}");
    }
}

#[test]
fn it_says_what_a_reader_looks_for_first() {
    let text = include_str!("../../../README.md");
    for word in [
        "cargo add hedgerow",
        "Outage::Bypass",
        "Codec::",
        "Client::open",
    ] {
        assert!(text.contains(word), "{word}");
    }
}
