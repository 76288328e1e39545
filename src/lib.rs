//! Distributed primitives over Redis and Valkey that hold under failure.

mod cache;
mod client;
mod codec;
mod counter;
mod error;
mod key;
mod lock;
mod script;
mod tags;
mod ttl;

pub use cache::{Cache, Memoize, Set};
#[cfg(feature = "embedded")]
pub use client::embedded;
pub use client::{Client, ClientBuilder};
#[doc(hidden)]
pub use codec::fuzzing;
pub use codec::{Codec, Compression};
pub use counter::{Add, Added, Counter};
pub use error::{Error, ErrorKind, Result};
pub use key::slot;
pub use lock::{Fence, Guard, Holder, Lock, LockInfo, LossReason, Waiter};
