//! Cells: what reads are made of on the wire, and what their replies come to.
//!
//! Invariant: each key gets its own answer. What the server has against one key, or against the
//! command on all of them, is no value and not the absence of one.

use bytes::Bytes;
use redis::{Cmd, Pipeline, ServerError, Value};
use tokio::sync::oneshot;

use crate::error::{Error, ErrorKind, Fate, Result};
use crate::key::Key;
use crate::wire::fault::from_server;

/// What a read found, in the order of its keys: a value, nothing, or what the server has against
/// reading this key here.
pub(crate) type KeyReplies = Vec<KeyReply>;
pub(crate) type KeyReply = Result<Option<Bytes>, ServerError>;

/// What a read found, in the order of its keys, when the server has nothing against it.
pub(crate) type Values = Vec<Option<Bytes>>;

/// Where the answer to one caller goes.
pub(crate) type Reply<T, E = Error> = oneshot::Sender<Result<T, E>>;

/// How reads of several keys travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MultiGet {
    /// As one command: the server holds all keys.
    Together,
    /// As one command for each key: the server takes no command on keys of several slots.
    OneByOne,
}

pub(crate) fn mget(keys: &[Key]) -> Cmd {
    let mut command = Cmd::with_capacity(keys.len() + 1, keys.len() * 40 + 4);
    command.arg(if keys.len() == 1 { "GET" } else { "MGET" });
    for key in keys {
        command.arg(key.as_str());
    }
    command
}

pub(crate) fn gets(keys: &[Key]) -> Pipeline {
    let mut pipeline = Pipeline::with_capacity(keys.len());
    for key in keys {
        pipeline.add_command(mget(std::slice::from_ref(key)));
    }
    pipeline
}

/// The cells of a `GET` or `MGET` of `count` keys.
pub(crate) fn together(value: Value, count: usize) -> Result<KeyReplies> {
    match value {
        Value::Array(values) => cells(values, count),
        // What the server has against the command it has against each key.
        Value::ServerError(error) if count > 1 => Ok(vec![Err(error); count]),
        value => cells([value], count),
    }
}

pub(crate) fn cells(values: impl IntoIterator<Item = Value>, count: usize) -> Result<KeyReplies> {
    let cells: KeyReplies = values.into_iter().map(cell).collect::<Result<_>>()?;
    match cells.len() == count {
        true => Ok(cells),
        false => Err(short()),
    }
}

pub(crate) fn cell(value: Value) -> Result<KeyReply> {
    match value {
        Value::BulkString(bytes) => Ok(Ok(Some(bytes.into()))),
        Value::Nil => Ok(Ok(None)),
        // GET says WRONGTYPE where MGET says nil; one rule for both.
        Value::ServerError(error) if error.code() == "WRONGTYPE" => Ok(Ok(None)),
        Value::ServerError(error) => Ok(Err(error)),
        _ => Err(Error::new(
            ErrorKind::Server,
            "{server} answered a read with another type than a string",
        )),
    }
}

/// The values of cells, none of which may be a refusal.
pub(crate) fn values(cells: KeyReplies) -> Result<Values> {
    let read = |cell: KeyReply| cell.map_err(|error| from_server(&error));
    cells.into_iter().map(read).collect()
}

/// How many bytes a cell has.
pub(crate) fn size(cell: &KeyReply) -> usize {
    match cell {
        Ok(Some(bytes)) => bytes.len(),
        _ => 0,
    }
}

pub(crate) fn short() -> Error {
    Error::new(
        ErrorKind::Server,
        "{server} answered fewer commands than were sent",
    )
    .with_fate(Fate::Unknown)
}
