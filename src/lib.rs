//! Distributed primitives over Redis and Valkey that hold under failure.

mod client;
mod codec;
mod error;
mod key;
mod lock;
mod script;
mod ttl;

#[cfg(feature = "embedded")]
pub use client::embedded;
pub use client::{Client, ClientBuilder};
#[doc(hidden)]
pub use codec::fuzzing;
pub use codec::{Codec, Compression};
pub use error::{Error, ErrorKind, Result};
pub use key::slot;
pub use lock::{Fence, Guard, Holder, Lock, LockInfo, LossReason, Waiter};
