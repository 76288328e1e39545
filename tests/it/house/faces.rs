//! The faces on top of the crate use only what is public at its root, so that each could leave into
//! a crate of its own. It would take along a copy of what all of them share.
//!
//! What a file names by a path is followed from `lib.rs` through public modules and re-exports. The
//! types of receivers are not known here. So a call of a method is judged by its name: one that
//! public types have for the crate only (`pub(crate)`), and that no public function has, is
//! refused.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};

use super::{is_of_tests, sources};

/// The modules that are faces.
const FACES: [&str; 2] = ["http", "session"];

/// What the faces share that is not public: how things are counted, which is nothing that this
/// crate is for.
const SHARED: [&str; 1] = ["meters"];

/// Names of methods that types of others have, too.
const ALSO_ELSEWHERE: [&str; 0] = [];

type Files = BTreeMap<PathBuf, String>;

#[test]
fn the_faces_use_only_what_is_public() {
    let broken = broken(&sources());
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn a_use_of_what_is_not_public_is_seen() {
    let rest = [
        (
            "lib.rs",
            "mod key; pub mod cache; pub mod session; mod sync; pub use sync::lock; \
             pub use cache::Cache; pub use cache::Cache as Other;",
        ),
        ("key.rs", "pub struct Key;"),
        (
            "cache/mod.rs",
            "mod entry; pub use entry::Entry; pub struct Cache; pub(crate) struct Inner; \
             impl Cache { pub fn remove(&self) {} pub(crate) fn place(&self) {} }",
        ),
        ("cache/entry.rs", "pub struct Entry; pub struct Mark;"),
        ("sync/mod.rs", "pub mod lock;"),
        ("sync/lock.rs", "pub struct Guard; pub(super) struct Kind;"),
    ];
    let seen = |text: &str| {
        let rest = rest
            .iter()
            .map(|(path, text)| (path.into(), (*text).to_owned()));
        let mut files: Files = rest.collect();
        files.insert("session/mod.rs".into(), "mod store; mod own;".to_owned());
        let own = "pub(super) struct Own; impl Own { pub(super) fn own(&self) {} }";
        files.insert("session/own.rs".into(), own.to_owned());
        files.insert("session/store.rs".into(), text.to_owned());
        broken(&files).len()
    };
    for bad in [
        "use crate::key::Key;",
        "use crate::cache::Inner;",
        "use crate::cache::entry::Entry;",
        "use crate::{Cache, cache::{Entry, Inner}};",
        "use super::super::key::Key;",
        "fn f() -> crate::key::Key {}",
        "fn f(cache: &crate::Cache) { cache.place() }",
        "fn f(cache: &crate::Cache) { crate::Cache::place(cache) }",
        "use crate::lock::Kind;",
        "use crate::sync::lock::Guard;",
        "use crate::cache::*;",
    ] {
        assert_eq!(seen(bad), 1, "{bad}");
    }
    for good in [
        "use crate::cache::Entry; use crate::{Cache, Other};",
        "use crate::lock::Guard; use super::own::Own; use crate::session::own;",
        "fn f(cache: &crate::Cache, own: &super::own::Own) { cache.remove(); own.own() }",
        "fn f(key: std::any::TypeId) { crate::Cache::remove() }",
        "#[cfg(test)] mod tests { use crate::key::Key; }",
    ] {
        assert_eq!(seen(good), 0, "{good}");
    }
}

fn broken(files: &Files) -> Vec<String> {
    let (mut public, mut hidden) = (BTreeSet::new(), BTreeSet::new());
    let mut types = BTreeSet::new();
    for (path, text) in files {
        types.extend(public_types(text));
        let mut functions = Functions::default();
        functions.visit_file(&parsed(text));
        public.extend(functions.public);
        // What a face has of its own, it may call.
        match face(path) {
            Some(_) => public.extend(functions.other),
            None => hidden.extend(functions.of_the_crate),
        }
    }
    let hidden: BTreeSet<String> = hidden
        .into_iter()
        .filter(|(of, _)| types.contains(of))
        .map(|(_, name)| name)
        .collect();
    public.extend(ALSO_ELSEWHERE.map(str::to_owned));
    let mut broken = Vec::new();
    for (path, text) in files {
        let Some(face) = face(path) else {
            continue;
        };
        let mut used = Used::default();
        used.visit_file(&parsed(text));
        for name in used.calls {
            if hidden.contains(&name) && !public.contains(&name) {
                broken.push(format!(
                    "src/{}: calls {name}, which is not public",
                    path.display()
                ));
            }
        }
        for used in used.paths {
            let Some(absolute) = absolute(path, &used) else {
                continue;
            };
            let first = absolute.first().map(String::as_str);
            let is_own = first.is_some_and(|it| it == face || SHARED.contains(&it));
            if !is_own && !is_public(files, Path::new("lib.rs"), &absolute) {
                let used = used.join("::");
                broken.push(format!("src/{}: {used} is not public", path.display()));
            }
        }
    }
    broken
}

fn parsed(text: &str) -> syn::File {
    syn::parse_file(text).expect("it compiles")
}

/// The face that a file belongs to.
fn face(path: &Path) -> Option<&'static str> {
    FACES.into_iter().find(|face| path.starts_with(face))
}

