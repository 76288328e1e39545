//! `preflight`: what stands in the way of a client's calls, or will one day, asked before they are
//! made.
//!
//! Invariant: nothing is written, and nothing that could not be asked is passed over in silence.
//! What is found here is advice: no promise of the crate rests on it, least of all on what is found
//! of clocks.

mod clocks;
mod facts;
mod judge;

use std::fmt;

use futures::future::join_all;

use super::Client;
use crate::error::{Error, ErrorKind, Result};

impl Client {
    /// Looks at every server that this client writes to, and tells what is wrong with it: missing
    /// rights of the ACL user, a version that is too old, a replica in a primary's place, settings
    /// that lose or evict data, clocks that differ, another version of hedgerow that writes the
    /// namespace in another format.
    ///
    /// Meant for the start of a service, or for its deployment:
    ///
    /// ```no_run
    /// # async fn example(client: hedgerow::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let preflight = client.preflight().await?;
    /// print!("{preflight}");
    /// if !preflight.is_ok() {
    ///     return Err("the server is not fit for this service".into());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Rights are found out by calls that change nothing; those refused show in the server's `ACL
    /// LOG`, as its `CONFIG GET` does for a user with no more than
    /// [`required_acl`](Self::required_acl). It takes one more connection to each server while it
    /// runs.
    ///
    /// # Errors
    /// When no server answers at all: says why.
    ///
    /// # Cancel safety
    /// Safe: nothing is written.
    pub async fn preflight(&self) -> Result<Preflight> {
        let deadline = self.deadline();
        let topology = &self.core.topology;
        let nodes = match topology.nodes(deadline).await {
            Ok(nodes) => nodes,
            Err(error) if error.kind() == ErrorKind::InvalidInput => {
                return Ok(Preflight(vec![judge::no_cluster(topology.address())]));
            }
            Err(error) => return Err(error),
        };
        let key = self.namespace().trial(self.process());
        let asked = nodes.iter().map(|(address, link)| async {
            let formats = &self.core.formats;
            let facts = facts::gather(address.clone(), link, &key, formats, deadline.at).await;
            facts.map_err(|error| (address.clone(), error))
        });
        let mut known = Vec::with_capacity(nodes.len());
        let mut findings = Vec::new();
        let mut silent: Option<Error> = None;
        for facts in join_all(asked).await {
            match facts {
                Ok(facts) => known.push(facts),
                Err((address, error)) => {
                    findings.push(judge::unreachable(address, &error));
                    silent = Some(error);
                }
            }
        }
        if let (Some(error), true) = (silent, known.is_empty()) {
            return Err(error);
        }
        for facts in &known {
            findings.extend(judge::server(
                facts,
                topology.is_cluster(),
                self.namespace(),
            ));
        }
        let clocks = known.iter();
        let clocks = clocks.filter_map(|facts| Some((facts.address.as_str(), facts.clock?)));
        findings.extend(clocks::judged(&clocks.collect::<Vec<_>>()));
        findings.sort_by_key(|finding| finding.severity);
        Ok(Preflight(findings))
    }
}

/// What [`Client::preflight`] found, the worst first. Its `Display` is one line for each finding.
#[derive(Debug, Clone)]
#[must_use = "findings are to be read"]
pub struct Preflight(Vec<Finding>);

impl Preflight {
    /// Whether nothing was found that makes calls fail or break promises: no
    /// [`Blocker`](Severity::Blocker).
    pub fn is_ok(&self) -> bool {
        self.0
            .iter()
            .all(|finding| finding.severity != Severity::Blocker)
    }

    /// All findings, the worst first.
    pub fn findings(&self) -> &[Finding] {
        &self.0
    }
}

impl fmt::Display for Preflight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|finding| writeln!(f, "{finding}"))
    }
}

/// One thing that [`Client::preflight`] found.
#[derive(Debug, Clone)]
pub struct Finding {
    severity: Severity,
    code: FindingCode,
    server: String,
    message: String,
}

impl Finding {
    /// How bad it is.
    pub fn severity(&self) -> Severity {
        self.severity
    }

    /// What it is about.
    pub fn code(&self) -> FindingCode {
        self.code
    }

    /// Where the server is, or both servers are, without credentials.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// What was found, whom it concerns, and what to do.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            severity,
            code,
            server,
            message,
        } = self;
        write!(f, "{severity} {code:?} {server}: {message}")
    }
}

/// How bad a [`Finding`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(
    clippy::exhaustive_enums,
    reason = "there is nothing worse than what blocks, and nothing below a note"
)]
pub enum Severity {
    /// Calls fail, or promises do not hold: to be mended first.
    Blocker,
    /// Data or time may be lost one day.
    Warning,
    /// Good to know.
    Note,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Blocker => "blocker",
            Self::Warning => "warning",
            Self::Note => "note",
        })
    }
}

/// What a [`Finding`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FindingCode {
    /// The server does not answer, while others do.
    Unreachable,
    /// The ACL user lacks a right of [`Client::required_acl`].
    MissingRight,
    /// The server has no such command: it is another product, or it was renamed.
    MissingCommand,
    /// Scripts do not run; Valkey 9 has Lua in a module that may be absent.
    NoScripts,
    /// The server refuses to write, or to serve anything, at present.
    Refuses,
    /// The server is older than Redis 7.0.
    OldServer,
    /// The server is a replica.
    Replica,
    /// The server is part of a cluster and was named alone.
    ClusterAsSingle,
    /// The server is not part of a cluster and was named as such.
    NotACluster,
    /// The server is a sentinel, which keeps no data.
    Sentinel,
    /// The server evicts what must not be lost, or fills up.
    Eviction,
    /// The server forgets everything when it restarts.
    NoPersistence,
    /// A primary that is cut off from its replicas goes on to take writes.
    NoMinReplicas,
    /// A clock differs from another, or from that of this machine.
    ClockSkew,
    /// The server closes idle connections.
    IdleTimeout,
    /// One part of the cluster that is down stops all of it.
    FullCoverage,
    /// What is sent can be read on the way.
    PlainText,
    /// Another version of hedgerow writes locks or counters of the namespace in another format, so
    /// that this one refuses to lock or to count there.
    ForeignFormat,
    /// Something could not be asked.
    NotAsked,
}
