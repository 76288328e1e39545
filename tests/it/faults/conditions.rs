//! (see the table)
