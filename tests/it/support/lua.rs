//! Reads the crate's Lua files as text: headers, preludes, calls, and which keys they name.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A script as its owner declares it.
pub struct Script {
    /// The path below `src`.
    pub name: String,
    /// The paths of the files of its prelude, in their order.
    pub preludes: Vec<PathBuf>,
    pub shebang: String,
    pub prelude: String,
    pub body: String,
}

/// What a header declares: so many, and then perhaps a list.
pub struct Declared {
    pub fixed: usize,
    pub open: bool,
}

/// Which elements of a table a text names.
pub struct Used {
    pub fixed: BTreeSet<usize>,
    /// Whether it computes an index, or takes the length.
    pub open: bool,
}

/// A command that a script runs, and its arguments as they are written.
pub struct Call {
    pub command: String,
    pub arguments: Vec<String>,
}

impl Script {
    /// The script at `name`, with the text of its own file and that of its prelude.
    pub fn of(name: &str, preludes: Vec<PathBuf>, prelude: &str, text: &str) -> Self {
        let (shebang, body) = text.split_once('\n').expect("a first line");
        Self {
            name: name.to_owned(),
            preludes,
            shebang: shebang.to_owned(),
            prelude: prelude.to_owned(),
            body: body.to_owned(),
        }
    }

    /// The header lines that start with `-- part: `, without that.
    pub fn header(&self, part: &str) -> impl Iterator<Item = &str> {
        let prefix = format!("-- {part}: ");
        self.body
            .lines()
            .filter_map(move |line| line.strip_prefix(prefix.as_str()))
    }

    /// How many `KEYS` or `ARGV` the header declares: 1, 2, 3 .. without gaps, `none`, or last
    /// `n..` for a list.
    pub fn declared(&self, part: &str) -> Result<Declared, String> {
        let numbers: Vec<&str> = self
            .header(part)
            .map(|line| line.split(' ').next().unwrap_or_default())
            .collect();
        if numbers == ["none"] {
            return Ok(Declared {
                fixed: 0,
                open: false,
            });
        }
        let open = numbers.last().is_some_and(|last| last.ends_with(".."));
        for (at, number) in numbers.iter().enumerate() {
            let last = at + 1 == numbers.len();
            let expected = format!("{}{}", at + 1, if last && open { ".." } else { "" });
            if **number != expected {
                return Err(format!("declares {part} {number} where {expected} is due"));
            }
        }
        Ok(Declared {
            fixed: numbers.len() - usize::from(open),
            open,
        })
    }

    /// Prelude and body.
    pub fn whole(&self) -> String {
        format!("{}\n{}", self.prelude, self.body)
    }

    /// The body, the prelude's top-level statements, and those of its functions that are called
    /// from there, directly or not.
    pub fn reachable(&self) -> String {
        let (mut text, mut functions) = (self.body.clone(), BTreeMap::new());
        let mut inside: Option<(String, String)> = None;
        for line in self.prelude.lines() {
            // A function of a table is called by its full name.
            let function = line.strip_prefix("local function ");
            if let Some(rest) = function.or_else(|| line.strip_prefix("function ")) {
                let name = rest.split('(').next().unwrap_or_default();
                inside = Some((name.to_owned(), String::new()));
            }
            match &mut inside {
                Some((_, function)) => {
                    function.push_str(line);
                    function.push('\n');
                }
                None => text = format!("{line}\n{text}"),
            }
            if line == "end" {
                functions.extend(inside.take());
            }
        }
        loop {
            let code = uncommented(&text);
            let Some(name) = functions
                .keys()
                .find(|name| calls_function(&code, name))
                .cloned()
            else {
                return text;
            };
            text.push_str(&functions.remove(&name).unwrap_or_default());
        }
    }
}

fn calls_function(code: &str, name: &str) -> bool {
    let call = format!("{name}(");
    let part_of_word = |c: char| c.is_alphanumeric() || c == '_' || c == '.';
    code.match_indices(&call)
        .any(|(at, _)| !code[..at].ends_with(part_of_word))
}

/// All scripts that the crate declares by `script!(NAME = "file" after "prelude", ..)`.
pub fn scripts() -> Vec<Script> {
    let texts = files();
    let mut found = Vec::new();
    for (path, source) in below_src("rs") {
        let directory = path.parent().unwrap_or(Path::new(""));
        for line in source.lines().filter(|line| line.starts_with("script!(")) {
            let quoted: Vec<&str> = line.split('"').skip(1).step_by(2).collect();
            let file = plain(&directory.join(quoted[0]));
            let preludes = quoted[1..].iter();
            let preludes = preludes.map(|prelude| plain(&directory.join(prelude)));
            let preludes: Vec<PathBuf> = preludes.collect();
            let prelude: String = preludes.iter().map(|it| &*texts[it]).collect();
            let name = file.display().to_string();
            found.push(Script::of(&name, preludes, &prelude, &texts[&file]));
        }
    }
    found
}

