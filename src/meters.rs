//! What this crate tells the `metrics` facade: counters, histograms and gauges. Without the feature
//! `metrics`, all of it is empty, and no clock is read.
//!
//! Invariant: a label is a name from the program or an address, never a key, so there are few. The
//! handles of one owner are registered together, when the first of them is used, and not by each
//! call. This is the only place where the facade is named. Caches, breakers, limiters and the faces
//! call this.

mod counts;
#[cfg(feature = "metrics")]
mod facade;
#[cfg(feature = "metrics")]
mod level;
#[cfg(not(feature = "metrics"))]
mod none;

pub(crate) use counts::{Count, counts};
#[cfg(feature = "metrics")]
pub(crate) use facade::{Meters, Raised, Tally, Timer};
#[cfg(feature = "metrics")]
pub(crate) use level::Level;
#[cfg(not(feature = "metrics"))]
pub(crate) use none::{Level, Meters, Raised, Tally, Timer};

/// The labels of a meter.
pub(crate) type Labels<'l> = &'l [(&'static str, &'l str)];

/// The name of a meter, and what it is for.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(feature = "metrics"), expect(dead_code))]
pub(crate) struct Described {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
}
