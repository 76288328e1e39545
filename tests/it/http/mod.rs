//! Layers for tower services.

#[cfg(feature = "limit")]
mod limit_groups;
#[cfg(feature = "limit")]
mod limits;
mod pages;
