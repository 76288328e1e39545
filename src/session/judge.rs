//! What a save does to the session that is stored.
//!
//! Invariant: this is a pure function of what is stored, what is to be stored, and what the request
//! had read. It never lets a stale save change to whom a session belongs.

use super::base::Base;
use super::saving::Saving;
use super::stored::Stored;

/// What a save does if another request has saved the session after this one had loaded it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Conflict {
    /// It overwrites what the other has saved, and is counted. If the other has changed to whom the
    /// session belongs, it changes nothing, and is counted. The default: a save that fails turns
    /// the response into an error 500 when the handler has done its work, and a browser that
    /// repeats the request repeats that work.
    #[default]
    LastWriteWins,
    /// It fails, and nothing is changed. [`Trouble::from`](super::Trouble) recognises the error. A
    /// session that gets another id is stored all the same, and counted: the old one is gone.
    Refuse,
}

/// What a save does to the session that is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It moves the end. The value stays as it is.
    Slide,
    Write,
    /// It overwrites what another request has saved meanwhile.
    Overwrite,
    Refuse,
    /// It changes nothing, since another request has changed to whom the session belongs.
    Yield,
    /// It changes nothing: for this request, the session has ended.
    Drop,
}

/// Judges the save of `new`, which lives for `lives` ms, over `stored`, whose id has this digest.
pub(super) fn judge(
    stored: &Stored,
    (new, lives): (&Saving, u64),
    (session, base): (&str, Option<&Base>),
    conflict: Conflict,
) -> Verdict {
    if base.is_some_and(|base| base.session != session) {
        return Verdict::Drop;
    }
    let is_same = stored.data == new.text && stored.user == new.user;
    // The value says for how long it lives, from which follows when it was last seen. So it is
    // written anew where that has changed.
    let same_life =
        stored.expires == new.expires_millis() || stored.lives.abs_diff(lives) <= ABOUT_THE_SAME;
    let write = match is_same && same_life {
        true => Verdict::Slide,
        false => Verdict::Write,
    };
    // It was cleared, so what it had is not to stay, whatever that is by now.
    let Some(base) = base else {
        return write;
    };
    let is_own = stored.writer == base.writer;
    let changes_nothing = base.data == new.digest() && base.user == new.user;
    if is_own || stored.version == base.version || changes_nothing && is_same {
        return write;
    }
    if changes_nothing {
        return Verdict::Slide;
    }
    // Both have changed it. Even if both have stored the same: two that count up do.
    match conflict {
        Conflict::Refuse => Verdict::Refuse,
        Conflict::LastWriteWins if stored.user != new.user => Verdict::Yield,
        Conflict::LastWriteWins => Verdict::Overwrite,
    }
}

/// By how much two durations of one setting differ at most, in ms: the clock is read twice.
const ABOUT_THE_SAME: u64 = 1_000;
