//! Counters.

mod counter_loss;
mod counter_model;
mod counter_terms;
mod values;
