//! Zeros that stand in a chunk's file behind its records.
//!
//! A sync of a file that has grown waits for the file system's journal as well, which takes as long
//! again as the disk does. So a file is longer than its records: what is written replaces zeros,
//! and the length changes once for many flushes. Who reads a file takes zeros up to its end for its
//! end ([`end_of`]).
//!
//! The price is a property of files that only grow: after a loss of power a flush may be there in
//! part in any order, and not only with its end missing. So only what is short is written over
//! zeros, and a record that cannot be read is taken for one of an unfinished flush where its end or
//! a whole sector of it is still zero, and where no other record is farther behind than such a flush
//! reaches. etcd tells the two apart by zero sectors as well.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::scan::holds_a_record;

/// How far the zeros reach when they are written.
const STEP: u64 = 256 << 10;

/// What is longer than this is not written over zeros.
const SHORT_MAX: usize = 16 << 10;

/// So many short flushes come before zeros are written again, where one was long.
const CALM: u32 = 64;

/// What a disk writes as a whole.
const SECTOR: usize = 512;

/// What is known of the end of a file that is written to.
pub(super) struct Ahead {
    /// The length of the file, with its zeros.
    len: u64,
    /// Short flushes since the last long one.
    short: u32,
}

impl Ahead {
    /// Of a file of that length.
    pub(super) fn new(len: u64) -> Self {
        Ahead { len, short: CALM }
    }

    /// The same for the next file, which is empty.
    pub(super) fn restart(&mut self) {
        self.len = 0;
    }

    /// Writes `bytes` at `at`, where the records end.
    pub(super) fn write(&mut self, file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
        let end = at + bytes.len() as u64;
        if bytes.len() > SHORT_MAX {
            self.short = 0;
            self.cut(file, at)?;
        } else {
            self.short = self.short.saturating_add(1);
        }
        file.write_all_at(bytes, at)?;
        if end > self.len {
            self.len = end;
            if self.short >= CALM {
                self.extend(file)?;
            }
        }
        Ok(())
    }

    /// Cuts the zeros off, which begin at `end`.
    pub(super) fn cut(&mut self, file: &File, end: u64) -> io::Result<()> {
        if self.len > end {
            file.set_len(end)?;
            self.len = end;
        }
        Ok(())
    }

    fn extend(&mut self, file: &File) -> io::Result<()> {
        match file.write_all_at(&vec![0; STEP as usize], self.len) {
            Ok(()) => self.len += STEP,
            // Records need less room; they are told where there is none for them.
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                self.len = file.metadata()?.len();
                self.short = 0;
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// How the records of a log's last file end where one cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileEnd {
    /// Nothing but zeros follows.
    Zeros,
    /// A flush that nobody was told of is there in part.
    Unfinished,
    /// Something was there and is not any more.
    Damaged,
}

/// What is to be made of `bytes`, the last file of a log, where the record at `at` cannot be read:
/// `read` is where the attempt ended, and `error` what came of it.
pub(super) fn end_of(bytes: &[u8], at: usize, read: usize, error: &io::Error) -> FileEnd {
    let follow = without_zeros(&bytes[at..]).len();
    if follow == 0 {
        return FileEnd::Zeros;
    }
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return FileEnd::Unfinished;
    }
    // Nothing stands behind it, and its own end is missing.
    if at + follow < read {
        return FileEnd::Unfinished;
    }
    if follow > SHORT_MAX && holds_a_record(&bytes[at + 1..]) {
        return FileEnd::Damaged;
    }
    // What is missing of a sector reaches to its end: nothing was ever behind it.
    let mut from = at;
    while from < read.max(at + 1) {
        let to = ((from / SECTOR + 1) * SECTOR).min(bytes.len());
        if bytes[from..to].iter().all(|byte| *byte == 0) {
            return FileEnd::Unfinished;
        }
        from = to;
    }
    FileEnd::Damaged
}

/// What stands before the zeros at the end.
pub(super) fn without_zeros(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|byte| *byte != 0);
    &bytes[..end.map_or(0, |last| last + 1)]
}

#[cfg(test)]
#[path = "ahead_tests.rs"]
mod tests;
