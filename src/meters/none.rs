//! Meters without the feature `metrics`: nothing.

use std::marker::PhantomData;
use std::sync::Arc;

use super::{Described, Labels};

#[derive(Debug)]
pub(crate) struct Meters;

#[derive(Debug)]
pub(crate) struct Tally;

#[derive(Debug)]
pub(crate) struct Timer<'m>(PhantomData<&'m Meters>);

#[derive(Debug)]
pub(crate) struct Level;

#[derive(Debug)]
pub(crate) struct Raised;

impl Meters {
    pub(crate) fn new(
        _: Labels<'_>,
        _: &'static [Described],
        _: &'static [Described],
    ) -> Arc<Self> {
        Arc::new(Self)
    }

    #[expect(clippy::unused_self)]
    pub(crate) fn tally(self: &Arc<Self>, _: usize) -> Tally {
        Tally
    }

    #[expect(clippy::unused_self)]
    pub(crate) fn time(&self, _: usize) -> Timer<'_> {
        Timer(PhantomData)
    }
}

impl Timer<'_> {
    #[expect(clippy::unused_self)]
    pub(crate) fn stop(self) {}
}

impl Tally {
    #[expect(clippy::unused_self)]
    pub(crate) fn more(&self, _: u64) {}
}

impl Level {
    pub(crate) fn new(_: Labels<'_>, _: Described) -> Self {
        Self
    }

    #[expect(clippy::unused_self)]
    pub(crate) fn set(&self, _: u64) {}
}

impl Raised {
    pub(crate) fn new(_: Labels<'_>, _: Described) -> Self {
        Self
    }
}
