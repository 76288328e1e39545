//! Names in keys: checked, and escaped where they could change the routing of a key.
//!
//! Invariant: escaping is injective, and escaped text holds no `{`, no `}` and no ASCII control
//! character.
//!
//! [`Namespace`](super::Namespace) and [`CacheKeys`](super::CacheKeys) escape every name with it.

use crate::error::{Error, Result};

/// Which part of a key a name is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// The last one: it may hold the separator.
    Last,
    /// Another part follows, so it must not hold the separator.
    Inner,
}

/// Refuses text that cannot be a name. `what` says in the error what is named. The error does not
/// hold the name: the caller adds it if it may be shown.
pub(super) fn checked(what: &str, name: &str) -> Result<()> {
    if name.is_empty() {
        return Err(Error::invalid(format!(
            "the {what} is empty; give at least one character"
        )));
    }
    if name.len() > LONGEST {
        return Err(Error::invalid(format!(
            "the {what} is longer than {LONGEST} bytes; hash it first"
        )));
    }
    Ok(())
}

/// Percent-escapes the characters that could change routing or merge two parts. The rest stays
/// readable. In an inner part `:` is escaped, too.
pub(super) fn escaped(name: &str, part: Part) -> String {
    let mut text = String::with_capacity(name.len());
    escape_into(&mut text, name, part);
    text
}

/// Appends the escaped name to `text`; see [`escaped`].
pub(super) fn escape_into(text: &mut String, name: &str, part: Part) {
    let inner = part == Part::Inner;
    // Nearly all names have nothing to escape, and every hit spells one, so this path is fast. Only
    // ASCII is escaped, so it is enough to look at bytes.
    let escapes =
        |byte: u8| matches!(byte, b'%' | b'{' | b'}' | 0..=0x1f | 0x7f) | (inner && byte == b':');
    // A fold without an early exit compiles to a few instructions for many bytes.
    if !name.bytes().fold(false, |any, byte| any | escapes(byte)) {
        return text.push_str(name);
    }
    for character in name.chars() {
        match character {
            '%' | '{' | '}' | '\u{0}'..='\u{1f}' | '\u{7f}' => escape(text, character),
            ':' if inner => escape(text, character),
            _ => text.push(character),
        }
    }
}

/// Undoes [`escape_into`].
pub(super) fn unescaped(text: &str) -> String {
    // Escaped text holds `%` only before two digits, since `%` itself is escaped.
    let mut parts = text.split('%');
    let mut name = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (digits, rest) = part.split_at_checked(2).unwrap_or(("", part));
        name.extend(u8::from_str_radix(digits, 16).map(char::from));
        name.push_str(rest);
    }
    name
}

/// Escapes the characters that have a meaning in a glob of Redis.
pub(super) fn globbed(text: &str) -> String {
    let mut glob = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        if matches!(character, '*' | '?' | '[' | ']' | '\\' | '^' | '-') {
            glob.push('\\');
        }
        glob.push(character);
    }
    glob
}

fn escape(text: &mut String, character: char) {
    let code = u32::from(character);
    debug_assert!(
        code < 0x80,
        "only ASCII is escaped, so two digits are enough"
    );
    text.push('%');
    for nibble in [code >> 4, code & 0xf] {
        text.push(
            char::from_digit(nibble, 16)
                .unwrap_or('0')
                .to_ascii_uppercase(),
        );
    }
}

/// The longest name that a user may give, in bytes.
const LONGEST: usize = 1024;
