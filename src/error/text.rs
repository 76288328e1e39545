//! Texts of a bounded length.
//!
//! Invariant: no function writes more than its limit, and no text is cut inside a character. Errors
//! call this for everything that a caller, a loader or a server has written.

use std::fmt::{self, Write as _};

/// Returns `name` as errors quote it: escaped, and cut in the middle if it is longer than 64
/// characters.
pub(crate) fn shortened(name: &str) -> String {
    // A long name is not escaped as a whole, since most of it is cut away.
    if name.len() <= 8 * CHARACTERS {
        let whole: String = name.escape_debug().collect();
        if whole.chars().count() <= CHARACTERS {
            return whole;
        }
    }
    let most = (CHARACTERS - GAP.len()) / 2;
    let mut head = String::new();
    let mut length = 0;
    for character in name.chars() {
        length += character.escape_debug().count();
        if length > most {
            break;
        }
        head.extend(character.escape_debug());
    }
    let mut tail = Vec::new();
    length = 0;
    for character in name.chars().rev() {
        length += character.escape_debug().count();
        if length > most {
            break;
        }
        tail.push(character);
    }
    let tail: String = tail
        .into_iter()
        .rev()
        .flat_map(char::escape_debug)
        .collect();
    head + GAP + &tail
}

/// Returns the beginning of `text`: at most `most` bytes, including a sign that the rest is
/// missing.
pub(super) fn cut(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    format!("{}{GAP}", beginning(text, most.saturating_sub(GAP.len())))
}

/// Returns at most `most` bytes of `text`.
fn beginning(text: &str, most: usize) -> &str {
    let mut end = most.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Returns what `shown` displays, at most `most` bytes of it. The rest is not even formatted.
pub(crate) fn displayed(shown: &dyn fmt::Display, most: usize) -> String {
    let mut limited = Limited {
        text: String::new(),
        most,
    };
    // `write!` stops with an error when there is no room left.
    let _ = write!(limited, "{shown}");
    cut(&limited.text, most)
}

/// A writer that takes only a little more than its limit.
struct Limited {
    text: String,
    most: usize,
}

impl fmt::Write for Limited {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        // One character beyond the limit shows `cut` that something is missing.
        let room = (self.most + 4).saturating_sub(self.text.len());
        let taken = beginning(more, room);
        self.text.push_str(taken);
        match taken.len() == more.len() {
            true => Ok(()),
            false => Err(fmt::Error),
        }
    }
}

/// How many characters of a name are shown.
const CHARACTERS: usize = 64;

/// Stands for what is not shown.
const GAP: &str = "..";
