//! Translates errors of the driver and of the server into [`Error`].
//!
//! Invariant: an error has the fate `NotExecuted` only if that is proved. A command that was sent
//! and not answered is `Unknown`. Every layer that sends a command uses it.

use redis::{RedisError, ServerError};

use crate::error::{Error, ErrorKind, Fate};

/// Translates an error that the driver returned for a command that it had been given.
pub(crate) fn from_driver(error: RedisError) -> Error {
    if let Some(code) = error.code() {
        return explained(code, error.detail().unwrap_or_default());
    }
    if error.is_timeout() {
        return Error::new(ErrorKind::Timeout, "{server} did not answer in time")
            .with_fate(Fate::Unknown)
            .with_source(error);
    }
    if error.is_io_error() || error.is_connection_dropped() {
        return Error::new(
            ErrorKind::Disconnected,
            "the connection to {server} was lost before the reply came",
        )
        .with_source(error);
    }
    // The only reply lines that may be invalid UTF-8 are errors that quote our arguments. The
    // driver reports nothing else about the line, and ends the connection.
    if error.kind() == redis::ErrorKind::Parse && error.to_string().contains("invalid utf-8") {
        return Error::new(
            ErrorKind::Server,
            "{server} refused a command with an error that is not UTF-8; check that EVALSHA and the \
             other commands that hedgerow needs are not renamed or disabled",
        );
    }
    Error::new(
        ErrorKind::Server,
        "the reply of {server} was not understood",
    )
    .with_fate(Fate::Unknown)
    .with_quoting_source(error)
}

/// Translates an error reply.
pub(crate) fn from_server(error: &ServerError) -> Error {
    explained(error.code(), error.details().unwrap_or_default())
}

/// Recognises a server condition by its code (for `ERR`, by its text), and adds what to do.
fn explained(code: &str, detail: &str) -> Error {
    let (kind, advice) = match code {
        "OOM" => (
            ErrorKind::OutOfMemory,
            "{server} is at maxmemory and can evict nothing (OOM); raise maxmemory, or let a server that keeps no locks evict",
        ),
        "READONLY" => (
            ErrorKind::ReadOnly,
            "{server} is a read-only replica (READONLY); connect to the primary",
        ),
        "MISCONF" => (
            ErrorKind::Misconfigured,
            "{server} refuses writes because it cannot persist (MISCONF); look at its disk and its log",
        ),
        "LOADING" => (
            ErrorKind::Loading,
            "{server} is loading its data set (LOADING); try again when it has finished",
        ),
        "BUSY" => (
            ErrorKind::Busy,
            "{server} is busy running a script (BUSY); SCRIPT KILL or FUNCTION KILL ends it",
        ),
        "NOAUTH" => (
            ErrorKind::Unauthenticated,
            "{server} asks for credentials (NOAUTH); give user and password, in the URL or by ClientBuilder::credentials",
        ),
        "WRONGPASS" => (
            ErrorKind::Unauthenticated,
            "{server} does not accept user and password (WRONGPASS); check the credentials",
        ),
        "NOPERM" => (
            ErrorKind::Forbidden,
            "the ACL user may not do this at {server} (NOPERM); ACL LOG there names the missing rule",
        ),
        "WRONGTYPE" => (
            ErrorKind::WrongType,
            "a key at {server} holds another type (WRONGTYPE); something else writes keys of this namespace",
        ),
        "MASTERDOWN" => (
            ErrorKind::MasterDown,
            "{server} is a replica that has lost its primary and serves no stale data (MASTERDOWN); check the primary",
        ),
        "CLUSTERDOWN" => (
            ErrorKind::ClusterDown,
            "{server} reports that the cluster does not serve this slot (CLUSTERDOWN); check CLUSTER INFO",
        ),
        "TRYAGAIN" => (
            ErrorKind::ClusterDown,
            "the keys of one call are on their way from {server} to another (TRYAGAIN); try again when the slot has moved",
        ),
        "ERR" if is_stopped_by_a_move(detail) => return stopped_by_a_move(),
        "MOVED" | "ASK" => (
            ErrorKind::InvalidInput,
            "{server} is part of a cluster and serves other slots (MOVED); name the cluster with ClientBuilder::cluster",
        ),
        "CROSSSLOT" => (
            ErrorKind::CrossSlot,
            "the keys of one command lie in several slots (CROSSSLOT); this is a bug, please report it",
        ),
        "NOREPLICAS" => (
            ErrorKind::NoReplicas,
            "{server} has too few replicas for a write (NOREPLICAS); see min-replicas-to-write",
        ),
        "ERR" if detail.contains("max number of clients") => return too_many_clients(),
        "ERR" if detail.contains("not an integer") => return no_integer(),
        "ERR" if detail.contains("would overflow") => (
            ErrorKind::Overflow,
            "the counter would pass the end of i64; it is unchanged",
        ),
        // An ACL denial inside a script has no code, and its text differs between Redis versions.
        "ERR"
            if detail.contains("can't run this command")
                || detail.contains("can't publish to the channel")
                || detail.contains("ACL failure in script") =>
        {
            (
                ErrorKind::Forbidden,
                "the ACL user may not do this inside a script at {server} (NOPERM); ACL LOG there names the missing rule",
            )
        }
        _ => {
            // "unknown command" goes on to quote the arguments, which may be a value or a token.
            let detail = detail.split(", with args").next().unwrap_or_default();
            let error = Error::new(ErrorKind::Server, "{server} answered with an error");
            return match names_a_command(detail) {
                true => error.because(format!("{code} {detail}")),
                false => error.because_server_says(code, detail),
            };
        }
    };
    Error::new(kind, advice)
}

