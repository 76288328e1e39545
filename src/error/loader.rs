//! What [`Cache::memoize`](crate::Cache::memoize) takes: a [`Loader`], which may fail with any
//! [`LoaderError`]. Both traits are implemented for all types that qualify, so they are seldom
//! named.
//!
//! Invariant: the error that a loader returned is kept unchanged.
//! [`Error::loader_error`](crate::Error::loader_error) returns it.

use std::any::Any;
use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

/// The function that [`Cache::memoize`](crate::Cache::memoize) calls to load a value: any `FnOnce`
/// without arguments that returns a future of a `Result`. It is implemented for all such functions.
pub trait Loader: FnOnce() -> Self::Future + Send + 'static {
    /// The value that is loaded.
    type Value;
    /// The type of its errors: see [`LoaderError`].
    type Error;
    /// The future of one load.
    type Future: Future<Output = Result<Self::Value, Self::Error>> + Send + 'static;
}

impl<L, Fut, V, E> Loader for L
where
    L: FnOnce() -> Fut + Send + 'static,
    Fut: Future<Output = Result<V, E>> + Send + 'static,
{
    type Value = V;
    type Error = E;
    type Future = Fut;
}

/// The error of a loader: any [`std::error::Error`], an error of `anyhow` or `eyre`, a boxed error,
/// or a text.
///
/// `How` says which of these it is; the compiler infers it. The trait is implemented for all types
/// that qualify.
#[diagnostic::on_unimplemented(
    message = "a loader cannot fail with `{Self}`",
    note = "use a type that implements `std::error::Error + Send + Sync + 'static`, `anyhow::Error`, a boxed error, or a text"
)]
pub trait LoaderError<How>: Send + Sync + Sized + 'static {
    /// Keeps the error for all callers that wait for the load.
    #[doc(hidden)]
    fn captured(self) -> Captured;
}

/// The error of a loader, whatever its type.
#[doc(hidden)]
#[derive(Debug, Clone)]
// In an `Arc`, since all followers of a flight get the same error.
pub struct Captured(pub(super) Arc<dyn Failure>);

impl fmt::Display for Captured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.0.error(), f)
    }
}

impl StdError for Captured {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.error().source()
    }
}

// Three marker types. Without them the implementations below would overlap.
/// A type that is an error itself.
#[doc(hidden)]
#[derive(Debug)]
pub enum Itself {}

/// A type that holds an error, as `anyhow::Error` and boxes do.
#[doc(hidden)]
#[derive(Debug)]
pub enum Holder {}

/// A text.
#[doc(hidden)]
#[derive(Debug)]
pub enum Text {}

/// A loader's error, as the value that it is and as an error.
pub(super) trait Failure: fmt::Debug + Send + Sync {
    /// Returns the value that the loader returned.
    fn value(&self) -> &(dyn Any + Send + Sync);

    /// Returns the same as an error.
    fn error(&self) -> &(dyn StdError + 'static);
}

impl<E: StdError + Send + Sync + 'static> LoaderError<Itself> for E {
    fn captured(self) -> Captured {
        Captured(Arc::new(OfItself(self)))
    }
}

impl<E> LoaderError<Holder> for E
where
    E: AsRef<dyn StdError + Send + Sync> + Send + Sync + 'static,
{
    fn captured(self) -> Captured {
        Captured(Arc::new(Held(self)))
    }
}

impl LoaderError<Text> for String {
    fn captured(self) -> Captured {
        Captured(Arc::new(Words(self)))
    }
}

impl LoaderError<Text> for &'static str {
    fn captured(self) -> Captured {
        Captured(Arc::new(Words(self)))
    }
}

impl LoaderError<Text> for std::borrow::Cow<'static, str> {
    fn captured(self) -> Captured {
        Captured(Arc::new(Words(self)))
    }
}

// The wrappers show the `Debug` and `Display` of what they hold, as if they were not there.
struct OfItself<E>(E);

struct Held<E>(E);

/// A text as an error.
struct Words<T>(T);

impl<E: StdError + Send + Sync + 'static> Failure for OfItself<E> {
    fn value(&self) -> &(dyn Any + Send + Sync) {
        &self.0
    }

    fn error(&self) -> &(dyn StdError + 'static) {
        &self.0
    }
}

impl<E> Failure for Held<E>
where
    E: AsRef<dyn StdError + Send + Sync> + Send + Sync + 'static,
{
    fn value(&self) -> &(dyn Any + Send + Sync) {
        &self.0
    }

    fn error(&self) -> &(dyn StdError + 'static) {
        self.0.as_ref()
    }
}

impl<T: fmt::Display + fmt::Debug + Send + Sync + 'static> Failure for Words<T> {
    fn value(&self) -> &(dyn Any + Send + Sync) {
        &self.0
    }

    fn error(&self) -> &(dyn StdError + 'static) {
        self
    }
}

impl<E: StdError> fmt::Debug for OfItself<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl<E: AsRef<dyn StdError + Send + Sync>> fmt::Debug for Held<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.0.as_ref(), f)
    }
}

impl<T: fmt::Debug> fmt::Debug for Words<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl<T: fmt::Display> fmt::Display for Words<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl<T: fmt::Display + fmt::Debug> StdError for Words<T> {}
