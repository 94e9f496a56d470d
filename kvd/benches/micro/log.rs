//! The log's files, beside the build: on a disk rather than in memory.

use std::sync::mpsc;

use divan::Bencher;
use kvd::raft::log::{Body, FileJournal, Journal as _};
use kvd::raft::types::log_id;
use tempfile::TempDir;

/// An entry of about one SET.
const ENTRY_BYTES: usize = 100;

/// Each append stays in the log's files.
const APPENDS: u32 = 100;

struct Log {
    journal: FileJournal,
    next: u64,
    body: Body,
    // The last: it is removed when the files are closed.
    _dir: TempDir,
}

impl Log {
    fn new() -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        Log {
            journal: FileJournal::open(dir.path()).expect("a new log"),
            next: 0,
            body: Body(vec![b'e'; ENTRY_BYTES].into()),
            _dir: dir,
        }
    }

    fn append(&mut self) {
        let id = log_id(1, self.next);
        self.next += 1;
        let body = self.body.clone();
        self.journal.append(id, body).expect("the disk takes it");
    }
}

#[divan::bench(sample_count = 100, sample_size = APPENDS)]
fn append(bencher: Bencher<'_, '_>) {
    let mut log = Log::new();
    bencher.bench_local(|| log.append());
}

/// So many appends share a sync.
#[divan::bench(args = [1, 16], sample_count = 100, sample_size = 1)]
fn append_and_sync(bencher: Bencher<'_, '_>, appends: u32) {
    let mut log = Log::new();
    bencher.bench_local(|| {
        for _ in 0..appends {
            log.append();
        }
        let (done, synced) = mpsc::channel();
        let flush = log.journal.flush(Box::new(move |result| {
            // The other end waits for it.
            drop(done.send(result));
        }));
        flush.expect("it begins");
        synced.recv().expect("it ends").expect("the disk takes it");
    });
}
