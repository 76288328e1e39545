//! TODO: what it is, its invariant, who calls it.

pub(crate) mod acl;
pub(crate) mod preflight;
