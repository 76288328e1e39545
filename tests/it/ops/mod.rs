//! What a service asks before it relies on its servers.

mod acl;
mod preflight;
