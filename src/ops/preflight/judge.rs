//! Turns facts into findings: what each fact means, for which primitives, and what to do about it.
//!
//! Invariant: everything is pure. A fact that is not known gives a finding that says so, once for
//! each source. `preflight` calls this.

use super::facts::Facts;
use super::finding::{Finding, FindingCode, Severity};
use crate::error::Error;
use crate::key::Namespace;
use crate::ops::acl::{pattern, right};
use crate::wire::fault::from_server;

/// How the caller named a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Named {
    Cluster,
    Server,
}

/// The findings about one server, as they are collected.
struct Report<'f> {
    facts: &'f Facts,
    named: Named,
    findings: Vec<Finding>,
}

/// Returns all findings about one server.
pub(super) fn server(facts: &Facts, named: Named, namespace: &Namespace) -> Vec<Finding> {
    let mut report = Report {
        facts,
        named,
        findings: Vec::new(),
    };
    // A sentinel has no data, so all other checks would be misleading.
    if report.identity() {
        report.rights(namespace);
        report.refusals();
        report.formats();
        report.not_asked();
        report.memory();
        report.durability();
        report.connections();
    }
    report.findings
}

pub(crate) fn unreachable(server: String, error: &Error) -> Finding {
    Finding {
        severity: Severity::Blocker,
        code: FindingCode::Unreachable,
        server,
        message: error.to_string(),
    }
}

pub(crate) fn no_cluster(server: String) -> Finding {
    Finding {
        severity: Severity::Blocker,
        code: FindingCode::NotACluster,
        server,
        message: "the server is not part of a cluster; name it with `url`, not with `cluster`"
            .to_owned(),
    }
}