/// A path from the root of the crate. `None` if it leads elsewhere.
fn absolute(file: &Path, used: &[String]) -> Option<Vec<String>> {
    let own = file.with_extension("");
    let own = own.iter().map(|part| part.to_string_lossy().into_owned());
    let mut base: Vec<String> = own.filter(|part| part != "mod").collect();
    let mut rest = used;
    match rest.first()?.as_str() {
        "crate" => (base, rest) = (Vec::new(), &rest[1..]),
        "self" => rest = &rest[1..],
        "super" => {
            while let Some(("super", behind)) = rest.split_first().map(|(a, b)| (a.as_str(), b)) {
                base.pop();
                rest = behind;
            }
        }
        _ => return None,
    }
    base.extend_from_slice(rest);
    Some(base)
}

/// Whether this path may be used from outside, beginning in the module of `file`.
fn is_public(files: &Files, file: &Path, path: &[String]) -> bool {
    let Some((first, rest)) = path.split_first() else {
        // The module itself.
        return true;
    };
    let is_public = |it: &syn::Visibility| matches!(it, syn::Visibility::Public(_));
    for item in parsed(&files[file]).items {
        match item {
            syn::Item::Mod(it) if is_public(&it.vis) && it.ident == first => {
                let below = module_below(files, file, first);
                return below.is_none_or(|below| self::is_public(files, &below, rest));
            }
            syn::Item::Use(it) if is_public(&it.vis) => {
                let mut paths = Vec::new();
                leaves(&it.tree, &mut Vec::new(), &mut paths);
                let named = paths.into_iter().find(|(_, name)| name == first);
                let Some((path, _)) = named else {
                    continue;
                };
                // Through modules that need not be public.
                let mut at = Some(file.to_owned());
                for part in &path {
                    at = at.and_then(|at| module_below(files, &at, part));
                }
                // A type, or what else is no module: what is behind it is called by name.
                return at.is_none_or(|module| self::is_public(files, &module, rest));
            }
            item if defines(&item, first) => return true,
            _ => {}
        }
    }
    false
}

/// The file of the module `name` below that of `file`.
fn module_below(files: &Files, file: &Path, name: &str) -> Option<PathBuf> {
    let folder = match file.file_stem()?.to_str()? {
        "lib" | "mod" => file.parent()?.to_owned(),
        _ => file.with_extension(""),
    };
    let candidates = [
        folder.join(format!("{name}.rs")),
        folder.join(name).join("mod.rs"),
    ];
    candidates.into_iter().find(|it| files.contains_key(it))
}

