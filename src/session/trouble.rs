//! `Trouble`: what an error of a session means, for the handler that answers it.
//!
//! Invariant: errors of tower-sessions hold only text, so the text begins with words by which it is
//! recognised. It never contains a session id or a value.

use tower_sessions_core::{session, session_store};

use crate::{Error, ErrorKind};

/// What an error of a session means, for the handler that answers it.
///
/// ```
/// use hedgerow::session::Trouble;
/// use tower_sessions::session::Error;
///
/// /// The status of a response whose handler could not use the session.
/// fn status(error: &Error) -> u16 {
///     match Trouble::from(error) {
///         Trouble::Unavailable => 503,
///         Trouble::Conflict => 409,
///         Trouble::TooLarge => 413,
///         _ => 500,
///     }
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Trouble {
    /// Redis is out, or did not answer in time. No session that is stored ends by that: the same
    /// call may succeed later.
    Unavailable,
    /// Another request has saved the session meanwhile: see
    /// [`Conflict::Refuse`](super::Conflict::Refuse).
    Conflict,
    /// The session has more data than the store takes. Nothing was changed.
    TooLarge,
    /// Anything else, such as a value that is not what the handler expects.
    Other,
}

impl From<&session_store::Error> for Trouble {
    fn from(error: &session_store::Error) -> Self {
        let (session_store::Error::Backend(text)
        | session_store::Error::Encode(text)
        | session_store::Error::Decode(text)) = error;
        let begins = |words: &str| text.starts_with(words);
        if begins(UNAVAILABLE) {
            Self::Unavailable
        } else if begins(CONFLICT) {
            Self::Conflict
        } else if begins(TOO_LARGE) {
            Self::TooLarge
        } else {
            Self::Other
        }
    }
}

impl From<&session::Error> for Trouble {
    fn from(error: &session::Error) -> Self {
        match error {
            session::Error::Store(error) => Self::from(error),
            session::Error::SerdeJson(_) => Self::Other,
        }
    }
}

/// The error of a call of the cache.
pub(super) fn of_cache(error: Error) -> session_store::Error {
    match error.kind() {
        ErrorKind::TooLarge => session_store::Error::Encode(format!("{TOO_LARGE}: {error}")),
        ErrorKind::Encode => session_store::Error::Encode(error.to_string()),
        ErrorKind::Decode => session_store::Error::Decode(error.to_string()),
        kind if kind.is_outage() => {
            session_store::Error::Backend(format!("{UNAVAILABLE}: {error}"))
        }
        _ => session_store::Error::Backend(format!("the session store failed: {error}")),
    }
}

/// The error of a session whose data has this text, and this largest value.
pub(super) fn too_large(
    text: &str,
    max_size: usize,
    largest: Option<(&str, usize)>,
) -> session_store::Error {
    let largest = largest.map_or_else(String::new, |(key, size)| {
        let shown: String = key.chars().take(SHOWN).collect();
        format!(", {size} of them under {shown:?}")
    });
    session_store::Error::Encode(format!(
        "{TOO_LARGE}: its data has {} bytes as JSON{largest}, and max_size is {max_size}; nothing \
         was changed; keep large data elsewhere, and its key in the session",
        text.len(),
    ))
}

pub(super) fn conflict() -> session_store::Error {
    session_store::Error::Backend(format!(
        "{CONFLICT}: another request has saved the session after this one had loaded it; nothing \
         was changed; repeat the request"
    ))
}

pub(super) fn contended() -> session_store::Error {
    session_store::Error::Backend(format!(
        "{UNAVAILABLE}: other requests saved the session each time; nothing was changed; repeat \
         the request"
    ))
}

pub(super) fn not_deleted() -> session_store::Error {
    session_store::Error::Backend(format!(
        "{UNAVAILABLE}: the session could not be given another id, since its delete has failed; \
         under its old id it is there or not; repeat the request"
    ))
}

pub(super) fn no_id() -> session_store::Error {
    session_store::Error::Backend(
        "the session store failed: each id that was drawn has a session; is the generator of \
         random numbers broken?"
            .to_owned(),
    )
}

pub(super) fn no_user() -> session_store::Error {
    session_store::Error::Backend(
        "the session store does not know whose sessions it has; make it with SessionStore::user \
         or user_key, in all processes"
            .to_owned(),
    )
}

const UNAVAILABLE: &str = "the session store is unavailable";
const CONFLICT: &str = "the session was changed";
const TOO_LARGE: &str = "the session is too large";

/// How many characters of a key are shown.
const SHOWN: usize = 64;
