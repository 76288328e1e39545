//! What is stored, read back.

mod corpora;