impl Report<'_> {
    /// Checks what kind of server it is. Returns whether to check it further.
    fn identity(&mut self) -> bool {
        use FindingCode::{ClusterAsSingle, NotACluster, OldServer, Replica, Sentinel};
        use Severity::{Blocker, Note};
        let (facts, named) = (self.facts, self.named);
        let said = |field: &str| facts.hello.get(field).map(String::as_str);
        match said("mode") {
            Some("sentinel") => {
                self.add(
                    Blocker,
                    Sentinel,
                    "this is a sentinel, which keeps no data; name the servers that it watches",
                );
                return false;
            }
            Some("cluster") if named == Named::Server => self.add(
                Blocker,
                ClusterAsSingle,
                "the server is part of a cluster and serves some slots only; name it with `cluster`, not with `url`",
            ),
            Some("standalone") if named == Named::Cluster => self.add(
                Blocker,
                NotACluster,
                "the server is not part of a cluster; name it with `url`, not with `cluster`",
            ),
            _ => {}
        }
        if let Some("replica" | "slave") = said("role") {
            self.add(
                Blocker,
                Replica,
                "the server is a replica and takes no writes; name its primary",
            );
        }
        let version = said("version").unwrap_or_default();
        let major = version.split('.').next();
        match major.and_then(|major| major.parse::<u32>().ok()) {
            Some(major) if major < FLOOR => self.add(
                Blocker,
                OldServer,
                format!(
                    "the server is version {version}; hedgerow needs Redis 7.0 or later, or Valkey"
                ),
            ),
            Some(_) => {}
            None => self.add(
                Note,
                FindingCode::NotAsked,
                "the server did not tell its version: whether it is new enough is not known",
            ),
        }
        true
    }

    /// Checks which rights the user lacks.
    fn rights(&mut self, namespace: &Namespace) {
        let (mut commands, mut keys, mut channels) = (Vec::new(), Vec::new(), Vec::new());
        for (trial, error) in &self.facts.refused {
            let text = error.details().unwrap_or_default();
            if error.code() != "NOPERM" {
                continue;
            }
            // The text may begin with the name of the user, which could contain any word.
            let wanted = text.rsplit("no permissions to ").next().unwrap_or(text);
            let list = match wanted {
                run if run.starts_with("run") => &mut commands,
                channel if channel.contains("channel") => &mut channels,
                _ => &mut keys,
            };
            list.push(right(trial));
        }
        // For a namespace with blanks there is no pattern, but the finding must still say what is
        // missing.
        let pattern = pattern(namespace).unwrap_or_else(|_| format!("{}:*", namespace.as_str()));
        if !commands.is_empty() {
            let added = commands.iter().map(|right| format!("+{right}"));
            let added = added.collect::<Vec<_>>().join(" ");
            self.missing(format!(
                "the ACL user may not run all commands; add `{added}`"
            ));
        }
        if !keys.is_empty() {
            let with = keys.join(", ");
            self.missing(format!(
                "the ACL user may not touch keys of the namespace with {with}; add `~{pattern}`"
            ));
        }
        if !channels.is_empty() {
            let with = channels.join(", ");
            self.missing(format!(
                "the ACL user may not use channels of the namespace with {with}; add `&{pattern}`"
            ));
        }
    }

    /// Returns whether the command of a trial is sent to such a server. Managed services block
    /// commands that are sent to clusters only.
    fn is_sent(&self, trial: &str) -> bool {
        self.named == Named::Cluster || !FOR_CLUSTERS.iter().any(|start| trial.starts_with(start))
    }

    fn missing(&mut self, what: String) {
        let message = format!("{what} (`Client::required_acl` gives the whole rule)");
        self.add(Severity::Blocker, FindingCode::MissingRight, message);
    }

    /// Checks what the server refuses to every user.
    fn refusals(&mut self) {
        let facts = self.facts;
        let mut missing: Vec<String> = Vec::new();
        let mut said: Vec<&str> = Vec::new();
        for (trial, error) in &facts.refused {
            let (code, text) = (error.code(), error.details().unwrap_or_default());
            if text.starts_with("unknown command") || text.starts_with("unknown subcommand") {
                if self.is_sent(trial) {
                    missing.push(right(trial));
                }
            // The trial script is valid, so an error means that the server runs no Lua.
            } else if *trial == "EVAL LUA 0" && code == "ERR" {
                self.add(
                    Severity::Blocker,
                    FindingCode::NoScripts,
                    format!(
                        "scripts do not run ({}); Valkey 9 needs its module `lua`",
                        from_server(error)
                    ),
                );
            // Once for each code: such a server refuses most trials for the same reason.
            } else if REFUSALS.contains(&code) && !said.contains(&code) {
                said.push(code);
                self.add(
                    Severity::Blocker,
                    FindingCode::Refuses,
                    from_server(error).to_string(),
                );
            }
        }
        if !missing.is_empty() {
            self.add(
                Severity::Blocker,
                FindingCode::MissingCommand,
                format!(
                    "the server does not know {}; it is too old, another product, or they were renamed",
                    missing.join(", ")
                ),
            );
        }
    }

    /// Checks whether other versions write the namespace in another format, once for each kind.
    fn formats(&mut self) {
        let facts = self.facts;
        let mut said: Vec<String> = Vec::new();
        for (written, theirs) in &facts.formats {
            if let Some(difference) = written.difference(theirs)
                && !said.contains(&difference)
            {
                said.push(difference.clone());
                self.add(Severity::Blocker, FindingCode::ForeignFormat, difference);
            }
        }
    }

    /// Reports what could not be checked, since the user or the provider of the server does not
    /// permit it.
    fn not_asked(&mut self) {
        let facts = self.facts;
        for (right, failed, what) in [
            (
                "+info",
                facts.info.as_ref().err(),
                "how many replicas it has",
            ),
            (
                "+config|get",
                facts.config.as_ref().err(),
                "whether it persists, evicts, closes idle connections, waits for replicas",
            ),
        ] {
            if let Some(error) = failed {
                self.add(
                    Severity::Note,
                    FindingCode::NotAsked,
                    format!("{what} is not known ({error}); allow `{right}` to have it looked at"),
                );
            }
        }
        if facts.clock.is_none() {
            self.add(
                Severity::Note,
                FindingCode::NotAsked,
                "what its clock says is not known; allow `+time` to have it compared",
            );
        }
    }

    /// Checks what happens when the memory limit is reached.
    fn memory(&mut self) {
        let limit = self.known("maxmemory", "maxmemory");
        let Some(policy) = self.known("maxmemory-policy", "maxmemory_policy") else {
            return;
        };
        // Without a limit nothing is evicted, whatever the policy.
        if limit.as_deref() == Some("0") {
            return;
        }
        if policy.starts_with("allkeys") {
            self.add(
                Severity::Warning,
                FindingCode::Eviction,
                format!(
                    "at maxmemory any key is evicted (maxmemory-policy {policy}): a lock may be granted twice, a counter \
                     starts again at 0; fit for caches only. For locks and counters set noeviction, or use another server"
                ),
            );
        } else if policy.starts_with("volatile") {
            self.add(
                Severity::Warning,
                FindingCode::Eviction,
                format!(
                    "at maxmemory keys with a TTL are evicted (maxmemory-policy {policy}): a lock may be granted twice, a \
                     counter with `expire` starts again at 0. For locks set noeviction, or use another server"
                ),
            );
        } else {
            self.add(
                Severity::Note,
                FindingCode::Eviction,
                format!(
                    "at maxmemory writes are refused (maxmemory-policy {policy}): right for locks and counters; a cache \
                     stores nothing more then"
                ),
            );
        }
    }

    /// Checks what is lost when a process or a primary is lost.
    fn durability(&mut self) {
        let snapshots = self.known("save", "");
        let log = self.known("appendonly", "");
        // An empty `save` means that snapshots are off.
        if snapshots.as_deref() == Some("") && log.as_deref() == Some("no") {
            self.add(
                Severity::Warning,
                FindingCode::NoPersistence,
                "neither snapshots nor the append-only file are on: a restart forgets locks, counters and \
                 invalidations; set `appendonly yes`, or keep caches only",
            );
        }
        let replicas = self.known("", "connected_slaves");
        let replicas: u32 = replicas
            .and_then(|number| number.parse().ok())
            .unwrap_or_default();
        if replicas > 0 && self.known("min-replicas-to-write", "").as_deref() == Some("0") {
            self.add(
                Severity::Warning,
                FindingCode::NoMinReplicas,
                "a primary that is cut off from its replicas goes on to take writes, which are lost when a replica \
                 takes over; set min-replicas-to-write to 1",
            );
        }
        if self.known("cluster-require-full-coverage", "").as_deref() == Some("yes")
            // Other servers report the setting, too; it has no effect there.
            && self.facts.hello.get("mode").map(String::as_str) == Some("cluster")
        {
            self.add(
                Severity::Note,
                FindingCode::FullCoverage,
                "while one part of the cluster is down all of it refuses (cluster-require-full-coverage yes); set it to no \
                 if the rest is to go on",
            );
        }
    }

    fn connections(&mut self) {
        let idle = self.known("timeout", "");
        if let Some(seconds) = idle.filter(|seconds| seconds != "0") {
            self.add(
                Severity::Warning,
                FindingCode::IdleTimeout,
                format!(
                    "connections that are idle for {seconds} s are closed; the next call connects again, and one that is under \
                     way just then ends unanswered; set `timeout 0`"
                ),
            );
        }
        if self.facts.is_readable {
            self.add(
                Severity::Note,
                FindingCode::PlainText,
                "no TLS: whoever is on the way reads passwords and values; use rediss:// (feature `tls`)",
            );
        }
    }

    /// Returns a setting by its name in `CONFIG`, or else by its name in `INFO`.
    fn known(&self, config: &str, info: &str) -> Option<String> {
        let facts = self.facts;
        let setting = facts.config.as_ref().ok().and_then(|all| all.get(config));
        let field = || facts.info.as_ref().ok().and_then(|all| all.get(info));
        setting.or_else(field).cloned()
    }

    fn add(&mut self, severity: Severity, code: FindingCode, message: impl Into<String>) {
        self.findings.push(Finding {
            severity,
            code,
            server: self.facts.address.clone(),
            message: message.into(),
        });
    }
}

