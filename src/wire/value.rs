//! Replies of plain commands, read as Rust values.
//!
//! Invariant: a reply of an unexpected shape is an error, never a default. The error does not quote
//! the reply, which may be a value of the user. Counters, scripts and preflight
//! use it.

use redis::{FromRedisValue, Value, from_redis_value};

use super::fault::{from_server, no_integer};
use crate::error::{Error, ErrorKind, Result};

/// Reads a reply that is an integer, or a string that Redis accepts as one. Nil is `None`.
pub(crate) fn integer(value: Value) -> Result<Option<i64>> {
    match value {
        Value::Int(number) => Ok(Some(number)),
        Value::Nil => Ok(None),
        Value::ServerError(error) => Err(from_server(&error)),
        Value::BulkString(bytes) => {
            let text = std::str::from_utf8(&bytes).unwrap_or_default();
            let number: Option<i64> = text.parse().ok();
            // Rust also parses "+1" and "007", which `INCRBY` refuses. All calls must agree on what
            // an integer is.
            match number.filter(|number| number.to_string() == text) {
                Some(number) => Ok(Some(number)),
                None => Err(no_integer()),
            }
        }
        other => Err(malformed("a plain command", 0, &other)),
    }
}

/// Reads a reply as a `T`.
///
/// # Errors
/// The error that the server reported, or `Server` if the reply is not a `T`.
pub(crate) fn parsed<T: FromRedisValue>(reply: Value) -> Result<T> {
    if let Value::ServerError(error) = &reply {
        return Err(from_server(error));
    }
    from_redis_value(reply)
        .map_err(|_| Error::new(ErrorKind::Server, "the server answered in an unknown form"))
}

/// The error for a reply part of the wrong type. It names the part, and not its content, which may
/// be a value of the user.
pub(crate) fn malformed(script: &str, index: usize, value: &Value) -> Error {
    let found = match value {
        Value::Nil => "nil",
        Value::Int(_) => "an integer",
        Value::BulkString(_) | Value::SimpleString(_) | Value::Okay => "a string",
        Value::Array(_) => "an array",
        _ => "another type",
    };
    Error::new(
        ErrorKind::Server,
        format!(
            "{script} answered {found} at position {index}, which this version does not expect"
        ),
    )
}