/// Whether an item is a public one of this name.
fn defines(item: &syn::Item, name: &str) -> bool {
    let (visibility, ident) = match item {
        syn::Item::Struct(it) => (&it.vis, &it.ident),
        syn::Item::Enum(it) => (&it.vis, &it.ident),
        syn::Item::Trait(it) => (&it.vis, &it.ident),
        syn::Item::Type(it) => (&it.vis, &it.ident),
        syn::Item::Const(it) => (&it.vis, &it.ident),
        syn::Item::Fn(it) => (&it.vis, &it.sig.ident),
        _ => return false,
    };
    matches!(visibility, syn::Visibility::Public(_)) && ident == name
}

/// The paths of a `use`, each with the name under which it is used.
fn leaves(tree: &syn::UseTree, above: &mut Vec<String>, found: &mut Vec<(Vec<String>, String)>) {
    let whole = |above: &[String], last: String| [above, &[last]].concat();
    match tree {
        syn::UseTree::Path(it) => {
            above.push(it.ident.to_string());
            leaves(&it.tree, above, found);
            above.pop();
        }
        syn::UseTree::Group(it) => it.items.iter().for_each(|it| leaves(it, above, found)),
        syn::UseTree::Name(it) if it.ident == "self" => {
            found.extend(above.last().map(|last| (above.clone(), last.clone())));
        }
        syn::UseTree::Name(it) => {
            let name = it.ident.to_string();
            found.push((whole(above, name.clone()), name));
        }
        syn::UseTree::Rename(it) => {
            found.push((whole(above, it.ident.to_string()), it.rename.to_string()));
        }
        // Nothing is called so, so it is refused.
        syn::UseTree::Glob(_) => found.push((whole(above, "*".to_owned()), "*".to_owned())),
    }
}

/// The types of a file that are public where they are defined.
fn public_types(text: &str) -> Vec<String> {
    let types = parsed(text).items.into_iter().filter_map(|item| {
        let (visibility, ident) = match item {
            syn::Item::Struct(it) => (it.vis, it.ident),
            syn::Item::Enum(it) => (it.vis, it.ident),
            _ => return None,
        };
        matches!(visibility, syn::Visibility::Public(_)).then(|| ident.to_string())
    });
    types.collect()
}

/// The functions that a file defines.
#[derive(Default)]
struct Functions {
    public: BTreeSet<String>,
    /// Those that are `pub(crate)`, each with its type.
    of_the_crate: BTreeSet<(String, String)>,
    other: BTreeSet<String>,
}

impl<'ast> Visit<'ast> for Functions {
    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        let of = match &*item.self_ty {
            syn::Type::Path(it) => it.path.segments.last().map(|it| it.ident.to_string()),
            _ => None,
        };
        for function in &item.items {
            let syn::ImplItem::Fn(it) = function else {
                continue;
            };
            let name = it.sig.ident.to_string();
            match (&it.vis, &of) {
                (syn::Visibility::Public(_), _) => drop(self.public.insert(name)),
                (syn::Visibility::Restricted(within), Some(of))
                    if within.path.is_ident("crate") =>
                {
                    self.of_the_crate.insert((of.clone(), name));
                }
                _ => drop(self.other.insert(name)),
            }
        }
    }
}

/// What a file names.
#[derive(Default)]
struct Used {
    paths: Vec<Vec<String>>,
    calls: Vec<String>,
}

impl<'ast> Visit<'ast> for Used {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        match item {
            syn::Item::Mod(it) if is_of_tests(&it.attrs) => {}
            _ => visit::visit_item(self, item),
        }
    }

    fn visit_item_use(&mut self, it: &'ast syn::ItemUse) {
        let mut found = Vec::new();
        leaves(&it.tree, &mut Vec::new(), &mut found);
        self.paths.extend(found.into_iter().map(|(path, _)| path));
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let parts = path.segments.iter().map(|it| it.ident.to_string());
        let parts: Vec<String> = parts.collect();
        if let [.., above, name] = parts.as_slice()
            && above.starts_with(char::is_uppercase)
        {
            self.calls.push(name.clone());
        }
        self.paths.push(parts);
        visit::visit_path(self, path);
    }

    fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
        self.calls.push(call.method.to_string());
        visit::visit_expr_method_call(self, call);
    }
}