/// `path` without `..`.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path {
        match part == ".." {
            true => drop(plain.pop()),
            false => plain.push(part),
        }
    }
    plain
}

/// All `.lua` files of `src`, by path below it.
pub fn files() -> BTreeMap<PathBuf, String> {
    below_src("lua")
}

/// All `.rs` files of `src`, by path below it.
pub fn sources() -> BTreeMap<PathBuf, String> {
    below_src("rs")
}

fn below_src(extension: &str) -> BTreeMap<PathBuf, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut found, mut directories) = (BTreeMap::new(), vec![root.clone()]);
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).expect("src is there") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|it| it == extension) {
                let below = path.strip_prefix(&root).expect("below src").to_owned();
                found.insert(below, fs::read_to_string(&path).expect("text"));
            }
        }
    }
    found
}

/// Which elements of `table` the code names.
pub fn used(text: &str, table: &str) -> Used {
    let code = uncommented(text);
    let mut used = Used {
        fixed: BTreeSet::new(),
        open: false,
    };
    let part_of_word = |c: char| c.is_alphanumeric() || c == '_';
    for (at, _) in code.match_indices(table) {
        let rest = &code[at + table.len()..];
        if code[..at].ends_with(part_of_word) {
            continue;
        }
        let index = rest
            .strip_prefix('[')
            .and_then(|rest| rest.split(']').next());
        match index.and_then(|index| index.parse().ok()) {
            Some(index) => drop(used.fixed.insert(index)),
            // Computed, or the table as a whole.
            None => used.open = true,
        }
    }
    used
}

/// All uses of `redis.call` and `redis.pcall`; an `Err` where the command is no literal.
pub fn calls(text: &str) -> Vec<Result<Call, String>> {
    let code = uncommented(text);
    let mut found = Vec::new();
    for function in ["redis.call", "redis.pcall"] {
        for (at, _) in code.match_indices(function) {
            let rest = &code[at + function.len()..];
            let line = rest.lines().next().unwrap_or_default();
            let literal = rest
                .strip_prefix("('")
                .and_then(|rest| rest.split_once('\''));
            found.push(match literal {
                Some((command, rest)) => Ok((at, command, rest)),
                None => Err(format!("{function}{line}")),
            });
        }
    }
    // In the order of the text, whichever function it was.
    found.sort_by_key(|call| call.as_ref().map_or(0, |(at, ..)| *at));
    found
        .into_iter()
        .map(|call| {
            call.map(|(_, command, rest)| Call {
                command: command.to_ascii_uppercase(),
                arguments: arguments(rest),
            })
        })
        .collect()
}

/// What stands between the command and the end of the call, parted by its own commas.
fn arguments(rest: &str) -> Vec<String> {
    let (mut found, mut depth, mut quoted) = (Vec::new(), 0, false);
    for character in rest.chars() {
        match character {
            '\'' => quoted = !quoted,
            '(' | '[' | '{' if !quoted => depth += 1,
            ')' if !quoted && depth == 0 => break,
            ')' | ']' | '}' if !quoted => depth -= 1,
            ',' if !quoted && depth == 0 => {
                found.push(String::new());
                continue;
            }
            _ => {}
        }
        if let Some(argument) = found.last_mut() {
            argument.push(character);
        }
    }
    for argument in &mut found {
        *argument = argument.trim().to_owned();
    }
    found
}

/// Locals that only ever hold an element of `KEYS`.
pub fn assigned_from_keys(text: &str) -> BTreeSet<&str> {
    let (mut from_keys, mut from_others) = (BTreeSet::new(), BTreeSet::new());
    for line in text.lines() {
        let line = line.trim();
        let Some((names, value)) = line.split_once(" = ") else {
            continue;
        };
        let name = names.strip_prefix("local ").unwrap_or(names);
        if is_element_of_keys(value) {
            from_keys.insert(name);
        } else {
            from_others.extend(name.split(", "));
        }
    }
    from_keys.retain(|name| !from_others.contains(name));
    from_keys
}

/// Whether an expression is `KEYS[..]` and nothing else.
pub fn is_element_of_keys(expression: &str) -> bool {
    let index = expression
        .strip_prefix("KEYS[")
        .and_then(|rest| rest.strip_suffix(']'));
    index.is_some_and(|index| !index.contains(['[', ']']))
}

/// The text without comments.
pub fn uncommented(text: &str) -> String {
    let lines = text
        .lines()
        .map(|line| line.split("--").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}
