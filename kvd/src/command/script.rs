//! Text scripts: what a client sends, and what it must get.
//!
//! ```text
//! !kvd-only              the script is not for redis-server
//! !offline               the script is for the functions alone, whose time it rules
//! !live                  the script needs a connection: the functions alone cannot run it
//! # a comment
//! > SET a "x y"          a command, in the quoting of redis-cli
//! +OK                    its reply, in lines until something else begins
//! @advance 1500ms        time goes on
//! @sorted                the next reply's innermost lists come in any order
//! ```
//!
//! Scripts live in `scripts/<family>/<name>.txt`. They run against the functions in this module's
//! tests, and through [`Script::replay`] against anything that answers commands, so that a running
//! kvd and redis-server can be asked the same.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::resp::parser::{Limits, Parsed, RequestParser};
use crate::resp::{Reply, number};

/// Where the scripts are.
pub const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/command/scripts");

/// One script.
#[derive(Debug, Clone)]
pub struct Script {
    /// The family and name, as in `string/set`.
    pub name: String,
    /// Whether redis-server answers otherwise, for a reason that the script states.
    pub kvd_only: bool,
    /// Whether only the functions, whose time it rules, can run it.
    pub offline: bool,
    /// Whether only a server with connections can run it.
    pub live: bool,
    lines: Vec<Line>,
}

#[derive(Debug, Clone, PartialEq)]
enum Line {
    /// Blank, a comment or a flag: kept as it is.
    Text(String),
    Advance(Duration, String),
    Command {
        /// `@sorted`, as written.
        sorted: bool,
        text: String,
        args: Vec<Vec<u8>>,
        expected: String,
    },
}

/// What a script asks for, one after the other.
#[derive(Debug)]
pub enum Step<'a> {
    /// Carry out this command and answer.
    Command(&'a [Vec<u8>]),
    /// Let so much time go by; the answer is not looked at.
    Advance(Duration),
}

impl Script {
    /// Reads all scripts of a folder of families, in the order of their names.
    ///
    /// # Panics
    ///
    /// When a file cannot be read, or is no script: these are files of a test.
    pub fn load(folder: &Path) -> Vec<Script> {
        let mut scripts: Vec<Script> = files(folder)
            .iter()
            .map(|path| {
                let text = std::fs::read_to_string(path).expect("a script is readable text");
                let name = path
                    .strip_prefix(folder)
                    .expect("the file is in the folder");
                Script::parse(&name.with_extension("").to_string_lossy(), &text)
            })
            .collect();
        scripts.sort_by(|a, b| a.name.cmp(&b.name));
        scripts
    }

    /// Reads one script.
    ///
    /// # Panics
    ///
    /// When it is no script.
    pub fn parse(name: &str, text: &str) -> Script {
        let mut script = Script {
            name: name.to_owned(),
            kvd_only: false,
            offline: false,
            live: false,
            lines: Vec::new(),
        };
        let mut sorted = false;
        for (number, line) in text.lines().enumerate() {
            let place = || format!("{name}:{}: {line}", number + 1);
            if let Some(command) = line.strip_prefix("> ") {
                script.lines.push(Line::Command {
                    sorted: std::mem::take(&mut sorted),
                    text: command.to_owned(),
                    args: split(command).unwrap_or_else(|| panic!("{}", place())),
                    expected: String::new(),
                });
                continue;
            }
            assert!(!sorted, "{}: a command comes after @sorted", place());
            match line.chars().next() {
                None | Some('#') => script.lines.push(Line::Text(line.to_owned())),
                Some('!') => {
                    match line {
                        "!kvd-only" => script.kvd_only = true,
                        "!offline" => script.offline = true,
                        "!live" => script.live = true,
                        _ => panic!("{}: no such flag", place()),
                    }
                    script.lines.push(Line::Text(line.to_owned()));
                }
                Some('@') if line == "@sorted" => sorted = true,
                Some('@') => {
                    let ms = line
                        .strip_prefix("@advance ")
                        .and_then(|time| time.strip_suffix("ms"))
                        .and_then(|ms| ms.parse().ok())
                        .unwrap_or_else(|| panic!("{}: no such directive", place()));
                    let duration = Duration::from_millis(ms);
                    script.lines.push(Line::Advance(duration, line.to_owned()));
                }
                Some(_) => match script.lines.last_mut() {
                    Some(Line::Command { expected, .. }) => {
                        expected.push_str(line);
                        expected.push('\n');
                    }
                    _ => panic!("{}: a reply without a command", place()),
                },
            }
        }
        script
    }

    /// The commands.
    pub fn commands(&self) -> impl Iterator<Item = &[Vec<u8>]> {
        self.lines.iter().filter_map(|line| match line {
            Line::Command { args, .. } => Some(args.as_slice()),
            Line::Text(_) | Line::Advance(..) => None,
        })
    }

