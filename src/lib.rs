//! Distributed primitives over Redis and Valkey that hold under failure.

mod error;
mod ttl;

pub use error::{Error, ErrorKind, Result};
