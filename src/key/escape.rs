//! Names as they stand in a key: checked, and escaped where they could change its routing.
//!
//! Invariant: escaping is injective, and what is escaped holds no `{`, `}` or control character.

use crate::error::{Error, Result};

/// Which part of a key a name is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// The last one: it may hold the separator.
    Last,
    /// Another part follows, so it must not hold the separator.
    Inner,
}

/// Refuses what cannot be a name. `what` says whose it is; the caller says which one, as it may be
/// shown.
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

/// Percent-escapes what could change routing or run parts together; the rest stays readable.
/// An inner part also loses `:`.
pub(super) fn escaped(name: &str, part: Part) -> String {
    let mut text = String::with_capacity(name.len());
    escape_into(&mut text, name, part);
    text
}

pub(super) fn escape_into(text: &mut String, name: &str, part: Part) {
    let inner = part == Part::Inner;
    // Nearly all names have nothing to escape, and a hit spells one: what may be escaped is ASCII,
    // so bytes are looked at.
    let escapes =
        |byte: u8| matches!(byte, b'%' | b'{' | b'}' | 0..=0x1f | 0x7f) | (inner && byte == b':');
    // Without an early end this is a few instructions for many bytes.
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

/// What was escaped by [`escape_into`].
pub(super) fn unescaped(text: &str) -> String {
    let mut parts = text.split('%');
    let mut name = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (digits, rest) = part.split_at_checked(2).unwrap_or(("", part));
        name.extend(u8::from_str_radix(digits, 16).map(char::from));
        name.push_str(rest);
    }
    name
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
