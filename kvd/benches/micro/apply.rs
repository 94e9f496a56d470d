//! Entries, from their bytes to their replies: what a node does with what is committed.

use std::sync::Arc;

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use kvd::keyspace::Limits;
use kvd::raft::entry::{self, FEATURE_LEVEL, GroupBuilder, Rule, Stamp};
use kvd::raft::executor::Executor;
use kvd::raft::types::{Entry, Proposal, log_id};
use kvd::storage::Store;
use openraft::EntryPayload;

use super::keyspace::{filled, some_keys};

fn group(commands: usize) -> GroupBuilder {
    let mut group = GroupBuilder::new(Rule::Each);
    for key in some_keys().iter().cycle().take(commands) {
        group.command(&["SET", key, "new"]);
    }
    group
}

fn stamp() -> Stamp {
    Stamp {
        level: FEATURE_LEVEL,
        time_ms: 3,
        seed: 0,
    }
}

/// Entries of one group of so many SETs.
#[divan::bench(args = [1, 16, 1000])]
fn apply_entries(bencher: Bencher<'_, '_>, commands: usize) {
    let store = Arc::new(Store::new(Arc::new(filled())));
    let mut executor = Executor::new(store, Limits::default()).expect("a filled engine");
    let proposal = Proposal::new(entry::encode(stamp(), &[group(commands).finish()]));
    let mut index = 1;
    bencher.counter(ItemsCount::new(commands)).bench_local(|| {
        index += 1;
        let entry = Entry {
            log_id: log_id(1, index),
            payload: EntryPayload::Normal(proposal.clone()),
        };
        let outcomes = executor.apply([&entry].into_iter()).expect("memory");
        assert_eq!(outcomes[0].applied.groups[0].len(), commands);
    });
}

#[divan::bench(args = [1, 16, 1000])]
fn encode_entries(bencher: Bencher<'_, '_>, commands: usize) {
    bencher
        .counter(ItemsCount::new(commands))
        .with_inputs(|| group(commands))
        .bench_local_values(|group| entry::encode(stamp(), &[group.finish()]));
}

#[divan::bench(args = [1, 16, 1000])]
fn decode_entries(bencher: Bencher<'_, '_>, commands: usize) {
    let bytes = entry::encode(stamp(), &[group(commands).finish()]);
    bencher.counter(ItemsCount::new(commands)).bench_local(|| {
        let (_, groups) = entry::decode(black_box(bytes.clone())).expect("whole");
        let (mut commands, mut args) = (groups[0].commands(), Vec::new());
        let mut len = 0;
        while commands.next_into(&mut args).expect("whole") {
            len += args.len();
        }
        len
    });
}
