//! Where Lua turns a number into text by itself: by `..` and `table.concat`, which write 14 digits.
//!
//! Lua has no types to read, so a value is a number here if it is written as one: a sum, a length,
//! what `tonumber`, `math` or a counting command answers, or a name that any of these is assigned
//! to.

use std::collections::BTreeSet;

/// The operands of `..` and the elements of what `table.concat` joins that are numbers.
pub fn joined_numbers(code: &str) -> Vec<String> {
    let code: Vec<char> = code.chars().collect();
    let pieces = statements(&code);
    let numbers = names_of_numbers(&pieces);
    let mut joined = Vec::new();
    for (at, _) in tokens(&code).filter(|(_, token)| *token == Token::Join) {
        joined.push(before(&code, at));
        joined.push(after(&code, at + 2));
    }
    for list in lists(&code) {
        joined.extend(match list.strip_prefix('{') {
            Some(elements) => split(elements.trim_end_matches('}'), ","),
            None => pieces
                .iter()
                .filter(|(name, _)| name.starts_with(&format!("{list}[")))
                .map(|(_, value)| value.clone())
                .collect(),
        });
    }
    joined.retain(|it| is_number(it, &numbers));
    joined
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Token {
    Join,
    Other,
}

/// Each place of the code outside of quotes, and whether `..` begins there.
fn tokens(code: &[char]) -> impl Iterator<Item = (usize, Token)> {
    let mut quoted = false;
    let dot = |at: usize| code.get(at) == Some(&'.');
    (0..code.len()).filter_map(move |at| {
        if code[at] == '\'' {
            quoted = !quoted;
        }
        let alone = at == 0 || !dot(at - 1);
        let join = dot(at) && dot(at + 1) && !dot(at + 2) && alone;
        (!quoted).then_some((at, if join { Token::Join } else { Token::Other }))
    })
}

/// What is assigned to which name, in the whole code.
fn statements(code: &[char]) -> Vec<(String, String)> {
    let text: String = code.iter().collect();
    let mut found = Vec::new();
    for line in text.lines() {
        let line = line.trim();
        let line = line.split_once(" then ").map_or(line, |(_, then)| then);
        if let Some((names, _)) = line.split_once(" in ipairs(") {
            let index = names.trim_start_matches("for ").split(',').next();
            found.push((index.unwrap_or_default().to_owned(), "1".to_owned()));
            continue;
        }
        let Some((names, values)) = line.split_once(" = ") else {
            continue;
        };
        let names = names
            .trim_start_matches("for ")
            .trim_start_matches("local ");
        let values = values.trim_end_matches(" do").trim_end_matches(" end");
        let values = split(values, ",");
        for (name, value) in names.split(", ").zip(values) {
            found.push((name.to_owned(), value));
        }
    }
    found
}

fn names_of_numbers(statements: &[(String, String)]) -> BTreeSet<String> {
    let mut numbers = BTreeSet::new();
    loop {
        let known = numbers.len();
        for (name, value) in statements {
            if is_number(value, &numbers) {
                numbers.insert(name.clone());
            }
        }
        if numbers.len() == known {
            return numbers;
        }
    }
}

/// Whether one of the values that an expression may have is a number.
fn is_number(expression: &str, numbers: &BTreeSet<String>) -> bool {
    let alternatives = split(expression, " or ");
    alternatives.iter().any(|alternative| {
        let last = split(alternative, " and ").pop().unwrap_or_default();
        is_number_itself(last.trim(), numbers)
    })
}

fn is_number_itself(value: &str, numbers: &BTreeSet<String>) -> bool {
    if numbers.contains(value) || COUNTS.iter().any(|counts| value.starts_with(counts)) {
        return true;
    }
    if let Some(inner) = value.strip_prefix('(').and_then(|it| it.strip_suffix(')')) {
        return is_number(inner, numbers);
    }
    let bare = bare(value);
    let other = ["..", "==", "~=", "<", ">", "not "];
    if bare.is_empty() || other.iter().any(|sign| bare.contains(sign)) {
        return false;
    }
    let is_literal = bare.starts_with(|c: char| c.is_ascii_digit());
    is_literal || bare.contains(['+', '-', '*', '/', '%', '#'])
}

/// An expression without quoted text and without what is inside of brackets.
fn bare(expression: &str) -> String {
    let (mut depth, mut quoted, mut bare) = (0_usize, false, String::new());
    for character in expression.chars() {
        match character {
            '\'' => quoted = !quoted,
            _ if quoted => {}
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            _ if depth == 0 => bare.push(character),
            _ => {}
        }
    }
    bare.trim().to_owned()
}

/// The parts of an expression between separators of its own.
fn split(expression: &str, separator: &str) -> Vec<String> {
    let (mut depth, mut quoted, mut parts) = (0_i32, false, vec![String::new()]);
    let mut rest = expression;
    while let Some(character) = rest.chars().next() {
        if depth == 0
            && !quoted
            && let Some(next) = rest.strip_prefix(separator)
        {
            parts.push(String::new());
            rest = next;
            continue;
        }
        match character {
            '\'' => quoted = !quoted,
            '(' | '[' | '{' if !quoted => depth += 1,
            ')' | ']' | '}' if !quoted => depth -= 1,
            _ => {}
        }
        if let Some(part) = parts.last_mut() {
            part.push(character);
        }
        rest = &rest[character.len_utf8()..];
    }
    parts.iter().map(|part| part.trim().to_owned()).collect()
}

/// The operand that ends before `end`.
fn before(code: &[char], end: usize) -> String {
    let line = code[..end].iter().rposition(|c| *c == '\n');
    let text: String = code[line.map_or(0, |at| at + 1)..end].iter().collect();
    // From the left, whatever is open at the end is around the operand.
    let (mut starts, mut quoted) = (vec![0], false);
    for (at, character) in text.char_indices() {
        match character {
            '\'' => quoted = !quoted,
            '(' | '[' | '{' if !quoted => starts.push(at + 1),
            ')' | ']' | '}' if !quoted && starts.len() > 1 => drop(starts.pop()),
            _ => {}
        }
    }
    let open = &text[starts.pop().unwrap_or_default()..];
    ENDS.iter().fold(open.to_owned(), |operand, end| {
        split(&operand, end).pop().unwrap_or_default()
    })
}

/// The operand that begins at `start`.
fn after(code: &[char], start: usize) -> String {
    let line: String = code[start..].iter().take_while(|c| **c != '\n').collect();
    let (mut depth, mut quoted, mut end) = (0_i32, false, line.len());
    for (at, character) in line.char_indices() {
        match character {
            '\'' => quoted = !quoted,
            '(' | '[' | '{' if !quoted => depth += 1,
            ')' | ']' | '}' if !quoted => depth -= 1,
            _ => {}
        }
        if depth < 0 {
            end = at;
            break;
        }
    }
    ENDS.iter().fold(line[..end].to_owned(), |operand, end| {
        split(&operand, end).into_iter().next().unwrap_or_default()
    })
}

/// What is joined by `table.concat`: a table as it is written, or its name.
fn lists(code: &[char]) -> Vec<String> {
    let text: String = code.iter().collect();
    let calls = text.match_indices("table.concat(");
    let argument = |(at, call): (usize, &str)| {
        let rest = text[at + call.len()..].replace('\n', " ");
        split(&rest, ",").into_iter().next().unwrap_or_default()
    };
    let lists = calls.map(argument);
    // A name that is the only argument ends with the call.
    lists
        .map(|list| match list.starts_with('{') {
            true => list,
            false => list.split(')').next().unwrap_or_default().to_owned(),
        })
        .collect()
}

/// What an operand of `..` ends at.
const ENDS: [&str; 12] = [
    "..", ",", " = ", "return ", " or ", " and ", " then", " end", "==", "~=", "<", ">",
];

/// What answers a number.
const COUNTS: [&str; 9] = [
    "tonumber(",
    "math.",
    "redis.call('PTTL'",
    "redis.call('HLEN'",
    "redis.call('EXISTS'",
    "redis.call('STRLEN'",
    "redis.call('ZCARD'",
    "string.len(",
    "select('#'",
];
