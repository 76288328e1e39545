//! Strips comments and indentation from the text of a script.
//!
//! Empty lines and lines that hold only a comment are removed, and so are leading blanks. A comment
//! after code stays.
//!
//! Invariant: the stripped text runs exactly as the whole text would. Nothing inside a string is
//! touched, also in a string that continues over several lines.
//!
//! [`Script`](super::Script) hashes and sends only the stripped text, because over a slow network
//! each byte of an upload counts.

/// `text` without lines that hold nothing but a comment or blanks, and without leading blanks.
pub(super) fn stripped(text: &str) -> String {
    let mut left = String::with_capacity(text.len());
    let mut at = At::Code;
    for line in text.lines() {
        let begins = at;
        at = at.after(line);
        let code = line.trim_start_matches([' ', '\t']);
        match begins {
            At::Code if code.is_empty() || is_comment(code) && at == At::Code => continue,
            At::Code => left.push_str(code),
            At::Quoted(_) | At::Long(_) => left.push_str(line),
        }
        left.push('\n');
    }
    left
}

/// What a line of Lua begins in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Code,
    /// In a string with these quotes, because the line before ends in a backslash.
    Quoted(u8),
    /// In a string or a comment in long brackets, with this many `=` in each bracket.
    Long(usize),
}

impl At {
    /// What the line after `line` begins in.
    fn after(self, line: &str) -> Self {
        let (mut at, mut rest) = (self, line.as_bytes());
        loop {
            (at, rest) = match (at, rest) {
                (Self::Code | Self::Long(_), []) => return at,
                // Without a backslash at its end, the string is a syntax error and ends with the
                // line.
                (Self::Quoted(_), []) => return Self::Code,
                (Self::Quoted(_), [b'\\']) => return at,
                (Self::Quoted(_), [b'\\', _, rest @ ..]) => (at, rest),
                (Self::Quoted(quote), [byte, rest @ ..]) if *byte == quote => (Self::Code, rest),
                // Only a bracket of the same level closes it.
                (Self::Long(level), [b']', rest @ ..]) => match bracket(rest, b']') {
                    Some(closed) if closed == level => (Self::Code, &rest[level + 1..]),
                    _ => (at, rest),
                },
                (Self::Code, [b'-', b'-', rest @ ..]) => match opened(rest) {
                    Some((level, rest)) => (Self::Long(level), rest),
                    None => return at,
                },
                (Self::Code, [quote @ (b'\'' | b'"'), rest @ ..]) => (Self::Quoted(*quote), rest),
                (Self::Code, [_, others @ ..]) => match opened(rest) {
                    Some((level, rest)) => (Self::Long(level), rest),
                    None => (at, others),
                },
                (_, [_, rest @ ..]) => (at, rest),
            };
        }
    }
}

/// Whether a line of code is only a comment that ends with the line.
fn is_comment(code: &str) -> bool {
    code.strip_prefix("--")
        .is_some_and(|comment| opened(comment.as_bytes()).is_none())
}

/// The level of the long bracket that `text` opens with, and the text after it.
fn opened(text: &[u8]) -> Option<(usize, &[u8])> {
    let rest = text.strip_prefix(b"[")?;
    let level = bracket(rest, b'[')?;
    Some((level, &rest[level + 1..]))
}

/// How many `=` come before the second half of a long bracket, if `text` starts with them.
fn bracket(text: &[u8], half: u8) -> Option<usize> {
    let level = text.iter().take_while(|byte| **byte == b'=').count();
    (text.get(level) == Some(&half)).then_some(level)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_of_their_own_lines_and_leading_blanks_go() {
        let text = "#!lua\n-- Purpose: none\n\nlocal a = 1 -- one\n  \tif a then\n    -- two\n    \
                    return a\n  end\n";
        let left = "#!lua\nlocal a = 1 -- one\nif a then\nreturn a\nend\n";
        assert_eq!(stripped(text), left);
        assert_eq!(stripped(left), left, "nothing is left to go");
    }

    #[test]
    fn what_is_inside_of_strings_stays() {
        for kept in [
            "local a = [[\n  -- not a comment\n\n  ]]\n",
            "local a = [==[\n  ]] ]=]\n  -- not a comment\n]==]\n",
            "local a = 'one \\\n  -- not a comment \\\n  two'\n",
            "local a = \"one \\\"\\\n  -- not a comment'\"\n",
            "local a = '--[[' .. \"[[\"\nreturn a\n",
        ] {
            assert_eq!(stripped(kept), kept);
        }
    }

    #[test]
    fn code_goes_on_where_a_string_has_ended() {
        for (text, left) in [
            (
                "a = [[x]] -- y\n  -- z\n  b = 1\n",
                "a = [[x]] -- y\nb = 1\n",
            ),
            ("a = 'it''s'\n  -- [[\n  b = 1\n", "a = 'it''s'\nb = 1\n"),
            ("a = t[b[1]]\n  -- z\n  b = 1\n", "a = t[b[1]]\nb = 1\n"),
            ("a = '\\\\'\n  -- z\n  b = 1\n", "a = '\\\\'\nb = 1\n"),
        ] {
            assert_eq!(stripped(text), left);
        }
    }

    #[test]
    fn a_long_comment_stays_as_it_is() {
        let text = "--[[ one\n  -- two\n]]\n  return 1\n--[=[ three ]=] return 2\n";
        let left = "--[[ one\n  -- two\n]]\nreturn 1\n--[=[ three ]=] return 2\n";
        assert_eq!(stripped(text), left);
    }
}
