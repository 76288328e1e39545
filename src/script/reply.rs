//! `Reply`: typed access to the answer of a script.
//!
//! Invariant: a reply of an unexpected shape is an error that names the script, never a default.
//!
//! The client makes one for each call, and the owner of the script reads it.

use bytes::Bytes;
use redis::Value;
use tokio::time::Instant;

use crate::error::{Error, ErrorKind, Result};
use crate::wire::fault::another_type;
use crate::wire::value::malformed;

/// The answer of a script: an array whose first element is a status word, or that word alone, which
/// is cheaper for the server.
#[derive(Debug)]
pub(crate) struct Reply {
    script: &'static str,
    /// An array, or a status word alone.
    value: Value,
    sent: Instant,
}

impl Reply {
    /// The answer to a call that was not sent before `sent`.
    pub(crate) fn new(script: &'static str, value: Value, sent: Instant) -> Result<Self> {
        match value {
            Value::Array(_) | Value::BulkString(_) => Ok(Self {
                script,
                value,
                sent,
            }),
            other => Err(malformed(script, 0, &other)),
        }
    }

    fn parts(&self) -> &[Value] {
        match &self.value {
            Value::Array(parts) => parts,
            word => std::slice::from_ref(word),
        }
    }

    /// An instant at which the call had not been sent yet. What the script grants for a time counts
    /// from here, so it does not matter how long the call waited to be sent, or for a connection.
    pub(crate) fn sent(&self) -> Instant {
        self.sent
    }

    /// The status word.
    pub(crate) fn status(&self) -> Result<&str> {
        match self.parts().first() {
            Some(Value::BulkString(bytes)) => {
                std::str::from_utf8(bytes).map_err(|_| self.malformed(0))
            }
            Some(Value::SimpleString(text)) => Ok(text),
            Some(Value::Okay) => Ok("OK"),
            _ => Err(self.malformed(0)),
        }
    }

    /// A number that a Lua number represents exactly.
    pub(crate) fn int(&self, index: usize) -> Result<i64> {
        match self.parts().get(index) {
            Some(Value::Int(number)) => Ok(*number),
            _ => self.text(index)?.parse().map_err(|_| self.malformed(index)),
        }
    }

    /// A non-negative number.
    pub(crate) fn count(&self, index: usize) -> Result<u64> {
        u64::try_from(self.int(index)?).map_err(|_| self.malformed(index))
    }

    /// The text at `index`.
    pub(crate) fn text(&self, index: usize) -> Result<&str> {
        match self.parts().get(index) {
            Some(Value::BulkString(bytes)) => {
                std::str::from_utf8(bytes).map_err(|_| self.malformed(index))
            }
            Some(Value::SimpleString(text)) => Ok(text),
            _ => Err(self.malformed(index)),
        }
    }

    /// Takes the bytes at `index` out of the reply; nil is `None`.
    pub(crate) fn take_bytes(&mut self, index: usize) -> Result<Option<Bytes>> {
        let part = match &mut self.value {
            Value::Array(parts) => parts.get_mut(index),
            word => Some(word).filter(|_| index == 0),
        };
        // Taken and not copied: a value may be large.
        match part.map(std::mem::take) {
            Some(Value::BulkString(bytes)) => Ok(Some(bytes.into())),
            Some(Value::Nil) => Ok(None),
            _ => Err(self.malformed(index)),
        }
    }

    /// How many parts the answer has, with the status word.
    pub(crate) fn len(&self) -> usize {
        self.parts().len()
    }

    /// The error for a status that the caller does not handle: a condition that all scripts share,
    /// or an unknown word.
    pub(crate) fn unexpected(&self) -> Error {
        match self.status() {
            Ok("WRONGTYPE") => another_type(self.script),
            Ok("FORMAT") => Error::new(
                ErrorKind::WrongType,
                format!(
                    "{} found format {} of another version of hedgerow; run versions of one format \
                     in a namespace",
                    self.script,
                    self.text(1).unwrap_or("?")
                ),
            ),
            Ok(status) => Error::new(
                ErrorKind::Server,
                format!(
                    "{} answered {status}, which this version does not know",
                    self.script
                ),
            ),
            Err(error) => error,
        }
    }

    fn malformed(&self, index: usize) -> Error {
        malformed(
            self.script,
            index,
            self.parts().get(index).unwrap_or(&Value::Nil),
        )
    }
}
