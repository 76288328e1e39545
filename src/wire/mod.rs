//! Translates between the driver and this crate: commands, replies and errors.
//!
//! Invariant: nothing here does I/O or knows a server. Every layer that speaks to Redis uses it.

pub(crate) mod command;
pub(crate) mod fault;
pub(crate) mod scan;
pub(crate) mod value;
