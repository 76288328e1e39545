//! What an ACL user needs: the rule, and harmless calls that show whether it is granted.
//!
//! Invariant: the rule is derived from the list of those calls, so what is asked for and what is
//! tried is the same. A test holds the list against every command in the sources, so that the rule
//! is neither too small nor too large.

use crate::client::Client;
use crate::error::{Error, Result};
use crate::key::{Key, Namespace};

impl Client {
    /// The least that a client of `namespace` needs of its ACL user, as the rule of
    /// `ACL SETUSER name on >password <rule>`.
    ///
    /// It takes back what the user could do before, except for its passwords. The commands are
    /// those that the crate sends, by themselves or inside scripts, to one server or to a cluster:
    /// one rule for all topologies, and for all primitives. Sentinels have [their
    /// own](Self::required_sentinel_acl). `HELLO` and `AUTH` need no right.
    ///
    /// [`preflight`](Self::preflight) tells what a user lacks.
    ///
    /// ```
    /// let rule = hedgerow::Client::required_acl("shop")?;
    /// assert!(rule.starts_with("clearselectors resetkeys resetchannels -@all ~shop:* &shop:* +"));
    /// # Ok::<(), hedgerow::Error>(())
    /// ```
    ///
    /// # Errors
    /// `InvalidInput` when `namespace` is none, or has blanks, which no ACL pattern can spell.
    pub fn required_acl(namespace: &str) -> Result<String> {
        let namespace = Namespace::new(namespace)?;
        let pattern = pattern(&namespace)?;
        let rights = TRIALS.iter().map(|trial| format!(" +{}", right(trial)));
        let commands: String = rights.collect();
        Ok(format!(
            "clearselectors resetkeys resetchannels -@all ~{pattern} &{pattern}{commands}"
        ))
    }

    /// The least that a client needs of its user on sentinels, as a rule for `ACL SETUSER` there.
    pub fn required_sentinel_acl() -> &'static str {
        "clearselectors resetkeys resetchannels -@all &+switch-master +ping +client|setname +subscribe \
         +sentinel|master +sentinel|get-master-addr-by-name +sentinel|replicas"
    }

    /// What [`preflight`](Self::preflight) asks beyond [`required_acl`](Self::required_acl), as
    /// more of the same rule. A user without it is told less about the server, and told so.
    pub fn preflight_acl() -> &'static str {
        "+config|get"
    }
}

/// The glob that matches what begins with the namespace, and nothing else.
pub(crate) fn pattern(namespace: &Namespace) -> Result<String> {
    let prefix = namespace.as_str();
    if prefix.contains(' ') {
        return Err(Error::invalid(
            "the namespace has blanks, which no ACL pattern can spell; choose another for an ACL user",
        ));
    }
    let mut pattern = String::with_capacity(prefix.len() + 2);
    for character in prefix.chars() {
        if ['*', '?', '[', ']', '\\'].contains(&character) {
            pattern.push('\\');
        }
        pattern.push(character);
    }
    Ok(pattern + ":*")
}

/// What a trial needs, as an ACL rule spells it.
pub(crate) fn right(trial: &str) -> String {
    let mut words = trial.split(' ');
    let command = words.next().unwrap_or_default().to_lowercase();
    match words.next() {
        Some(sub) if ["client", "cluster"].contains(&command.as_str()) => {
            format!("{command}|{}", sub.to_lowercase())
        }
        _ => command,
    }
}

/// A trial as a command, on a key and channel that nobody uses.
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

/// A call of each command, which changes nothing where `KEY` does not exist, nobody listens to
/// `CHANNEL`, and `LUA` writes nothing: the server looks at the rights before it finds that there
/// is nothing to do, or that the arguments are none.
pub(crate) const TRIALS: &[&str] = &[
    // Of connections and topologies.
    "PING",
    "SELECT none",
    "CLIENT SETNAME no\tname",
    "CLUSTER SLOTS",
    "CLUSTER NODES",
    "ASKING",
    "ROLE",
    "INFO replication",
    "SSUBSCRIBE CHANNEL",
    // Sent by themselves.
    "GET KEY",
    "MGET KEY",
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
];
