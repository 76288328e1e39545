//! `Kind`: what tells one synchronizer from another: its scripts, its keys and its words.
//!
//! Invariant: the mechanism knows no more of a synchronizer than this. The *detail* of a request
//! says what the holder gets. The mechanism passes it on without reading it. Each face declares its
//! kind, and `Keys` carry it.

use std::sync::LazyLock;

use crate::client::Written;
use crate::script::{LazyScript, Script};

/// One kind of synchronizer.
#[derive(Debug)]
pub(in crate::sync) struct Kind {
    /// The word in its keys and events. No two kinds share one.
    pub(in crate::sync) name: &'static str,
    /// The word in the keys of its queues.
    pub(in crate::sync) queue: &'static str,
    pub(in crate::sync) words: Words,
    /// Says in an error text what the holders have. It gets the two texts of a busy answer: a
    /// fence, and what `kind.busy` says of the holders.
    pub(in crate::sync) held_by: fn(&str, &str) -> String,
    /// The format that all clients of the namespace agree on before they write its keys.
    pub(in crate::sync) written: Written,
    pub(in crate::sync) holders: Holders,
    pub(in crate::sync) breaking: Breaking,
    pub(in crate::sync) scripts: Scripts,
}

/// What error texts say of a kind.
#[derive(Debug)]
pub(in crate::sync) struct Words {
    /// What is invalid: "lock name".
    pub(in crate::sync) name: &'static str,
    /// What is granted: "the lock".
    pub(in crate::sync) noun: &'static str,
    /// The verbs that follow the noun: "is" and "was".
    pub(in crate::sync) is: &'static str,
    pub(in crate::sync) was: &'static str,
}

impl Words {
    pub(in crate::sync) const fn new(
        name: &'static str,
        noun: &'static str,
        [is, was]: [&'static str; 2],
    ) -> Self {
        Self {
            name,
            noun,
            is,
            was,
        }
    }
}

/// Whether a call can take away what a holder has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sync) enum Breaking {
    /// A call can. A holder subscribes after 50 ms, to learn of it at once.
    ByPush,
    Never,
}

/// How many holders there may be at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sync) enum Holders {
    One,
    /// Calls of one process need not wait for each other's answers.
    Several,
}

/// The scripts of a kind. All have the arguments and replies of those of the lock, but for what
/// `kind.busy` answers.
#[derive(Debug)]
pub(in crate::sync) struct Scripts {
    pub(in crate::sync) acquire: &'static LazyScript,
    pub(in crate::sync) release: &'static LazyScript,
    /// Releases if no waiter is in the queue, which costs the server less. It answers `OTHERWISE`
    /// if that may not be so.
    pub(in crate::sync) release_alone: Option<&'static LazyScript>,
    /// Passes what a holder has to a waiter of its own process.
    pub(in crate::sync) pass: Option<&'static LazyScript>,
    /// Renews leases of several names.
    pub(in crate::sync) renew: &'static LazyScript,
}

/// Returns the script, which is parsed when it is first used.
pub(in crate::sync) fn parsed(script: &'static LazyScript) -> &'static Script {
    LazyLock::force(script)
}
