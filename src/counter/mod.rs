//! Atomic counters.
//!
//! Invariant: counters are exact over all of `i64`. No value passes through a Lua number: a plain
//! add is the server's own `INCRBY`, and the scripts calculate with pairs of smaller numbers. A
//! refused add leaves the value unchanged.
//!
//! Scripted calls are logged at debug level with the target `hedgerow::counter`. The field
//! `counter` is the name, `status` the word that the script answered. Values are never logged.

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
/// ([`Error::is_indeterminate`]). With [`Add::once`] it can simply be made again.
///
/// If another version of hedgerow writes the counters of the namespace in another format, all calls
/// fail with `WrongType`, and nothing is changed.
#[derive(Clone)]
pub struct Counter {
    client: Client,
    name: Name,
    /// Built once. The first call returns `InvalidInput` if the name is invalid.
    key: Result<Key>,
}

impl Client {
    /// Returns the counter called `name`. If the name is invalid, the first call that uses the
    /// counter fails with `InvalidInput`.
    pub fn counter(&self, name: &str) -> Counter {
        Counter {
            client: self.clone(),
            name: self.name(name),
            key: self.namespace().counter(name),
        }
    }
}

impl Counter {
    /// Returns the value; 0 if the counter is absent.
    ///
    /// # Errors
    /// `WrongType` if the key of the counter holds something else. Otherwise the reason why the
    /// server did not answer.
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
    /// `WrongType` if the key of the counter holds something else. Otherwise the reason why the
    /// server did not answer. After an indeterminate error the call is not sent again, since it
    /// could undo what others did meanwhile.
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

    /// Reads the value and removes the counter in one step. Nothing that others add is lost in
    /// between.
    ///
    /// # Errors
    /// `WrongType` if the key of the counter holds something else. Otherwise the reason why the
    /// server did not answer. After an indeterminate error the value may be gone, unread.
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
        // Before the call: a counter in another format must not be touched.
        self.agree(Purpose::Write, deadline).await?;
        let reply = self
            .client
            .run(call, deadline)
            .await
            .map_err(|error| self.named(error))?;
        let status = reply.status()?;
        // The status only: values are never logged.
        tracing::debug!(target: "hedgerow::counter", counter = self.name.shown().as_str(), status, "answered");
        Ok(reply)
    }

    /// Makes sure that all clients write counters in the same format.
    async fn agree(&self, purpose: Purpose, deadline: Deadline) -> Result<()> {
        let agreed = self
            .client
            .agree(Written::Counters, self.key()?, purpose, deadline);
        agreed.await.map_err(|error| self.named(error))
    }

    fn key(&self) -> Result<&Key> {
        self.key.as_ref().map_err(|error| self.named(error.clone()))
    }

    /// Returns the error for a refusal, the same for all scripts.
    fn refused(&self, reply: &Reply) -> Error {
        match reply.status() {
            Ok("OVERFLOW") => self.named(Error::new(
                ErrorKind::Overflow,
                "the counter would pass the end of i64; it is unchanged",
            )),
            // As text: this value only becomes part of a message.
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
    /// Without the key, which would show the name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counter")
            .field("client", &self.client)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
