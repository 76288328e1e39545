//! `Preflight`, `Finding`: the result of a preflight.
//!
//! Invariant: a finding names its server and says what to do. `judge` and `clocks` make the
//! findings.

use std::fmt;

/// The findings of [`Client::preflight`](crate::Client::preflight), the worst first. Its `Display`
/// is one line for each finding.
#[derive(Debug, Clone)]
#[must_use = "findings are to be read"]
pub struct Preflight(pub(crate) Vec<Finding>);

impl Preflight {
    /// Returns whether nothing was found that makes calls fail or breaks promises: no
    /// [`Blocker`](Severity::Blocker).
    pub fn is_ok(&self) -> bool {
        self.0
            .iter()
            .all(|finding| finding.severity != Severity::Blocker)
    }

    /// Returns all findings, the worst first.
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

/// One finding of [`Client::preflight`](crate::Client::preflight).
#[derive(Debug, Clone)]
pub struct Finding {
    pub(crate) severity: Severity,
    pub(crate) code: FindingCode,
    pub(crate) server: String,
    pub(crate) message: String,
}

impl Finding {
    /// Returns how serious it is.
    pub fn severity(&self) -> Severity {
        self.severity
    }

    /// Returns what it is about.
    pub fn code(&self) -> FindingCode {
        self.code
    }

    /// Returns the address of the server, or of both servers, without credentials.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Returns what was found, what it affects, and what to do.
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

/// How serious a [`Finding`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(
    clippy::exhaustive_enums,
    reason = "there is nothing worse than what blocks, and nothing below a note"
)]
pub enum Severity {
    /// Calls fail, or promises do not hold. Fix this first.
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
    /// The ACL user lacks a right of [`Client::required_acl`](crate::Client::required_acl).
    MissingRight,
    /// The server does not know a command: it is another product, or the command was renamed.
    MissingCommand,
    /// Scripts do not run. Valkey 9 has Lua in a module that may be absent.
    NoScripts,
    /// The server at present refuses to write, or to serve anything.
    Refuses,
    /// The server is older than Redis 7.0.
    OldServer,
    /// The server is a replica.
    Replica,
    /// The server is part of a cluster but was named as a single server.
    ClusterAsSingle,
    /// The server was named as part of a cluster but is not.
    NotACluster,
    /// The server is a sentinel, which keeps no data.
    Sentinel,
    /// The server evicts keys that must not be lost, or fills up.
    Eviction,
    /// The server forgets everything when it restarts.
    NoPersistence,
    /// A primary that is cut off from its replicas continues to accept writes.
    NoMinReplicas,
    /// A clock differs from another, or from that of this machine.
    ClockSkew,
    /// The server closes idle connections.
    IdleTimeout,
    /// If one part of the cluster is down, the whole cluster refuses calls.
    FullCoverage,
    /// Data on the way to and from the server can be read by others.
    PlainText,
    /// Another version of hedgerow writes locks or counters of the namespace in another format, so
    /// this version refuses to lock or to count there.
    ForeignFormat,
    /// Something could not be checked.
    NotAsked,
}
