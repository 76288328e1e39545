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
/// `whose` finds to whom that belongs.
pub(super) fn judge(
    (stored, whose): (&Stored, impl FnOnce() -> Option<String>),
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
    let is_as_loaded = (stored.version, stored.writer) == (base.version, base.written_by);
    // By its data alone: another process may have stored it without a user.
    let changes_nothing = base.data == new.digest();
    if is_own || is_as_loaded || changes_nothing && is_same {
        return write;
    }
    if changes_nothing {
        return Verdict::Slide;
    }
    // Both have changed it. Even if both have stored the same: two that count up do.
    match conflict {
        Conflict::Refuse => Verdict::Refuse,
        Conflict::LastWriteWins if whose() != new.user => Verdict::Yield,
        Conflict::LastWriteWins => Verdict::Overwrite,
    }
}

/// By how much two durations of one setting differ at most, in ms: the clock is read twice.
const ABOUT_THE_SAME: u64 = 1_000;

#[cfg(test)]
mod tests {
    use serde_json::json;
    use time::OffsetDateTime;
    use tower_sessions_core::session::{Id, Record};

    use super::*;
    use crate::session::digest;
    use crate::session::user::UserOf;

    const DAY: u64 = 24 * 60 * 60 * 1000;
    const POLICIES: [Conflict; 2] = [Conflict::LastWriteWins, Conflict::Refuse];

    /// A session whose data is `data`.
    fn saving(data: serde_json::Value) -> Saving {
        let record = Record {
            id: Id(1),
            data: serde_json::from_value(data).expect("an object"),
            expiry_date: OffsetDateTime::now_utc() + time::Duration::DAY,
        };
        Saving::of(&record, Some(&UserOf::key("user")), 1_000).expect("it is small")
    }

    /// The same as it is stored, for a day.
    fn stored(data: serde_json::Value, (version, writer): (u64, u64)) -> Stored {
        let day = std::time::Duration::from_millis(DAY);
        Stored {
            version,
            ..saving(data).stored(writer, day, None)
        }
    }

    /// What a request knows that has loaded `stored`, and signs with 7.
    fn base(stored: &Stored) -> Base {
        Base {
            session: "s".to_owned(),
            version: stored.version,
            written_by: stored.writer,
            writer: 7,
            data: digest::of_data(&stored.data),
            user: stored.user.clone(),
            had_user: stored.user.is_some(),
        }
    }

    /// To whom a session belongs by its data.
    fn whose(stored: &Stored) -> (&Stored, impl FnOnce() -> Option<String>) {
        let data = stored.data().expect("an object");
        (stored, move || UserOf::key("user").user(&data))
    }

    /// The verdicts under either policy on a save of `new` by a request that has loaded `old`.
    fn verdicts(now: &Stored, new: &Saving, old: Option<&Stored>) -> [Verdict; 2] {
        let base = old.map(base);
        POLICIES.map(|policy| judge(whose(now), (new, DAY), ("s", base.as_ref()), policy))
    }

    #[test]
    fn who_changes_alone_writes_and_who_changes_nothing_slides() {
        let old = stored(json!({"a": 1}), (1, 1));
        let (same, other) = (saving(json!({"a": 1})), saving(json!({"a": 2})));
        assert_eq!(verdicts(&old, &same, Some(&old)), [Verdict::Slide; 2]);
        assert_eq!(verdicts(&old, &other, Some(&old)), [Verdict::Write; 2]);
        // For another time from now on: the value says for how long.
        for (lives, verdict) in [(DAY + 900, Verdict::Slide), (2 * DAY, Verdict::Write)] {
            let apart = Stored {
                expires: 0,
                ..old.clone()
            };
            let judged = judge(
                whose(&apart),
                (&same, lives),
                ("s", Some(&base(&old))),
                POLICIES[0],
            );
            assert_eq!(judged, verdict, "{lives}");
        }
    }

    #[test]
    fn a_change_over_that_of_another_request_is_as_the_policy_says() {
        let old = stored(json!({"a": 1}), (1, 1));
        let new = saving(json!({"a": 2}));
        let either = [Verdict::Overwrite, Verdict::Refuse];
        for theirs in [json!({"a": 3}), json!({"a": 2})] {
            let now = stored(theirs, (2, 2));
            assert_eq!(verdicts(&now, &new, Some(&old)), either);
        }
        // Its own last save is none of another request.
        let own = stored(json!({"a": 3}), (2, 7));
        assert_eq!(verdicts(&own, &new, Some(&old)), [Verdict::Write; 2]);
    }

    /// A failover lost the version that was loaded, and another was stored in its place.
    #[test]
    fn another_content_of_the_same_version_is_a_change_of_another_request() {
        let old = stored(json!({"a": 1}), (3, 1));
        let now = stored(json!({"a": 3}), (3, 2));
        let (same, other) = (saving(json!({"a": 1})), saving(json!({"a": 2})));
        let either = [Verdict::Overwrite, Verdict::Refuse];
        assert_eq!(verdicts(&now, &other, Some(&old)), either);
        assert_eq!(verdicts(&now, &same, Some(&old)), [Verdict::Slide; 2]);
    }

    #[test]
    fn who_has_changed_nothing_keeps_what_another_request_has_saved() {
        let old = stored(json!({"a": 1}), (1, 1));
        let same = saving(json!({"a": 1}));
        for theirs in [json!({"a": 3}), json!({"user": "7"})] {
            let now = stored(theirs, (2, 2));
            assert_eq!(verdicts(&now, &same, Some(&old)), [Verdict::Slide; 2]);
        }
    }

    /// A process without users has stored a login.
    #[test]
    fn a_user_that_is_only_in_the_data_is_stored_and_is_no_change() {
        let no_user = |stored: Stored| Stored {
            user: None,
            ..stored
        };
        let old = no_user(stored(json!({"a": 1, "user": "7"}), (1, 1)));
        let same = saving(json!({"a": 1, "user": "7"}));
        assert_eq!(verdicts(&old, &same, Some(&old)), [Verdict::Write; 2]);
        let theirs = stored(json!({"a": 3, "user": "7"}), (2, 2));
        for now in [theirs.clone(), no_user(theirs)] {
            assert_eq!(verdicts(&now, &same, Some(&old)), [Verdict::Slide; 2]);
            let new = saving(json!({"a": 2, "user": "7"}));
            let either = [Verdict::Overwrite, Verdict::Refuse];
            assert_eq!(verdicts(&now, &new, Some(&old)), either);
        }
    }

    #[test]
    fn no_save_changes_whose_session_it_is_over_that_of_another_request() {
        let old = stored(json!({"a": 1}), (1, 1));
        let new = saving(json!({"a": 2}));
        let theirs = stored(json!({"a": 1, "user": "7"}), (2, 2));
        let either = [Verdict::Yield, Verdict::Refuse];
        assert_eq!(verdicts(&theirs, &new, Some(&old)), either);
        // Two logins.
        let login = saving(json!({"a": 1, "user": "8"}));
        assert_eq!(verdicts(&theirs, &login, Some(&old)), either);
    }

    #[test]
    fn a_session_that_was_cleared_overwrites_and_one_of_another_id_is_left() {
        let now = stored(json!({"a": 1, "user": "7"}), (5, 5));
        let new = saving(json!({"b": 1}));
        assert_eq!(verdicts(&now, &new, None), [Verdict::Write; 2]);
        let (now, other) = (whose(&now), base(&now));
        let judged = judge(now, (&new, DAY), ("other", Some(&other)), POLICIES[0]);
        assert_eq!(judged, Verdict::Drop);
    }
}
