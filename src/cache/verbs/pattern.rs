//! `Pattern`: which names a caller means.
//!
//! Invariant: a name is among them exactly if [`Pattern::matches`] says so. The glob that the
//! server filters by lets all of them pass, and perhaps some more. `keys` and `remove_matching`
//! parse patterns.

use crate::error::{Error, Result};
use crate::key::glob_of;

/// A pattern of names: `*` stands for any text, `?` for one character, and a backslash takes the
/// meaning of the character behind it away. All else stands for itself.
#[derive(Debug, Clone)]
pub(in crate::cache) struct Pattern(Vec<Piece>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    Literal(char),
    AnyCharacter,
    AnyText,
}

impl Pattern {
    pub(in crate::cache) fn parse(text: &str) -> Result<Self> {
        if text.is_empty() || text.len() > LONGEST {
            return Err(Error::invalid(format!(
                "a pattern has 1 to {LONGEST} bytes; `*` matches every key"
            )));
        }
        let mut pieces = Vec::with_capacity(text.len());
        let mut characters = text.chars();
        while let Some(character) = characters.next() {
            pieces.push(match character {
                '*' => Piece::AnyText,
                '?' => Piece::AnyCharacter,
                '\\' => match characters.next() {
                    Some(escaped) => Piece::Literal(escaped),
                    None => {
                        let message =
                            "the pattern ends with a lone backslash; write two to match one";
                        return Err(Error::invalid(message));
                    }
                },
                literal => Piece::Literal(literal),
            });
        }
        Ok(Self(pieces))
    }

    /// Returns whether `name` is meant.
    pub(in crate::cache) fn matches(&self, name: &str) -> bool {
        let pieces = &self.0;
        // A place in the pattern, and one in the name, in bytes.
        let (mut at, mut read) = (0, 0);
        // Where to go back to: behind the last `*`, which then takes one character more.
        let mut back = None;
        while let Some(character) = name[read..].chars().next() {
            match pieces.get(at) {
                Some(Piece::AnyText) => {
                    at += 1;
                    back = Some((at, read));
                    continue;
                }
                Some(Piece::AnyCharacter) => {}
                Some(Piece::Literal(literal)) if *literal == character => {}
                _ => match &mut back {
                    Some((behind, taken)) => {
                        let more = name[*taken..].chars().next();
                        *taken += more.map_or(1, char::len_utf8);
                        (at, read) = (*behind, *taken);
                        continue;
                    }
                    None => return false,
                },
            }
            (at, read) = (at + 1, read + character.len_utf8());
        }
        pieces[at..].iter().all(|piece| *piece == Piece::AnyText)
    }

    /// Returns a glob of Redis for the escaped names: the literal beginning. The server compares
    /// each of its keys with it, so it is one that costs little, whatever the pattern is.
    pub(in crate::cache) fn glob(&self) -> String {
        let literals = self.0.iter().map_while(|piece| match piece {
            Piece::Literal(character) => Some(*character),
            Piece::AnyCharacter | Piece::AnyText => None,
        });
        let literal: String = literals.collect();
        let is_whole = literal.chars().count() == self.0.len();
        glob_of(&literal) + if is_whole { "" } else { "*" }
    }
}

/// Returns a pattern that matches exactly the key `text`, for a part of a pattern that stands for
/// itself.
///
/// ```
/// use hedgerow::cache::literal;
///
/// let pattern = format!("{}:*", literal("what?"));
/// assert_eq!(pattern, "what\\?:*");
/// ```
pub fn literal(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        if matches!(character, '*' | '?' | '\\') {
            pattern.push('\\');
        }
        pattern.push(character);
    }
    pattern
}

/// In bytes.
const LONGEST: usize = 1024;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// By the definition: slow, and plain.
    fn matches(pieces: &[Piece], name: &[char]) -> bool {
        match pieces.split_first() {
            None => name.is_empty(),
            Some((Piece::AnyText, rest)) => {
                (0..=name.len()).any(|taken| matches(rest, &name[taken..]))
            }
            Some((Piece::AnyCharacter, rest)) => !name.is_empty() && matches(rest, &name[1..]),
            Some((Piece::Literal(literal), rest)) => {
                name.first() == Some(literal) && matches(rest, &name[1..])
            }
        }
    }

    proptest! {
        #[test]
        fn a_pattern_matches_what_its_definition_says(
            pattern in "[ab*?\\\\é]{1,8}",
            name in "[ab*?\\\\é]{0,8}",
        ) {
            let Ok(pattern) = Pattern::parse(&pattern) else {
                return Ok(());
            };
            let letters: Vec<char> = name.chars().collect();
            prop_assert_eq!(pattern.matches(&name), matches(&pattern.0, &letters));
        }
    }

    #[test]
    fn a_pattern_that_means_nothing_is_refused() {
        for pattern in ["", "a\\", &"a".repeat(1025)] {
            assert!(Pattern::parse(pattern).is_err(), "{pattern:?}");
        }
    }

    #[test]
    fn a_glob_is_the_literal_beginning() {
        for (pattern, glob) in [
            ("user:*", "user:*"),
            ("a?c", "a*"),
            ("*c", "*"),
            ("[a]\\*{b}%", "\\[a\\]\\*%7Bb%7D%25"),
            ("\\**", "\\**"),
        ] {
            let parsed = Pattern::parse(pattern).expect("a good pattern");
            assert_eq!(parsed.glob(), glob, "{pattern}");
        }
    }
}
