//! No function takes a `bool`: at the call nobody sees what `true` means.

use std::path::Path;

use syn::visit::{self, Visit};

use super::{is_of_tests, sources};

#[test]
fn no_function_takes_a_bool() {
    let mut found = Vec::new();
    for (path, text) in sources() {
        found.extend(taking_bools(&path, &text));
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn a_function_that_takes_a_bool_is_seen() {
    for (text, names) in [
        ("fn f(a: u8, is_b: bool) {}", vec!["f"]),
        (
            "impl A { fn f(&self, a: bool) {} fn g(&self) -> bool {} }",
            vec!["f"],
        ),
        ("impl Debug for A { fn f(&self, a: bool) {} }", vec![]),
        ("trait T { fn f(&self, a: bool); }", vec!["f"]),
        (
            "impl Debug for A { fn f(&self) { fn g(a: bool) {} } }",
            vec!["g"],
        ),
        ("#[cfg(test)] mod tests { fn f(a: bool) {} }", vec![]),
        (
            "mod inner { fn f(a: Option<bool>, b: impl Fn(bool)) {} }",
            vec![],
        ),
    ] {
        let expected: Vec<String> = names.iter().map(|it| format!("src/a.rs: {it}")).collect();
        assert_eq!(taking_bools(Path::new("a.rs"), text), expected, "{text}");
    }
}

fn taking_bools(path: &Path, text: &str) -> Vec<String> {
    let mut found = Found(Vec::new());
    found.visit_file(&syn::parse_file(text).expect("it compiles"));
    let path = path.display();
    let named = found.0.iter().map(|name| format!("src/{path}: {name}"));
    named.collect()
}

struct Found(Vec<String>);

impl<'ast> Visit<'ast> for Found {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        match item {
            syn::Item::Mod(it) if is_of_tests(&it.attrs) => {}
            // The trait says what its methods take; what stands in their bodies is looked at.
            syn::Item::Impl(it) if it.trait_.is_some() => {
                for item in &it.items {
                    if let syn::ImplItem::Fn(it) = item {
                        self.visit_block(&it.block);
                    }
                }
            }
            _ => visit::visit_item(self, item),
        }
    }

    fn visit_signature(&mut self, signature: &'ast syn::Signature) {
        let is_bool = |argument: &syn::FnArg| match argument {
            syn::FnArg::Typed(it) => {
                matches!(&*it.ty, syn::Type::Path(it) if it.path.is_ident("bool"))
            }
            syn::FnArg::Receiver(_) => false,
        };
        if signature.inputs.iter().any(is_bool) {
            self.0.push(signature.ident.to_string());
        }
    }
}
