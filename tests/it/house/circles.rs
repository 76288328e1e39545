//! Imports run one way: no circle of files anywhere in `src`.
//!
//! An arrow leads from a file to each file that defines what it names, through re-exports. What a
//! file only exports anew it does not use.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};

use super::{is_of_tests, sources};

#[test]
fn no_files_use_each_other_in_a_circle() {
    let circles = circles(&arrows(&sources(), Exports::IfUsed));
    assert!(circles.is_empty(), "{}", circles.join("\n"));
}

#[test]
fn a_circle_is_seen() {
    let files = |texts: &[(&str, &str)]| -> BTreeMap<PathBuf, String> {
        let files = texts
            .iter()
            .map(|(path, text)| (path.into(), (*text).to_owned()));
        files.collect()
    };
    let lib = ("lib.rs", "mod a; mod b; mod c;");
    for (circle, texts) in [
        (
            2,
            vec![
                lib,
                ("a.rs", "use crate::b::B;"),
                ("b.rs", "use crate::a::A;"),
            ],
        ),
        (
            2,
            vec![
                lib,
                ("a.rs", "use super::b::{self, B};"),
                ("b.rs", "fn f() -> crate::a::A {}"),
            ],
        ),
        // Through what `c` exports anew, which is in no circle itself.
        (
            2,
            vec![
                lib,
                ("a.rs", "use crate::c::B as Other;"),
                ("b.rs", "use crate::a::A;"),
                ("c.rs", "pub use crate::b::B;"),
            ],
        ),
        // A child that uses its parent, which uses the child.
        (
            2,
            vec![
                ("lib.rs", "mod a;"),
                ("a/mod.rs", "mod b; use b::B; struct A;"),
                ("a/b.rs", "use super::A;"),
            ],
        ),
        (
            3,
            vec![
                lib,
                ("a.rs", "use crate::b::B;"),
                ("b.rs", "use crate::c::C;"),
                ("c.rs", "use crate::{a::A, d::D};"),
            ],
        ),
        (
            0,
            vec![
                lib,
                ("a.rs", "use crate::b::B;"),
                ("b.rs", "use std::a::A;"),
            ],
        ),
        (
            0,
            vec![
                lib,
                ("a.rs", "use crate::b::B;"),
                ("b.rs", "#[cfg(test)] mod tests { use crate::a::A; }"),
            ],
        ),
        (
            0,
            vec![
                ("lib.rs", "mod a;"),
                ("a/mod.rs", "mod b; pub use b::B; struct A;"),
                ("a/b.rs", "use super::A;"),
            ],
        ),
    ] {
        let found = circles(&arrows(&files(&texts), Exports::IfUsed));
        assert_eq!(found.len(), circle, "{texts:?}: {found:?}");
    }
}

pub(super) type Module = Vec<String>;

/// Which files each file uses, and what of them.
pub(super) type Arrows = BTreeMap<PathBuf, BTreeMap<PathBuf, BTreeSet<String>>>;

/// Whether what a file only exports anew counts as used by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exports {
    /// If its own code names it, too.
    IfUsed,
    Always,
}

pub(super) fn arrows(files: &BTreeMap<PathBuf, String>, counted: Exports) -> Arrows {
    let parsed = files.iter().map(|(path, text)| {
        let mut names = Names::new(module(path));
        names.visit_file(&syn::parse_file(text).expect("it compiles"));
        (path.clone(), names)
    });
    let parsed: BTreeMap<PathBuf, Names> = parsed.collect();
    let modules: HashMap<Module, &PathBuf> = parsed
        .iter()
        .map(|(path, names)| (names.own.clone(), path))
        .collect();
    let mut exports: HashMap<(Module, String), Module> = HashMap::new();
    for names in parsed.values() {
        for (name, path) in &names.exported {
            exports.insert(
                (names.own.clone(), name.clone()),
                names.absolute(path, &modules),
            );
        }
    }
    let mut arrows = Arrows::new();
    for (from, names) in &parsed {
        let used = names.used.iter();
        let reused = names
            .exported
            .iter()
            .filter(|(name, _)| counted == Exports::Always || names.words.contains(name));
        for path in used.chain(reused.map(|(_, path)| path)) {
            let path = names.absolute(path, &modules);
            if let Some((to, what)) = defined(path, &modules, &exports)
                && to != from
            {
                let uses = arrows.entry(from.clone()).or_default();
                uses.entry(to.clone()).or_default().insert(what);
            }
        }
    }
    arrows
}

/// The file that defines what `path` names, and its name there. `None` for other crates.
fn defined<'f>(
    mut path: Module,
    modules: &HashMap<Module, &'f PathBuf>,
    exports: &HashMap<(Module, String), Module>,
) -> Option<(&'f PathBuf, String)> {
    for _ in 0..9 {
        let long = (0..=path.len())
            .rev()
            .find(|end| modules.contains_key(&path[..*end]))?;
        let (module, rest) = path.split_at(long);
        let Some(name) = rest.first() else {
            return Some((modules[module], "itself".to_owned()));
        };
        let Some(elsewhere) = exports.get(&(module.to_vec(), name.clone())) else {
            let foreign = module.is_empty() && rest.len() > 1;
            return (!foreign).then(|| (modules[module], name.clone()));
        };
        path = elsewhere.iter().chain(&rest[1..]).cloned().collect();
    }
    panic!("{path:?} is exported in a circle");
}

