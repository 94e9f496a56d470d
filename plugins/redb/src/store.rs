//! One redb file: its two tables, and how they are read and written.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvd_plugin_api::{Error, ErrorKind, Feed, Flow, Limits, Mark, Op, Range, Result, View};
use redb::{
    Builder, Database, Durability, ReadOnlyTable, ReadableDatabase, ReadableTable,
    ReadableTableMetadata, Table, TableDefinition, WriteTransaction,
};

use crate::error::from_redb;

const DATA: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("data");
const MARK: TableDefinition<'static, (), &[u8]> = TableDefinition::new("mark");

/// redb stores a key and its value in one leaf page of at most 3.75 GiB, and a value of at most
/// 3 GiB: any key and value within these two limits fit together.
pub(crate) const LIMITS: Limits = Limits {
    key_bytes_max: 768 << 20,
    value_bytes_max: 3 << 30,
    batch_bytes_max: u64::MAX,
};

/// How much of a feed goes into one transaction: enough to make its fsync cheap, little enough to
/// keep what redb remembers about a transaction's pages small.
const FILL_BYTES: usize = 64 << 20;

/// An open redb file.
pub(crate) struct Store {
    db: Database,
    path: PathBuf,
}

impl Store {
    /// Makes the file at `path`, where nothing lies.
    pub(crate) fn create(path: &Path, cache_bytes: usize) -> Result<Store> {
        let db = Builder::new()
            .set_cache_size(cache_bytes)
            .create(path)
            .map_err(from_redb)?;
        Store::with_database(db, path)
    }

    /// Opens the file at `path`, which was made before; repairs it after a crash.
    pub(crate) fn open(path: &Path, cache_bytes: usize, check: bool) -> Result<Store> {
        let mut builder = Builder::new();
        builder
            .set_cache_size(cache_bytes)
            .set_check_integrity_on_open(check);
        Store::with_database(builder.open(path).map_err(from_redb)?, path)
    }

    /// The same over an open database; makes the tables where there are none.
    pub(crate) fn with_database(db: Database, path: &Path) -> Result<Store> {
        let txn = db.begin_read().map_err(from_redb)?;
        let is_new = txn.list_tables().map_err(from_redb)?.next().is_none();
        drop(txn);
        if is_new {
            let txn = db.begin_write().map_err(from_redb)?;
            txn.open_table(DATA).map_err(from_redb)?;
            put_mark(&txn, &Mark::default())?;
            commit_durably(txn)?;
        }
        Ok(Store {
            db,
            path: path.to_owned(),
        })
    }

    /// The state as it is now, as a read that outlives later writes.
    pub(crate) fn read(self: &Arc<Self>) -> Result<State> {
        let txn = self.db.begin_read().map_err(from_redb)?;
        let bytes = txn
            .open_table(MARK)
            .map_err(from_redb)?
            .get(())
            .map_err(from_redb)?
            .ok_or_else(|| Error::new(ErrorKind::Corruption, "redb: the mark is missing"))?;
        let mark = Mark::from_bytes(bytes.value())?;
        self.read_at(mark)
    }

    /// As [`read`](Self::read), where the mark is known.
    pub(crate) fn read_at(self: &Arc<Self>, mark: Mark) -> Result<State> {
        let txn = self.db.begin_read().map_err(from_redb)?;
        let table = txn.open_table(DATA).map_err(from_redb)?;
        Ok(State {
            table,
            mark,
            store: Arc::clone(self),
        })
    }