/// Whether an error of this text has stopped a script whose slot moves: it has used a key that is
/// not there any more, or such a key among others.
pub(crate) fn is_stopped_by_a_move(detail: &str) -> bool {
    // Valkey 9 begins the first with "Attempted", others with "Script attempted".
    detail.contains("access a non local key in a cluster")
        || detail.contains("accessed during rehashing of the slot")
}

/// The error if a script was stopped so. What it has done before stays done.
fn stopped_by_a_move() -> Error {
    let text = "{server} has stopped a script half way, because the slot of its keys moves to another server; try again when the slot has moved";
    Error::new(ErrorKind::ClusterDown, text).with_fate(Fate::Unknown)
}

/// Whether the text only says that the server does not know a command.
// Then it is safe to show: it holds no argument.
fn names_a_command(detail: &str) -> bool {
    let command = detail.strip_prefix("unknown command ").unwrap_or_default();
    let quoted = |quote| command.strip_prefix(quote)?.strip_suffix(quote);
    let command = quoted('\'').or_else(|| quoted('`')).unwrap_or_default();
    !command.is_empty()
        && command
            .bytes()
            .all(|byte| byte.is_ascii_uppercase() || byte == b'_')
}

/// The error if a key holds a string that is not an `i64`, or not in the form that Redis writes.
pub(crate) fn no_integer() -> Error {
    Error::new(
        ErrorKind::WrongType,
        "the key holds no integer at {server}; something else writes keys of this namespace",
    )
}

/// The error if a script found a key of another type, which it has left alone.
pub(crate) fn another_type(script: &str) -> Error {
    Error::new(
        ErrorKind::WrongType,
        format!(
            "{script} found a key of another type; something else writes keys of this namespace"
        ),
    )
}

/// The error if `maxclients` is reached. The server sends it on connect, before it executes
/// anything.
pub(crate) fn too_many_clients() -> Error {
    Error::new(
        ErrorKind::MaxClients,
        "{server} takes no more connections (maxclients); raise maxclients or close some",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_that_was_stopped_half_way_may_have_had_an_effect() {
        for said in [
            "Script attempted to access a non local key in a cluster node script: f",
            "Attempted to access a non local key in a cluster node script: on @user_script:1.",
            "Unable to execute command 'EXISTS' in script because undeclared keys were accessed \
             during rehashing of the slot script: f",
        ] {
            let error = explained("ERR", said);
            assert_eq!(error.kind(), ErrorKind::ClusterDown, "{said}");
            assert_eq!(error.fate(), Fate::Unknown, "{said}");
        }
        let refused = explained("TRYAGAIN", "Multiple keys request during rehashing of slot");
        assert_eq!(refused.fate(), Fate::NotExecuted);
    }
}
