//! The reference of commands, written from the table.

use std::fmt::Write as _;

use crate::command::spec::{Flags, Group, Kind, Spec};
use crate::command::table::TABLE;

const INTRODUCTION: &str = "\
# Commands

This page is written from the table of commands, and a test keeps it so.
Where a command is Redis's, its semantics, replies and errors are those of Redis 7.

*Read* commands only look at the keyspace: they are linearizable on every node unless the
connection or the server asks for less. *Write* commands go through the log: when the reply comes,
a majority has them on disk. The others are about the connection, the node or the cluster.
";

/// The page `docs/commands.md`.
pub fn reference() -> String {
    let mut page = INTRODUCTION.to_owned();
    for group in Group::ALL {
        write!(page, "\n## {}\n", title(*group)).expect("a string takes everything");
        let mut rows: Vec<&Spec> = TABLE
            .iter()
            .filter(|spec| spec.group == *group)
            .flat_map(|spec| {
                let container = spec.subcommands;
                // A container that cannot be run by itself is only the heading of its rows.
                let runs = container.is_empty() || spec.accepts(1);
                runs.then_some(spec).into_iter().chain(container)
            })
            .collect();
        rows.sort_by_key(|spec| spec.name);
        for spec in rows {
            entry(spec, &mut page);
        }
    }
    page
}

fn title(group: Group) -> &'static str {
    match group {
        Group::String => "Strings",
        Group::Generic => "Keys",
        Group::Transactions => "Transactions",
        Group::Connection => "Connection",
        Group::Server => "Server",
        Group::Cluster => "Cluster",
    }
}

fn entry(spec: &Spec, page: &mut String) {
    let name = spec.name.to_ascii_uppercase().replace('|', " ");
    let call = format!("{name} {}", spec.syntax);
    let kind = match spec.kind {
        Kind::Read(_) if spec.has(Flags::LOCAL) => "Read of this node's own state. ",
        Kind::Read(_) => "Read. ",
        Kind::Write(_) => "Write. ",
        Kind::Session(_) => "",
    };
    let origin = match spec.since.split_once(' ') {
        Some((_, version)) => format!("kvd {version}"),
        None => format!("Redis {}", spec.since),
    };
    write!(
        page,
        "\n`{}`  \n{}.  \n{kind}{}. Since {origin}.\n",
        call.trim_end(),
        spec.summary,
        spec.complexity,
    )
    .expect("a string takes everything");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_that_of_the_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/commands.md");
        if std::env::var_os("KVD_UPDATE_DOCS").is_some() {
            std::fs::write(path, reference()).expect("the page is writable");
        }
        let page = std::fs::read_to_string(path).expect("the page is there");
        assert!(
            page == reference(),
            "KVD_UPDATE_DOCS=1 rewrites docs/commands.md"
        );
    }

    #[test]
    fn every_row_is_on_the_page() {
        let page = reference();
        for spec in TABLE.iter().flat_map(|spec| {
            let rows = std::slice::from_ref(spec);
            if spec.subcommands.is_empty() {
                rows
            } else {
                spec.subcommands
            }
        }) {
            let name = spec.name.to_ascii_uppercase().replace('|', " ");
            assert!(page.contains(&format!("\n`{name}")), "{name}");
        }
    }
}
