//! The driver's words in ours: commands, replies and what goes wrong.
//!
//! Nothing here does I/O or knows a server. Every layer above that speaks to Redis uses it.

pub(crate) mod command;
pub(crate) mod fault;
pub(crate) mod value;
