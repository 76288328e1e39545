//! TODO: what it is, its invariant, who calls it.

pub(crate) mod core;
pub(crate) mod fence;
pub(crate) mod lock;
pub(crate) mod loss;
