//! TODO: what it is, its invariant, who calls it.

pub(crate) mod bounded;
pub(crate) mod tapped;
pub(crate) mod traffic;
