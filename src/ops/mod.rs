//! Operations: checks of the servers before a service relies on them, and its end.
//!
//! Invariant: nothing here changes data on a server. Users call it directly; no primitive does.

mod acl;
mod close;
pub mod preflight;
