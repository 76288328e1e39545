//! Operations: checks of the servers before a service relies on them.
//!
//! Invariant: nothing here changes data on a server. Users call it directly; no primitive does.

mod acl;
pub mod preflight;