    /// Applies `batch` in one transaction that a crash undoes unless [`sync`](Self::sync)
    /// follows; writes `mark` where one is given.
    pub(crate) fn write(&self, batch: &[Op<'_>], mark: Option<&Mark>) -> Result<()> {
        for op in batch {
            LIMITS.check(op)?;
        }
        let mut txn = self.db.begin_write().map_err(from_redb)?;
        txn.set_durability(Durability::None).map_err(from_redb)?;
        let mut table = txn.open_table(DATA).map_err(from_redb)?;
        for op in batch {
            match *op {
                Op::Put(key, value) => {
                    table.insert(key, value).map_err(from_redb)?;
                }
                Op::Delete(key) => {
                    table.remove(key).map_err(from_redb)?;
                }
                Op::DeleteRange(from, to) => {
                    if from >= to {
                        continue;
                    }
                    if covers(&table, from, to)? {
                        // Frees whole pages instead of taking the tree apart entry by entry.
                        drop(table);
                        txn.delete_table(DATA).map_err(from_redb)?;
                        table = txn.open_table(DATA).map_err(from_redb)?;
                    } else {
                        table.retain_in(from..to, |_, _| false).map_err(from_redb)?;
                    }
                }
            }
        }
        drop(table);
        if let Some(mark) = mark {
            put_mark(&txn, mark)?;
        }
        txn.commit().map_err(from_redb)
    }

    /// Makes all earlier writes durable.
    pub(crate) fn sync(&self) -> Result<()> {
        commit_durably(self.db.begin_write().map_err(from_redb)?)
    }

    /// Fills a new store from `feed`; durable on return.
    pub(crate) fn fill(&self, feed: &mut dyn Feed, mark: &Mark) -> Result<()> {
        let mut more = true;
        while more {
            let txn = self.db.begin_write().map_err(from_redb)?;
            let mut table = txn.open_table(DATA).map_err(from_redb)?;
            let mut bytes = 0;
            while more && bytes < FILL_BYTES {
                let mut inserted = Ok(());
                more = feed.next(&mut |key, value| {
                    bytes += key.len() + value.len();
                    inserted = LIMITS
                        .check(&Op::Put(key, value))
                        .and_then(|()| table.insert(key, value).map(drop).map_err(from_redb));
                })?;
                inserted?;
            }
            drop(table);
            if !more {
                put_mark(&txn, mark)?;
            }
            commit_durably(txn)?;
        }
        Ok(())
    }

    /// Checks every page's checksum; whether all was well.
    ///
    /// Needs that nothing reads: no [`State`] of this store may live.
    pub(crate) fn check(&mut self) -> Result<bool> {
        self.db.check_integrity().map_err(from_redb)
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// How much of the cache is in use, in bytes.
    pub(crate) fn cache_used_bytes(&self) -> usize {
        self.db.cache_stats().used_bytes()
    }
}

/// The contents at one moment.
pub(crate) struct State {
    // Before the store: a database is closed after its readers.
    table: ReadOnlyTable<&'static [u8], &'static [u8]>,
    mark: Mark,
    store: Arc<Store>,
}

impl State {
    /// Where it lives.
    pub(crate) fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The number of keys.
    pub(crate) fn len(&self) -> Result<u64> {
        self.table.len().map_err(from_redb)
    }

    /// All entries in order, as a feed for another store.
    pub(crate) fn feed(&self) -> Result<impl Feed + use<>> {
        Ok(StateFeed {
            range: self.table.range::<&[u8]>(..).map_err(from_redb)?,
        })
    }
}

impl View for State {
    fn mark(&self) -> &Mark {
        &self.mark
    }

    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        match self.table.get(key).map_err(from_redb)? {
            Some(value) => {
                out(value.value());
                Ok(true)
            }
            None => Ok(false),
        }
    }

    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        if range.to.is_some_and(|to| to <= range.from) {
            return Ok(());
        }
        let mut entries = match range.to {
            Some(to) => self.table.range::<&[u8]>(range.from..to),
            None => self.table.range::<&[u8]>(range.from..),
        }
        .map_err(from_redb)?;
        let mut next = || {
            if range.reverse {
                entries.next_back()
            } else {
                entries.next()
            }
        };
        while let Some(entry) = next() {
            let (key, value) = entry.map_err(from_redb)?;
            if out(key.value(), value.value()) == Flow::Stop {
                break;
            }
        }
        Ok(())
    }
}

struct StateFeed {
    range: redb::Range<'static, &'static [u8], &'static [u8]>,
}

impl Feed for StateFeed {
    fn next(&mut self, out: &mut dyn FnMut(&[u8], &[u8])) -> Result<bool> {
        match self.range.next() {
            Some(entry) => {
                let (key, value) = entry.map_err(from_redb)?;
                out(key.value(), value.value());
                Ok(true)
            }
            None => Ok(false),
        }
    }
}

/// Whether every key of `table` is `>= from` and `< to`.
fn covers(table: &Table<'_, &'static [u8], &'static [u8]>, from: &[u8], to: &[u8]) -> Result<bool> {
    let first = table.first().map_err(from_redb)?;
    let last = table.last().map_err(from_redb)?;
    Ok(match (first, last) {
        (Some(first), Some(last)) => first.0.value() >= from && last.0.value() < to,
        _ => false,
    })
}

/// Commits with an fsync, and so that opening after a crash needs no walk of the whole file.
fn commit_durably(mut txn: WriteTransaction) -> Result<()> {
    txn.set_durability(Durability::Immediate)
        .map_err(from_redb)?;
    txn.set_quick_repair(true);
    txn.commit().map_err(from_redb)
}

fn put_mark(txn: &WriteTransaction, mark: &Mark) -> Result<()> {
    let mut table = txn.open_table(MARK).map_err(from_redb)?;
    let bytes = mark.to_bytes();
    table.insert((), bytes.as_slice()).map_err(from_redb)?;
    Ok(())
}
