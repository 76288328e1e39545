//! The one integration binary: a topic a file.

mod fuzz_corpora;