/// The oldest major version that is supported: it brought sharded pub/sub and script flags.
const FLOOR: u32 = 7;

/// The beginnings of trials whose commands are sent to clusters only.
const FOR_CLUSTERS: [&str; 2] = ["CLUSTER ", "ASKING"];

/// Error codes with which a server refuses every user.
const REFUSALS: [&str; 7] = [
    "OOM",
    "MISCONF",
    "NOREPLICAS",
    "LOADING",
    "BUSY",
    "CLUSTERDOWN",
    "MASTERDOWN",
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::error::ErrorKind;
    use crate::ops::preflight::clocks::Offset;

    fn facts(address: &str) -> Facts {
        let hello = [
            ("mode", "standalone"),
            ("role", "master"),
            ("version", "7.0.15"),
        ];
        Facts {
            address: address.to_owned(),
            hello: map(&hello),
            info: Ok(BTreeMap::new()),
            config: Ok(BTreeMap::new()),
            formats: Vec::new(),
            refused: Vec::new(),
            clock: Some(Offset::default()),
            is_readable: false,
        }
    }

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        pairs.iter().map(owned).collect()
    }

    fn codes(facts: &Facts) -> Vec<FindingCode> {
        let namespace = Namespace::new("hr").expect("a good namespace");
        let findings = server(facts, Named::Server, &namespace);
        findings.iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn nothing_is_found_where_all_is_well() {
        assert_eq!(codes(&facts("a")), []);
    }

    #[test]
    fn versions_below_the_floor_are_refused_and_unknown_ones_told() {
        for (version, expected) in [
            ("6.2.14", Some(FindingCode::OldServer)),
            ("6.9", Some(FindingCode::OldServer)),
            ("7.0.0", None),
            ("8.0.2", None),
            ("10.0-rc1", None),
            ("unstable", Some(FindingCode::NotAsked)),
            ("", Some(FindingCode::NotAsked)),
        ] {
            let mut facts = facts("a");
            facts.hello.insert("version".to_owned(), version.to_owned());
            assert_eq!(codes(&facts), Vec::from_iter(expected), "{version:?}");
        }
    }

    #[test]
    fn what_was_not_told_is_a_finding_for_each_source() {
        let mut facts = facts("a");
        let refused = || Error::new(ErrorKind::Forbidden, "no");
        facts.info = Err(refused());
        facts.config = Err(refused());
        facts.clock = None;
        assert_eq!(codes(&facts), [FindingCode::NotAsked; 3]);
    }

    #[test]
    fn what_info_tells_stands_in_for_a_setting() {
        let mut facts = facts("a");
        facts.config = Err(Error::new(ErrorKind::Forbidden, "no"));
        facts.info = Ok(map(&[
            ("maxmemory", "1000"),
            ("maxmemory_policy", "allkeys-lfu"),
        ]));
        assert_eq!(
            codes(&facts),
            [FindingCode::NotAsked, FindingCode::Eviction]
        );
    }

    #[test]
    fn what_can_be_read_on_the_way_is_told() {
        let mut facts = facts("a");
        facts.is_readable = true;
        assert_eq!(codes(&facts), [FindingCode::PlainText]);
    }
}
