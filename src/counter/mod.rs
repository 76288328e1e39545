//! Atomic counters.
//!
//! Invariant: exact over all of `i64`. No value passes through a Lua number: a plain add is the
//! server's own `INCRBY`, and the scripts calculate on pairs of smaller numbers. A refused add
//! leaves the value as it is.
//!
//! Scripted calls are logged at debug level with the target `hedgerow::counter`: `counter` is the
//! name, `status` the word that the script answered. Values are never logged.

mod add;

use std::fmt;

pub use add::{Add, Added};

use crate::client::{Client, Purpose, Request, Written};
use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;
use crate::name::Name;
use crate::script::{Call, Reply, Retry, script};
use crate::time::{Deadline, Patience};
use crate::wire::fault::no_integer;
use crate::wire::{command::plain, value::integer};

script!(ADD = "add.lua" after "prelude.lua");
script!(ADD_ONCE = "add_once.lua" after "prelude.lua");
script!(SET = "set.lua" after "prelude.lua");
script!(TAKE = "take.lua" after "prelude.lua");

/// A named counter, made by [`Client::counter`]: an `i64` on the server, 0 while it is absent.
///
/// Every acknowledged add is counted exactly once. An add whose reply was lost says so
/// ([`Error::is_indeterminate`]); with [`Add::once`] it can simply be made again.
///
/// Where another version of hedgerow writes the counters of the namespace in another format, all
/// calls fail with `WrongType`, and nothing is changed.
#[derive(Clone)]
pub struct Counter {
    client: Client,
    name: Name,
    /// Spelt once; the first call returns `InvalidInput` if the name is invalid.
    key: Result<Key>,
}

impl Client {
    /// The counter called `name`. A bad name is an error of the first call that uses the counter.
    pub fn counter(&self, name: &str) -> Counter {
        Counter {
            client: self.clone(),
            name: self.name(name),
            key: self.namespace().counter(name),
        }
    }
}

impl Counter {
    /// The value; 0 if the counter is absent.
    ///
    /// # Errors
    /// `WrongType` when something else is in its place; else what kept the server from answering.
    ///
    /// # Cancel safety
    /// Safe: reads only.
    pub fn get(&self) -> Request<'_, i64> {
        Request::new(self.client.patience(), |patience| self.read(patience))
    }

    async fn read(&self, patience: Patience) -> Result<i64> {
        let key = self.key()?;
        let command = plain("GET", key);
        let deadline = patience.deadline();
        self.agree(Purpose::Read, deadline).await?;
        let value = self
            .client
            .command(command, key, Retry::Reads, deadline)
            .await;
        let value = value.and_then(integer).map_err(|error| self.named(error))?;
        Ok(value.unwrap_or(0))
    }

    /// Sets the value. A TTL stays as it is; a counter that is created has none.
    ///
    /// # Errors
    /// `WrongType` when something else is in its place; else what kept the server from answering.
    /// Not sent again after an indeterminate error: it could undo what others did since.
    ///
    /// # Cancel safety
    /// The value is set or not.
    pub fn set(&self, value: i64) -> Request<'_, ()> {
        Request::new(self.client.patience(), move |patience| async move {
            let call = SET.call([self.key()?]).arg(value);
            let reply = self.run(call, patience).await?;
            match reply.status()? {
                "SET" => Ok(()),
                _ => Err(self.refused(&reply)),
            }
        })
    }

    /// Reads the value and removes the counter: nothing that others add is lost between the two.
    ///
    /// # Errors
    /// `WrongType` when something else is in its place; else what kept the server from answering.
    /// After an indeterminate error the value may be gone, unread.
    ///
    /// # Cancel safety
    /// Not safe: a dropped call may have removed the counter.
    pub fn take(&self) -> Request<'_, i64> {
        Request::new(self.client.patience(), move |patience| async move {
            let call = TAKE.call([self.key()?]);
            let reply = self.run(call, patience).await?;
            match reply.status()? {
                "TAKEN" => reply.int(1),
                _ => Err(self.refused(&reply)),
            }
        })
    }

    /// Runs a script on this counter.
    async fn run(&self, call: Call, patience: Patience) -> Result<Reply> {
        let deadline = patience.deadline();
        self.agree(Purpose::Write, deadline).await?;
        let reply = self
            .client
            .run(call, deadline)
            .await
            .map_err(|error| self.named(error))?;
        let status = reply.status()?;
        tracing::debug!(target: "hedgerow::counter", counter = self.name.shown().as_str(), status, "answered");
        Ok(reply)
    }

    /// Sees to it that all clients write counters in one format.
    async fn agree(&self, purpose: Purpose, deadline: Deadline) -> Result<()> {
        let agreed = self
            .client
            .agree(Written::Counters, self.key()?, purpose, deadline);
        agreed.await.map_err(|error| self.named(error))
    }

    fn key(&self) -> Result<&Key> {
        self.key.as_ref().map_err(|error| self.named(error.clone()))
    }

    /// The error of a refusal that the scripts share.
    fn refused(&self, reply: &Reply) -> Error {
        match reply.status() {
            Ok("OVERFLOW") => self.named(Error::new(
                ErrorKind::Overflow,
                "the counter would pass the end of i64; it is unchanged",
            )),
            Ok("OUT_OF_RANGE") => {
                let value = reply.text(1).unwrap_or("unknown");
                self.named(Error::new(
                    ErrorKind::OutOfRange,
                    format!("the counter is at {value} and would leave its range; it is unchanged"),
                ))
            }
            Ok("NOT_A_NUMBER") => self.named(no_integer()),
            _ => self.named(reply.unexpected()),
        }
    }

    fn named(&self, error: Error) -> Error {
        error.with_key(&self.name)
    }
}

impl fmt::Debug for Counter {
    /// Without the key, which shows the name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counter")
            .field("client", &self.client)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
