//! The arguments of a command as data, read from how people write them.
//!
//! `key [EX seconds | PERSIST] [key ...]`: square brackets hold what may be left out, bars stand
//! between alternatives, words in capitals are sent as they are, and `...` repeats.

use crate::resp::Reply;

/// One argument, or several that belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Argument {
    name: String,
    kind: &'static str,
    /// The word that stands before it, or that it is.
    token: Option<String>,
    optional: bool,
    multiple: bool,
    parts: Vec<Argument>,
}

/// The arguments of a syntax.
pub(super) fn parse(syntax: &str) -> Vec<Argument> {
    let spaced = syntax.replace('[', " [ ").replace(']', " ] ");
    let mut words = spaced.split_whitespace().peekable();
    let (arguments, _) = sequence(&mut words);
    arguments
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

/// Reads up to a closing bracket or the end: the arguments, and whether `...` came last.
fn sequence(words: &mut Words<'_>) -> (Vec<Argument>, bool) {
    let mut alternatives = vec![Vec::new()];
    let mut repeats = false;
    while let Some(word) = words.next() {
        let current = alternatives.last_mut().expect("there is always one");
        match word {
            "]" => break,
            "|" => alternatives.push(Vec::new()),
            "..." => repeats = true,
            "[" => {
                let (inner, repeats) = sequence(words);
                if repeats {
                    repeat(current, inner.len());
                } else {
                    current.push(Argument {
                        optional: true,
                        ..together(inner)
                    });
                }
            }
            word if is_token(word) => {
                let takes = words.peek().copied().filter(|next| is_name(next));
                match takes {
                    Some(name) => {
                        words.next();
                        current.push(Argument {
                            token: Some(word.to_owned()),
                            ..named(name)
                        });
                    }
                    None => current.push(Argument {
                        kind: "pure-token",
                        token: Some(word.to_owned()),
                        ..named(&word.to_ascii_lowercase())
                    }),
                }
            }
            name => current.push(named(name)),
        }
    }
    if alternatives.len() == 1 {
        return (alternatives.remove(0), repeats);
    }
    let parts: Vec<Argument> = alternatives.into_iter().map(together).collect();
    let choice = Argument {
        kind: "oneof",
        parts,
        ..named("option")
    };
    (vec![choice], repeats)
}

fn is_token(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_uppercase())
}

fn is_name(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_lowercase())
}

fn named(name: &str) -> Argument {
    Argument {
        kind: kind_of(name),
        name: name.to_owned(),
        token: None,
        optional: false,
        multiple: false,
        parts: Vec::new(),
    }
}

fn kind_of(name: &str) -> &'static str {
    match name {
        "key" | "newkey" => "key",
        "pattern" => "pattern",
        "unix-time-seconds" | "unix-time-milliseconds" => "unix-time",
        "seconds" | "milliseconds" | "count" | "cursor" | "start" | "end" | "offset" | "index"
        | "decrement" | "slot" | "numreplicas" | "timeout" | "port" | "protover" | "client-id" => {
            "integer"
        }
        _ => "string",
    }
}

/// What belongs together, as one.
fn together(mut parts: Vec<Argument>) -> Argument {
    if parts.len() == 1 {
        return parts.remove(0);
    }
    let name = parts
        .first()
        .map_or("option", |part| part.name.as_str())
        .to_owned();
    Argument {
        kind: "block",
        parts,
        ..named(&name)
    }
}

/// Marks the last `count` arguments as repeating.
fn repeat(arguments: &mut Vec<Argument>, count: usize) {
    let at = arguments.len().saturating_sub(count.max(1));
    let last = arguments.split_off(at);
    arguments.push(Argument {
        multiple: true,
        ..together(last)
    });
}

/// The arguments as COMMAND DOCS shows them.
pub(super) fn reply(arguments: &[Argument]) -> Reply {
    Reply::Array(arguments.iter().map(reply_of).collect())
}

fn reply_of(argument: &Argument) -> Reply {
    let text = |text: &str| Reply::bulk_from(text);
    let mut fields = vec![
        (text("name"), text(&argument.name)),
        (text("type"), text(argument.kind)),
    ];
    if let Some(token) = &argument.token {
        fields.push((text("token"), text(token)));
    }
    let flags: Vec<Reply> = [
        (argument.optional, "optional"),
        (argument.multiple, "multiple"),
    ]
    .into_iter()
    .filter(|(applies, _)| *applies)
    .map(|(_, flag)| Reply::simple(flag))
    .collect();
    if !flags.is_empty() {
        fields.push((text("flags"), Reply::Set(flags)));
    }
    if !argument.parts.is_empty() {
        fields.push((text("arguments"), reply(&argument.parts)));
    }
    Reply::Map(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(arguments: &[Argument]) -> String {
        let one = |argument: &Argument| {
            let token = argument
                .token
                .as_ref()
                .map_or(String::new(), |token| format!("{token}="));
            let parts = if argument.parts.is_empty() {
                String::new()
            } else {
                format!("({})", text(&argument.parts))
            };
            let optional = if argument.optional { "?" } else { "" };
            let multiple = if argument.multiple { "*" } else { "" };
            format!(
                "{token}{}:{}{parts}{optional}{multiple}",
                argument.name, argument.kind
            )
        };
        arguments.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn syntaxes_become_arguments() {
        for (syntax, expected) in [
            ("", ""),
            ("key", "key:key"),
            ("key [key ...]", "key:key*"),
            (
                "key value [key value ...]",
                "key:block(key:key value:string)*",
            ),
            (
                "key [NX | XX] [GET]",
                "key:key option:oneof(NX=nx:pure-token XX=xx:pure-token)? GET=get:pure-token?",
            ),
            (
                "[EX seconds | PERSIST]",
                "option:oneof(EX=seconds:integer PERSIST=persist:pure-token)?",
            ),
            (
                "cursor [MATCH pattern]",
                "cursor:integer MATCH=pattern:pattern?",
            ),
            (
                "[protover [AUTH username password]]",
                "protover:block(protover:integer \
                 username:block(AUTH=username:string password:string)?)?",
            ),
        ] {
            assert_eq!(text(&parse(syntax)), expected, "{syntax}");
        }
    }

    #[test]
    fn brackets_of_every_row_are_balanced() {
        for spec in crate::command::all() {
            let count = |bracket| spec.syntax.matches(bracket).count();
            assert_eq!(count('['), count(']'), "{}", spec.name);
            assert_eq!(
                spec.syntax.is_empty(),
                parse(spec.syntax).is_empty(),
                "{}",
                spec.name
            );
        }
    }
}
