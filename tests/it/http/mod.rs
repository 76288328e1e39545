//! Layers for tower services.

#[cfg(feature = "limit")]
mod limits;
mod pages;