    /// Runs the script on something that answers, and returns the script with what it answered.
    pub fn run(&self, answer: &mut dyn FnMut(Step<'_>) -> Reply) -> Script {
        let mut script = self.clone();
        for line in &mut script.lines {
            match line {
                Line::Text(_) => {}
                Line::Advance(duration, _) => {
                    answer(Step::Advance(*duration));
                }
                Line::Command {
                    sorted,
                    args,
                    expected,
                    ..
                } => {
                    let reply = answer(Step::Command(args));
                    *expected = rendered(reply, *sorted);
                }
            }
        }
        script
    }

    /// Runs the script on something that answers.
    ///
    /// # Errors
    ///
    /// The first reply that is not the expected one, told for people.
    pub fn replay(&self, answer: &mut dyn FnMut(Step<'_>) -> Reply) -> Result<(), String> {
        let got = self.run(answer);
        for (wanted, got) in self.lines.iter().zip(&got.lines) {
            if wanted != got
                && let (Line::Command { text, expected, .. }, Line::Command { expected: got, .. }) =
                    (wanted, got)
            {
                return Err(format!(
                    "{}: {text}\nexpected:\n{expected}got:\n{got}",
                    self.name
                ));
            }
        }
        Ok(())
    }

    /// The script as text.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for line in &self.lines {
            match line {
                Line::Text(line) | Line::Advance(_, line) => {
                    text.push_str(line);
                    text.push('\n');
                }
                Line::Command {
                    sorted,
                    text: command,
                    expected,
                    ..
                } => {
                    if *sorted {
                        text.push_str("@sorted\n");
                    }
                    writeln!(text, "> {command}").expect("a string takes everything");
                    text.push_str(expected);
                }
            }
        }
        text
    }
}

/// The files below a folder that end in `.txt`.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("the folder of scripts is readable") {
        let path = entry.expect("its entries are readable").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|extension| extension == "txt") {
            found.push(path);
        }
    }
    found
}

/// The arguments of a line, as an inline request; `None` when it is none.
fn split(line: &str) -> Option<Vec<Vec<u8>>> {
    let mut parser = RequestParser::new(Limits::default());
    parser.set_authenticated(true);
    match parser.parse(format!("{line}\r\n").as_bytes()) {
        Parsed::Command { args, .. } => Some(args.iter().map(<[u8]>::to_vec).collect()),
        Parsed::Nothing { .. } | Parsed::Incomplete { .. } | Parsed::Error(_) => None,
    }
}

/// A reply in lines, each of which begins with what kind of thing it is.
fn rendered(mut reply: Reply, sorted: bool) -> String {
    if sorted {
        sort_innermost(&mut reply);
    }
    let mut out = String::new();
    render(&reply, 0, &mut out);
    out
}

fn sort_innermost(reply: &mut Reply) {
    let key = |reply: &Reply| {
        let mut out = String::new();
        render(reply, 0, &mut out);
        out
    };
    match reply {
        Reply::Array(items) | Reply::Set(items) => {
            let nested =
                |item: &Reply| matches!(item, Reply::Array(_) | Reply::Set(_) | Reply::Map(_));
            if items.iter().any(nested) {
                items.iter_mut().for_each(sort_innermost);
            } else {
                items.sort_by_key(key);
            }
        }
        Reply::Map(pairs) => pairs.sort_by_key(|(name, _)| key(name)),
        _ => {}
    }
}

fn render(reply: &Reply, depth: usize, out: &mut String) {
    let list = |mark: char, items: &[Reply], out: &mut String| {
        writeln!(out, "{mark}{}", items.len()).expect("a string takes everything");
        for item in items {
            render(item, depth + 1, out);
        }
    };
    // A nested reply stands two columns to the right, so every line begins with a kind or a space.
    out.push_str(&"  ".repeat(depth));
    match reply {
        Reply::Ok => out.push_str("+OK\n"),
        Reply::Simple(text) => line(out, "+", text),
        Reply::Error(text) => line(out, "-", text),
        Reply::Int(value) => line(out, ":", &value.to_string()),
        Reply::Bulk(bytes) => line(out, "", &quoted(bytes)),
        Reply::Null | Reply::NullArray => out.push_str("(nil)\n"),
        Reply::Array(items) => list('*', items, out),
        Reply::Set(items) => list('~', items, out),
        Reply::Push(items) => list('>', items, out),
        Reply::Map(pairs) => {
            line(out, "%", &pairs.len().to_string());
            for (name, value) in pairs {
                render(name, depth + 1, out);
                render(value, depth + 2, out);
            }
        }
        Reply::Double(value) => line(out, ",", &number::format_double(*value)),
        Reply::Bool(value) => line(out, "(", if *value { "true)" } else { "false)" }),
        Reply::BigNumber(text) => line(out, "(", &format!("big {text})")),
        Reply::Verbatim { format, text } => {
            let format = String::from_utf8_lossy(format);
            line(out, "=", &format!("{format} {}", quoted(text)));
        }
    }
}

fn line(out: &mut String, mark: &str, text: &str) {
    out.push_str(mark);
    out.push_str(text);
    out.push('\n');
}

/// Bytes in the quoting of redis-cli.
fn quoted(bytes: &[u8]) -> String {
    let mut out = String::from("\"");
    for byte in bytes {
        match byte {
            b'"' | b'\\' => {
                out.push('\\');
                out.push(char::from(*byte));
            }
            b'\n' => out.push_str("\\n"),
            b'\r' => out.push_str("\\r"),
            b'\t' => out.push_str("\\t"),
            b' '..=b'~' => out.push(char::from(*byte)),
            _ => write!(out, "\\x{byte:02x}").expect("a string takes everything"),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests;
