//! `kvd log`: the records of a stopped node's log as text and as JSON, and its repair.

use std::path::PathBuf;

use kvd::config::LogCommand;
use kvd::exit;
use kvd::offline;
use kvd::raft::LogId;
use kvd::raft::entry;
use kvd::raft::log::{Change, End, Record, Scan};

use super::failed;
use crate::Failed;
use crate::output::say;

/// `kvd log`.
pub(crate) fn log(command: LogCommand) -> Result<(), Failed> {
    match command {
        LogCommand::Inspect {
            directory,
            from,
            to,
            json,
        } => {
            let mut file = PathBuf::new();
            let (_, scan) = offline::scan_log(&directory, &mut |record| {
                if !is_in(record, from, to) {
                    return;
                }
                if json {
                    say!("{}", as_json(record));
                    return;
                }
                if file != record.file {
                    file.clone_from(&record.file);
                    say!("{}", file.display());
                }
                let what = describe(&record.change);
                say!("  {:>9} {:>8} bytes  {what}", record.offset, record.bytes);
            })
            .map_err(failed)?;
            if !json {
                summary(&scan);
            }
            ended(&scan.end)
        }
        LogCommand::Verify { directory } => {
            let (_, scan) = offline::scan_log(&directory, &mut |_| {}).map_err(failed)?;
            summary(&scan);
            ended(&scan.end)
        }
        LogCommand::Repair {
            directory,
            drop_from,
            ..
        } => {
            let repaired = match drop_from {
                Some(index) => offline::drop_from(&directory, index),
                None => offline::drop_tail(&directory),
            }
            .map_err(failed)?;
            let what = if drop_from.is_some() {
                "entries"
            } else {
                "bytes"
            };
            say!(
                "{} {what} were dropped; the log ends with entry {}",
                repaired.dropped,
                repaired.last
            );
            if let Some(kept) = repaired.kept {
                say!("what was there is kept in {}", kept.display());
            }
            Ok(())
        }
    }
}

/// What a log holds, in a few lines.
pub(super) fn summary(scan: &Scan) {
    let id = |id: Option<LogId>| match id {
        Some(id) => format!("{} of term {}", id.index, id.leader_id.term),
        None => "none".to_owned(),
    };
    say!(
        "log         {} files, {} bytes, {} records",
        scan.files,
        scan.bytes,
        scan.records
    );
    match (scan.entries.keys().next(), scan.entries.keys().last()) {
        (Some(first), Some(last)) => say!("entries     {first} to {last}"),
        _ => say!("entries     none"),
    }
    say!("last        {}", id(scan.state.last));
    say!("committed   {}", id(scan.state.committed));
    say!("purged      {}", id(scan.state.purged));
    match scan.state.vote {
        Some(vote) => say!(
            "vote        term {} for {:016x}{}",
            vote.leader_id.term,
            vote.leader_id.voted_for,
            if vote.committed { ", elected" } else { "" }
        ),
        None => say!("vote        none"),
    }
}

/// How it ends, as an exit code.
pub(super) fn ended(end: &End) -> Result<(), Failed> {
    match end {
        End::Whole => Ok(()),
        End::Torn {
            file,
            offset,
            bytes,
        } => Err(Failed::new(
            exit::TORN,
            format!(
                "{} ends with an unfinished record of {bytes} bytes at byte {offset}; nobody was \
                 promised anything of it",
                file.display()
            ),
        )
        .with_hint(Some(
            "kvd log repair --drop-tail, if the node does not start",
        ))),
        End::Damaged {
            file,
            offset,
            reason,
        } => Err(Failed::new(
            exit::CONFIG,
            format!("{} is damaged at byte {offset}: {reason}", file.display()),
        )
        .with_hint(Some(
            "wipe the directory and JOIN the node again; only if all members are lost: kvd log \
             repair --drop-from INDEX --accept-data-loss",
        ))),
    }
}

