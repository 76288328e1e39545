//! Plain commands, as the driver takes them.
//!
//! Invariant: a command names one key first, so that it can be routed by it.

use crate::key::Key;

/// A plain command on one key.
pub(crate) fn plain(name: &str, key: &Key) -> redis::Cmd {
    // With room for a number behind it, so that no part grows step by step.
    let bytes = name.len() + key.as_str().len() + 24;
    let mut command = redis::Cmd::with_capacity(4, bytes);
    command.arg(name).arg(key.as_str());
    command
}
