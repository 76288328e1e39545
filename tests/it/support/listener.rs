//! Hears all that the crate tells through `tracing`.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::dispatcher::{Dispatch, set_default};
use tracing::field::{Field, Visit};
use tracing::subscriber::{DefaultGuard, NoSubscriber};
use tracing::{Event, Metadata, Subscriber, span};

/// Writes everything down that is told on this thread, as long as it lives.
pub struct Listener {
    told: Arc<Mutex<String>>,
    _listening: DefaultGuard,
    _second: Dispatch,
}

impl Listener {
    pub fn start() -> Self {
        // With one dispatcher only, a callsite that another test's thread meets first asks that
        // thread's subscriber, which is none, and is never asked again. With two, it asks all.
        let second = Dispatch::new(NoSubscriber::new());
        let told = Arc::new(Mutex::new(String::new()));
        Self {
            _listening: set_default(&Dispatch::new(Log(told.clone()))),
            told,
            _second: second,
        }
    }

    /// Everything so far.
    pub fn told(&self) -> String {
        let told = self.told.lock();
        told.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One line for each span and event.
struct Log(Arc<Mutex<String>>);

struct Fields<'s>(&'s mut String);

impl Log {
    fn write(&self, name: &str, record: impl FnOnce(&mut Fields<'_>)) {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *told += name;
        record(&mut Fields(&mut told));
        *told += "\n";
    }
}

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        *self.0 += &format!(" {field}={value:?}");
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("hedgerow")
    }

    fn new_span(&self, attributes: &span::Attributes<'_>) -> span::Id {
        self.write(attributes.metadata().name(), |fields| {
            attributes.record(fields)
        });
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, values: &span::Record<'_>) {
        self.write("record", |fields| values.record(fields));
    }

    fn event(&self, event: &Event<'_>) {
        self.write(event.metadata().name(), |fields| event.record(fields));
    }

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}
