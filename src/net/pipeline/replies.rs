//! Reads as commands, and their replies by key.
//!
//! Invariant: each key gets its own answer. An error of the server about one key, or about the
//! command on all of them, is neither a value nor a missing value.
//!
//! [`Batch`](super::batch::Batch) and [`Pipeliner`](super::pipeliner::Pipeliner) use it.

use bytes::Bytes;
use redis::{Cmd, Pipeline, ServerError, Value};
use tokio::sync::oneshot;

use crate::error::{Error, ErrorKind, Fate, Result};
use crate::key::Key;
use crate::wire::fault::from_server;

/// What a read found, in the order of its keys: for each a value, `None`, or the error of the
/// server about reading this key here.
pub(crate) type KeyReplies = Vec<KeyReply>;
pub(crate) type KeyReply = Result<Option<Bytes>, ServerError>;

/// What a read found, in the order of its keys, if the server reported no error.
pub(crate) type Values = Vec<Option<Bytes>>;

/// Where the answer to one caller goes.
pub(crate) type Reply<T, E = Error> = oneshot::Sender<Result<T, E>>;

/// How a read of several keys is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MultiGet {
    /// As one command: the server holds all keys.
    Together,
    /// As one command for each key, because a cluster refuses a command on keys of several slots.
    OneByOne,
}

/// One command that reads `keys`.
pub(crate) fn mget(keys: &[Key]) -> Cmd {
    let mut command = Cmd::with_capacity(keys.len() + 1, keys.len() * 40 + 4);
    command.arg(if keys.len() == 1 { "GET" } else { "MGET" });
    for key in keys {
        command.arg(key.as_str());
    }
    command
}

/// One command for each of `keys`.
pub(crate) fn gets(keys: &[Key]) -> Pipeline {
    let mut pipeline = Pipeline::with_capacity(keys.len());
    for key in keys {
        pipeline.add_command(mget(std::slice::from_ref(key)));
    }
    pipeline
}

/// The replies by key of one `GET` or `MGET` of `count` keys.
pub(crate) fn together(value: Value, count: usize) -> Result<KeyReplies> {
    match value {
        Value::Array(values) => cells(values, count),
        // The server refused the whole command, so the error holds for each key.
        Value::ServerError(error) if count > 1 => Ok(vec![Err(error); count]),
        value => cells([value], count),
    }
}

/// The replies by key of `count` values.
pub(crate) fn cells(values: impl IntoIterator<Item = Value>, count: usize) -> Result<KeyReplies> {
    let cells: KeyReplies = values.into_iter().map(cell).collect::<Result<_>>()?;
    match cells.len() == count {
        true => Ok(cells),
        false => Err(short()),
    }
}

/// The reply for one key.
pub(crate) fn cell(value: Value) -> Result<KeyReply> {
    match value {
        Value::BulkString(bytes) => Ok(Ok(Some(bytes.into()))),
        Value::Nil => Ok(Ok(None)),
        // `GET` answers WRONGTYPE where `MGET` answers nil. Both count as missing.
        Value::ServerError(error) if error.code() == "WRONGTYPE" => Ok(Ok(None)),
        Value::ServerError(error) => Ok(Err(error)),
        _ => Err(Error::new(
            ErrorKind::Server,
            "{server} answered a read with another type than a string",
        )),
    }
}

/// The values of replies. Fails with the first error of the server, if there is any.
pub(crate) fn values(cells: KeyReplies) -> Result<Values> {
    let read = |cell: KeyReply| cell.map_err(|error| from_server(&error));
    cells.into_iter().map(read).collect()
}

/// How many bytes the value of a reply has.
pub(crate) fn size(cell: &KeyReply) -> usize {
    match cell {
        Ok(Some(bytes)) => bytes.len(),
        _ => 0,
    }
}

/// The error if replies are missing. The commands may have been executed.
pub(crate) fn short() -> Error {
    Error::new(
        ErrorKind::Server,
        "{server} answered fewer commands than were sent",
    )
    .with_fate(Fate::Unknown)
}
