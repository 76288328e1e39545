//! Rate limits.

mod check;
mod group;
mod outage;
pub mod processes;
mod refusals;
mod script;
mod script_model;
mod until_ready;
