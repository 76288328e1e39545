//! Operations: what a service asks of its servers before it relies on them.

mod acl;
pub mod preflight;
