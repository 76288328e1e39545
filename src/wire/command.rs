//! Plain commands, as the driver takes them.
//!
//! Invariant: the first argument of a command is its one key, which routes it. Counters,
//! uploads of large entries, format checks and preflight build their plain commands with it.

use crate::key::Key;

/// A plain command on one key.
pub(crate) fn plain(name: &str, key: &Key) -> redis::Cmd {
    // Space for the name, the key and one number, so that the buffer is allocated once.
    let bytes = name.len() + key.as_str().len() + 24;
    let mut command = redis::Cmd::with_capacity(4, bytes);
    command.arg(name).arg(key.as_str());
    command
}
