//! A client as a whole: its calls, runtimes, errors and secrets.

mod brought;
mod calls;
mod canary;
mod close;
mod error_texts;
mod formats;
mod given_runtime;
mod hide_keys;
mod per_call;
mod runtime;
mod runtimes;
mod runtimes_random;
pub mod secrets;
mod server_conditions;
mod transient_conditions;
