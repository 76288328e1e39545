//! `Hosts`: whose pages are kept, and which hosts share them.
//!
//! Invariant: an alias stands for a host that is no alias of another. A host stands for itself with
//! a usual port. Settings hold one; requests and purges ask it.

/// The hosts of a layer. All are in lower case.
#[derive(Debug, Clone, Default)]
pub(super) struct Hosts {
    /// Empty if every host will do.
    listed: Vec<String>,
    /// Aliases, each with the host whose pages it shares.
    aliases: Vec<(String, String)>,
}

impl Hosts {
    pub(super) fn list(&mut self, hosts: impl Iterator<Item = String>) {
        self.listed = hosts.map(|it| it.to_ascii_lowercase()).collect();
    }

    /// Lets `alias` share the pages of `host`, and of no other one.
    pub(super) fn share(&mut self, host: &str, alias: &str) {
        let host = self.shared(host).to_ascii_lowercase();
        let alias = alias.to_ascii_lowercase();
        if alias == host {
            return;
        }
        self.aliases.retain(|(known, _)| !are_same(known, &alias));
        for (_, shared) in &mut self.aliases {
            if are_same(shared, &alias) {
                shared.clone_from(&host);
            }
        }
        self.aliases.push((alias, host));
    }

    /// The host whose pages are those of `host`: itself, unless it is an alias.
    pub(super) fn shared<'h>(&'h self, host: &'h str) -> &'h str {
        let mut aliases = self.aliases.iter();
        let known = aliases.find(|(alias, _)| are_same(alias, host));
        known.map_or(host, |(_, shared)| shared)
    }

    /// Whether pages of `host`, which is no alias, are stored.
    pub(super) fn has(&self, host: &str) -> bool {
        self.listed.is_empty() || self.listed.iter().any(|it| are_same(it, host))
    }

    /// The hosts that were named. None if every host will do.
    pub(super) fn listed(&self) -> &[String] {
        &self.listed
    }
}

/// The host without a port that need not be named. A purge by URL names none, and an answer to
/// another port may be purged with it.
pub(super) fn usual(host: &str) -> &str {
    let short = host.strip_suffix(":80").or(host.strip_suffix(":443"));
    short.unwrap_or(host)
}

fn are_same(one: &str, other: &str) -> bool {
    usual(one).eq_ignore_ascii_case(usual(other))
}