fn is_in(record: &Record, from: u64, to: u64) -> bool {
    match record.change {
        Change::Append(id, _) => (from..=to).contains(&id.index),
        _ => from == 0 && to == u64::MAX,
    }
}

/// The names of the commands of an entry, each with how often it comes.
fn commands(change: &Change) -> Vec<(String, usize)> {
    let mut found: Vec<(String, usize)> = Vec::new();
    let mut add = |name: String| match found.iter_mut().find(|(known, _)| *known == name) {
        Some((_, count)) => *count += 1,
        None => found.push((name, 1)),
    };
    let Change::Append(_, body) = change else {
        return found;
    };
    match body.payload() {
        Ok(openraft::EntryPayload::Normal(proposal)) => {
            for group in entry::decode(proposal.bytes).map_or(Vec::new(), |(_, groups)| groups) {
                let (mut commands, mut args) = (group.commands(), Vec::new());
                while let Ok(true) = commands.next_into(&mut args) {
                    let name = args
                        .first()
                        .map_or("", |name| std::str::from_utf8(name).unwrap_or_default());
                    add(name.to_ascii_uppercase());
                }
            }
        }
        Ok(openraft::EntryPayload::Membership(_)) => add("(membership)".to_owned()),
        Ok(openraft::EntryPayload::Blank) => add("(blank)".to_owned()),
        Err(_) => {}
    }
    found
}

fn describe(change: &Change) -> String {
    match change {
        Change::Vote(vote) => format!(
            "vote      term {} for {:016x}{}",
            vote.leader_id.term,
            vote.leader_id.voted_for,
            if vote.committed { ", elected" } else { "" }
        ),
        Change::Append(id, _) => {
            let commands = commands(change)
                .into_iter()
                .map(|(name, count)| match count {
                    1 => name,
                    count => format!("{count} {name}"),
                });
            let commands: Vec<String> = commands.collect();
            format!(
                "entry     {} of term {}: {}",
                id.index,
                id.leader_id.term,
                commands.join(", ")
            )
        }
        Change::Commit(id) => format!("committed {}", id.index),
        Change::Truncate(last) => {
            format!("dropped   behind {}", last.map_or(0, |id| id.index))
        }
        Change::Purge(id) => format!("purged    up to {}", id.index),
        Change::State(state) => format!(
            "state     last {}, committed {}, purged {}",
            state.last.map_or(0, |id| id.index),
            state.committed.map_or(0, |id| id.index),
            state.purged.map_or(0, |id| id.index)
        ),
    }
}

fn as_json(record: &Record) -> serde_json::Value {
    let mut value = serde_json::json!({
        "file": record.file,
        "offset": record.offset,
        "bytes": record.bytes,
    });
    let more = match &record.change {
        Change::Vote(vote) => serde_json::json!({
            "kind": "vote",
            "term": vote.leader_id.term,
            "node": format!("{:016x}", vote.leader_id.voted_for),
            "elected": vote.committed,
        }),
        Change::Append(id, _) => {
            let commands: serde_json::Map<String, serde_json::Value> = commands(&record.change)
                .into_iter()
                .map(|(name, count)| (name, count.into()))
                .collect();
            serde_json::json!({
                "kind": "entry",
                "index": id.index,
                "term": id.leader_id.term,
                "commands": commands,
            })
        }
        Change::Commit(id) => serde_json::json!({ "kind": "committed", "index": id.index }),
        Change::Truncate(last) => {
            serde_json::json!({ "kind": "dropped", "behind": last.map_or(0, |id| id.index) })
        }
        Change::Purge(id) => serde_json::json!({ "kind": "purged", "upto": id.index }),
        Change::State(state) => serde_json::json!({
            "kind": "state",
            "last": state.last.map_or(0, |id| id.index),
            "committed": state.committed.map_or(0, |id| id.index),
            "purged": state.purged.map_or(0, |id| id.index),
        }),
    };
    if let (Some(value), serde_json::Value::Object(more)) = (value.as_object_mut(), more) {
        value.extend(more);
    }
    value
}