/// The arrows that are part of a circle.
fn circles(arrows: &Arrows) -> Vec<String> {
    let mut left: BTreeSet<(&Path, &Path)> = BTreeSet::new();
    for (from, uses) in arrows {
        left.extend(uses.keys().map(|to| (from.as_path(), to.as_path())));
    }
    // An arrow that nothing leads on from, or that nothing leads to, is in no circle.
    loop {
        let from: BTreeSet<&Path> = left.iter().map(|(from, _)| *from).collect();
        let to: BTreeSet<&Path> = left.iter().map(|(_, to)| *to).collect();
        let before = left.len();
        left.retain(|arrow| from.contains(arrow.1) && to.contains(arrow.0));
        if left.len() == before {
            break;
        }
    }
    let described = left.iter().map(|(from, to)| {
        let what: Vec<&str> = arrows[*from][*to].iter().map(String::as_str).collect();
        format!(
            "src/{} uses {} of src/{}",
            from.display(),
            what.join(", "),
            to.display()
        )
    });
    described.collect()
}

/// The module that a file is.
fn module(path: &Path) -> Module {
    let parts = path.with_extension("");
    let parts = parts
        .iter()
        .map(|part| part.to_str().expect("ASCII").to_owned());
    let mut parts: Module = parts.collect();
    if matches!(parts.last().map(String::as_str), Some("mod" | "lib")) {
        parts.pop();
    }
    parts
}

/// The paths that a file names.
struct Names {
    own: Module,
    used: Vec<Module>,
    /// By the name under which they are exported.
    exported: Vec<(String, Module)>,
    /// What its code mentions by one word.
    words: BTreeSet<String>,
}

impl Names {
    fn new(own: Module) -> Self {
        Self {
            own,
            used: Vec::new(),
            exported: Vec::new(),
            words: BTreeSet::new(),
        }
    }

    /// `path` from the root of the crate.
    fn absolute(&self, path: &[String], modules: &HashMap<Module, &PathBuf>) -> Module {
        let (mut base, mut rest) = match path.first().map(String::as_str) {
            Some("crate") => (Vec::new(), &path[1..]),
            Some("self" | "super") => (self.own.clone(), path),
            _ => {
                let child = [&self.own[..], &path[..1.min(path.len())]].concat();
                // Else of another crate, which no file of this one has the name of.
                return match modules.contains_key(&child) {
                    true => [&self.own[..], path].concat(),
                    false => vec!["::".to_owned(), "other".to_owned()],
                };
            }
        };
        while let Some((first, others)) = rest.split_first() {
            match first.as_str() {
                "self" => {}
                "super" => drop(base.pop()),
                _ => break,
            }
            rest = others;
        }
        [&base[..], rest].concat()
    }

    fn add_tree(&mut self, tree: &syn::UseTree, before: &[String], is_export: IsExport) {
        let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
        match tree {
            syn::UseTree::Path(it) => self.add_tree(&it.tree, &with(&it.ident), is_export),
            syn::UseTree::Group(it) => {
                for tree in &it.items {
                    self.add_tree(tree, before, is_export);
                }
            }
            syn::UseTree::Name(it) if it.ident == "self" => {
                self.add(before.to_vec(), None, is_export)
            }
            syn::UseTree::Name(it) => self.add(with(&it.ident), None, is_export),
            syn::UseTree::Rename(it) => {
                self.add(with(&it.ident), Some(it.rename.to_string()), is_export);
            }
            syn::UseTree::Glob(_) => self.add(before.to_vec(), None, is_export),
        }
    }

    fn add(&mut self, path: Module, name: Option<String>, is_export: IsExport) {
        match is_export {
            IsExport::No => self.used.push(path),
            IsExport::Yes => {
                let name = name.or_else(|| path.last().cloned()).unwrap_or_default();
                self.exported.push((name, path));
            }
        }
    }
}

/// Whether a `use` has a visibility.
#[derive(Clone, Copy)]
enum IsExport {
    Yes,
    No,
}

impl<'ast> Visit<'ast> for Names {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        match item {
            syn::Item::Mod(it) if is_of_tests(&it.attrs) => {}
            syn::Item::Fn(it) if is_of_tests(&it.attrs) => {}
            syn::Item::Use(it) => {
                let is_export = match it.vis {
                    syn::Visibility::Inherited => IsExport::No,
                    _ => IsExport::Yes,
                };
                self.add_tree(&it.tree, &[], is_export);
            }
            _ => visit::visit_item(self, item),
        }
    }

    /// The arguments of a macro are no syntax tree: paths are looked for among their words.
    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        let text = call.tokens.to_string();
        let words: Vec<&str> = text.split_whitespace().collect();
        for (at, word) in words.iter().enumerate() {
            let leads = at == 0 || words[at - 1] != "::";
            if !leads || words.get(at + 1) != Some(&"::") {
                continue;
            }
            let path = words[at..]
                .chunks(2)
                .take_while(|pair| pair.len() == 2 && pair[1] == "::");
            let mut path: Module = path.map(|pair| pair[0].to_owned()).collect();
            let last = words.get(at + 2 * path.len()).copied().unwrap_or_default();
            path.push(last.to_owned());
            let is_name = |name: &String| name.chars().all(|c| c.is_alphanumeric() || c == '_');
            if path.iter().all(is_name) {
                self.words.insert(word.to_string());
                self.used.push(path);
            }
        }
    }

    /// `pub(in crate::room)` uses nothing.
    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        if !is_of_tests(&function.attrs) {
            visit::visit_impl_item_fn(self, function);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments = path.segments.iter();
        let names: Module = segments.map(|segment| segment.ident.to_string()).collect();
        self.words.extend(names.first().cloned());
        // A path of two may lead through a child.
        if names.len() > 1 {
            self.used.push(names);
        }
        visit::visit_path(self, path);
    }
}
