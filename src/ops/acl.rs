//! The rights that an ACL user needs: the rule, and harmless calls that show whether they are
//! granted.
//!
//! Invariant: the rule is derived from the list of those calls, so that the rights that are asked
//! for are the rights that are tried. A test compares the list with every command in the sources,
//! so that the rule is neither too small nor too large. `preflight` makes the calls.

use crate::client::Client;
use crate::error::{Error, Result};
use crate::key::{Key, Namespace};

impl Client {
    /// Returns the fewest rights that a client of `namespace` needs, as the rule of `ACL SETUSER
    /// name on >password <rule>`.
    ///
    /// The rule takes back what the user could do before, except for its passwords. The commands
    /// are those that the crate sends, by themselves or inside scripts, to one server or to a
    /// cluster. It is one rule for all topologies and for all primitives. Sentinels have [their
    /// own](Self::required_sentinel_acl). `HELLO` and `AUTH` need no right.
    ///
    /// [`preflight`](Self::preflight) reports which rights a user lacks.
    ///
    /// ```
    /// let rule = hedgerow::Client::required_acl("shop")?;
    /// assert!(rule.starts_with("clearselectors resetkeys resetchannels -@all ~shop:* &shop:* +"));
    /// # Ok::<(), hedgerow::Error>(())
    /// ```
    ///
    /// # Errors
    /// `InvalidInput` if `namespace` is invalid, or has blanks, which no ACL pattern can spell.
    pub fn required_acl(namespace: &str) -> Result<String> {
        let namespace = Namespace::new(namespace)?;
        let pattern = pattern(&namespace)?;
        let rights = TRIALS.iter().map(|trial| format!(" +{}", right(trial)));
        let commands: String = rights.collect();
        Ok(format!(
            "clearselectors resetkeys resetchannels -@all ~{pattern} &{pattern}{commands}"
        ))
    }

    /// Returns the fewest rights that a client needs on sentinels, as a rule for `ACL SETUSER`
    /// there.
    pub fn required_sentinel_acl() -> &'static str {
        "clearselectors resetkeys resetchannels -@all &+switch-master +ping +client|setname +subscribe \
         +sentinel|master +sentinel|get-master-addr-by-name +sentinel|replicas"
    }

    /// Returns the rights that [`preflight`](Self::preflight) needs beyond
    /// [`required_acl`](Self::required_acl), to be appended to that rule. Without them `preflight`
    /// checks less, and reports what it did not check.
    pub fn preflight_acl() -> &'static str {
        "+config|get"
    }
}

/// Returns the glob that matches what begins with the namespace, and nothing else.
pub(crate) fn pattern(namespace: &Namespace) -> Result<String> {
    let prefix = namespace.as_str();
    if prefix.contains(' ') {
        return Err(Error::invalid(
            "the namespace has blanks, which no ACL pattern can spell; choose another for an ACL user",
        ));
    }
    let mut pattern = String::with_capacity(prefix.len() + 2);
    for character in prefix.chars() {
        // Otherwise a namespace with a wildcard would open the keys of others.
        if ['*', '?', '[', ']', '\\'].contains(&character) {
            pattern.push('\\');
        }
        pattern.push(character);
    }
    Ok(pattern + ":*")
}

/// Returns the right that a trial needs, in the syntax of ACL rules.
pub(crate) fn right(trial: &str) -> String {
    let mut words = trial.split(' ');
    let command = words.next().unwrap_or_default().to_lowercase();
    match words.next() {
        // Only these are granted by subcommand; the second word of other trials is an argument.
        Some(sub) if ["client", "cluster"].contains(&command.as_str()) => {
            format!("{command}|{}", sub.to_lowercase())
        }
        _ => command,
    }
}

/// Builds the command of a trial, on a key and channel that nobody uses.
pub(crate) fn trial_call(trial: &str, key: &Key) -> redis::Cmd {
    let mut call = redis::Cmd::new();
    for word in trial.split(' ') {
        call.arg(match word {
            "KEY" | "CHANNEL" => key.as_str(),
            "LUA" => "#!lua flags=no-writes\nreturn 1",
            word => word,
        });
    }
    call
}

/// One call of each command. It changes nothing if `KEY` does not exist, nobody listens to
/// `CHANNEL`, and `LUA` writes nothing. The server checks the rights before it finds that there is
/// nothing to do, or that the arguments are invalid.
pub(crate) const TRIALS: &[&str] = &[
    // For connections and topologies.
    "PING",
    "SELECT none",
    "CLIENT SETNAME no\tname",
    "CLIENT TRACKING none",
    "CLUSTER SLOTS",
    "CLUSTER NODES",
    "ASKING",
    "ROLE",
    "INFO replication",
    "WAIT none 0",
    "SSUBSCRIBE CHANNEL",
    // Sent by themselves.
    "GET KEY",
    "MGET KEY",
    "PEXPIREAT KEY none",
    "SCAN none",
    "INCRBY KEY none",
    "EVAL LUA 0",
    "EVAL_RO LUA 0",
    "EVALSHA 0 1 KEY",
    "EVALSHA_RO 0 1 KEY",
    // Inside scripts.
    "DEL KEY",
    "EXISTS KEY",
    "GETRANGE KEY 0 0",
    "HDEL KEY field",
    "HGET KEY field",
    "HGETALL KEY",
    "HKEYS KEY",
    "HLEN KEY",
    "HMGET KEY field",
    "HSET KEY field value odd",
    "PEXPIRE KEY none",
    "PTTL KEY",
    "RENAME KEY KEY",
    "SET KEY value XX GET",
    "SETRANGE KEY none value",
    "SPUBLISH CHANNEL hello",
    "STRLEN KEY",
    "TIME",
    "TYPE KEY",
    "UNLINK KEY",
    "ZADD KEY none member",
    "ZCOUNT KEY 0 0",
    "ZRANGE KEY 0 0",
    "ZRANK KEY member",
    "ZREM KEY member",
    "ZSCORE KEY member",
];
