//! Layers for tower services.

mod pages;
