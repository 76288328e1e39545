//! Distributed primitives over Redis and Valkey that hold under failure.

mod codec;
mod error;
mod ttl;

pub use codec::{Codec, Compression};
pub use error::{Error, ErrorKind, Result};

#[doc(hidden)]
pub use codec::fuzzing;
