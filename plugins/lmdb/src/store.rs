//! One LMDB environment: how it is read, written and made durable.

use std::fs::{self, File};
use std::ops::Bound;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use heed::types::Bytes;
use heed::{
    CompactionOption, Database, Env, EnvFlags, EnvOpenOptions, PutFlags, RoTxn, RwTxn, WithoutTls,
};
use kvd_plugin_api::{
    Error, ErrorKind, Feed, Flow, Limits, LongKeys, Mark, Op, Range, Result, Stored, StoredMut,
    View,
};

use crate::error::from_lmdb;

/// The key of the mark: in front of all of the host's, which begin with 1 or 2.
const MARK: &[u8] = &[0];

/// LMDB's own keys end here.
const KEYS: LongKeys = LongKeys::new(511);

/// The largest that were tried. LMDB notes a value's length in 32 bits.
pub(crate) const LIMITS: Limits = Limits {
    key_bytes_max: 128 << 10,
    value_bytes_max: 512 << 20,
    batch_bytes_max: u64::MAX,
};

/// How many states may be read at the same time.
const READERS_MAX: u32 = 4096;

/// How much of a feed goes into one transaction.
const FILL_BYTES: usize = 64 << 20;

/// The file of an environment.
const DATA: &str = "data.mdb";

/// An open environment.
pub(crate) struct Store {
    env: Env<WithoutTls>,
    db: Database<Bytes, Bytes>,
}

impl Store {
    /// Makes an environment in `dir`, where nothing lies, with the default mark.
    pub(crate) fn create(dir: &Path, map_bytes: usize) -> Result<Store> {
        fs::create_dir(dir)?;
        let store = Store::open(dir, map_bytes)?;
        store.write(&[], Some(&Mark::default()))?;
        store.sync_new(dir)?;
        Ok(store)
    }

    /// Opens the environment in `dir`.
    pub(crate) fn open(dir: &Path, map_bytes: usize) -> Result<Store> {
        let mut options = EnvOpenOptions::new().read_txn_without_tls();
        options.map_size(map_bytes).max_readers(READERS_MAX);
        #[expect(
            unsafe_code,
            reason = "what LMDB maps and which flags it is given matters"
        )]
        // SAFETY: the directory is locked by this engine, so nobody else changes the file that is
        // mapped; the flag leaves the file whole at every moment, see `write`.
        let env = unsafe {
            options.flags(EnvFlags::NO_META_SYNC);
            options.open(dir)
        }
        .map_err(from_lmdb)?;
        // Readers of a process that was killed would keep their pages for ever.
        env.clear_stale_readers().map_err(from_lmdb)?;
        let mut txn = env.write_txn().map_err(from_lmdb)?;
        let db = env.create_database(&mut txn, None).map_err(from_lmdb)?;
        txn.commit().map_err(from_lmdb)?;
        Ok(Store { env, db })
    }

    /// A read of its own.
    pub(crate) fn begin(&self) -> Result<RoTxn<'_, WithoutTls>> {
        self.env.read_txn().map_err(from_lmdb)
    }

    /// Reads in a transaction.
    pub(crate) fn read<'a>(&self, txn: &'a RoTxn<'_, WithoutTls>) -> Reading<'a> {
        Reading { db: self.db, txn }
    }

    /// The state as it is now.
    pub(crate) fn state(&self) -> Result<State> {
        let txn = self.env.clone().static_read_txn().map_err(from_lmdb)?;
        let mark = self.read(&txn).mark()?;
        Ok(State {
            txn: Mutex::new(txn),
            db: self.db,
            mark,
        })
    }

    /// Applies `batch` in one transaction, with `mark` where one is given.
    ///
    /// LMDB syncs the pages of a transaction before it writes the page that makes them the current
    /// ones; only that page itself is left to the next sync. A loss of power undoes the last
    /// transaction as a whole, and no other, because the pages that the one before needs are not
    /// used again before the next has begun, with its own sync first. (Without any sync, as LMDB
    /// offers too, the file could be damaged.)
    pub(crate) fn write(&self, batch: &[Op<'_>], mark: Option<&Mark>) -> Result<()> {
        let mut writing = Writing {
            db: self.db,
            txn: self.env.write_txn().map_err(from_lmdb)?,
        };
        for op in batch {
            match *op {
                Op::Put(key, value) => KEYS.put(&mut writing, key, value)?,
                Op::Delete(key) => KEYS.delete(&mut writing, key)?,
                Op::DeleteRange(from, to) => KEYS.delete_range(&mut writing, from, to)?,
            }
        }
        if let Some(mark) = mark {
            writing.put(MARK, &mark.to_bytes())?;
        }
        writing.txn.commit().map_err(from_lmdb)
    }

    /// Makes all earlier writes durable.
    pub(crate) fn sync(&self) -> Result<()> {
        self.env.force_sync().map_err(from_lmdb)
    }

    /// Makes a new environment durable, with its name.
    fn sync_new(&self, dir: &Path) -> Result<()> {
        self.sync()?;
        File::open(dir)?.sync_all()?;
        Ok(())
    }

    /// Fills a new environment from `feed`; durable on return.
    pub(crate) fn fill(&self, feed: &mut dyn Feed, mark: &Mark) -> Result<()> {
        let mut more = true;
        while more {
            let mut writing = Writing {
                db: self.db,
                txn: self.env.write_txn().map_err(from_lmdb)?,
            };
            let mut bytes = 0;
            while more && bytes < FILL_BYTES {
                let mut taken = Ok(());
                more = feed.next(&mut |key, value| {
                    bytes += key.len() + value.len();
                    taken = LIMITS
                        .check(&Op::Put(key, value))
                        .and_then(|()| writing.append(key, value));
                })?;
                taken?;
            }
            if !more {
                writing.put(MARK, &mark.to_bytes())?;
            }
            writing.txn.commit().map_err(from_lmdb)?;
        }
        self.sync()
    }

    /// Writes what is in use to a new environment in `dir`, without gaps; durable on return.
    pub(crate) fn copy_to(&self, dir: &Path) -> Result<()> {
        fs::create_dir(dir)?;
        let copy = self
            .env
            .copy_to_path(dir.join(DATA), CompactionOption::Enabled);
        copy.map_err(from_lmdb)?.sync_all()?;
        File::open(dir)?.sync_all()?;
        Ok(())
    }

    /// The size of the file.
    pub(crate) fn disk_bytes(&self) -> Result<u64> {
        self.env.real_disk_size().map_err(from_lmdb)
    }

    /// How much of it is in use.
    pub(crate) fn used_bytes(&self) -> Result<u64> {
        self.env.non_free_pages_size().map_err(from_lmdb)
    }
}

/// The contents in a read transaction.
pub(crate) struct Reading<'a> {
    db: Database<Bytes, Bytes>,
    txn: &'a RoTxn<'a, WithoutTls>,
}

impl Reading<'_> {
    /// The stored mark.
    pub(crate) fn mark(&self) -> Result<Mark> {
        let bytes = self.db.get(self.txn, MARK).map_err(from_lmdb)?;
        bytes.map_or_else(
            || {
                Err(Error::new(
                    ErrorKind::Corruption,
                    "lmdb: the mark is missing",
                ))
            },
            Mark::from_bytes,
        )
    }

    /// As the backend's.
    pub(crate) fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        KEYS.get(self, key, out)
    }

    /// As the backend's.
    pub(crate) fn scan(
        &self,
        range: Range<'_>,
        out: &mut dyn FnMut(&[u8], &[u8]) -> Flow,
    ) -> Result<()> {
        KEYS.scan(self, range, out)
    }
}

impl Stored for Reading<'_> {
    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        get(self.db, self.txn, key, out)
    }

    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        scan(self.db, self.txn, range, out)
    }
}

/// The contents at one moment.
pub(crate) struct State {
    // A transaction serves one thread at a time.
    txn: Mutex<RoTxn<'static, WithoutTls>>,
    db: Database<Bytes, Bytes>,
    mark: Mark,
}

impl State {
    fn reading<T>(&self, read: impl FnOnce(&Reading<'_>) -> T) -> T {
        let txn = self.txn.lock().unwrap_or_else(PoisonError::into_inner);
        read(&Reading {
            db: self.db,
            txn: &txn,
        })
    }
}

impl View for State {
    fn mark(&self) -> &Mark {
        &self.mark
    }

    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        self.reading(|reading| reading.get(key, out))
    }

    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        self.reading(|reading| reading.scan(range, out))
    }
}

/// A batch that is being written.
struct Writing<'e> {
    db: Database<Bytes, Bytes>,
    txn: RwTxn<'e>,
}

impl Writing<'_> {
    /// Sets a key that comes behind all that are there.
    fn append(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let Some(stored) = KEYS.short(key) else {
            return KEYS.put(self, key, value);
        };
        let flags = PutFlags::APPEND;
        match { self.db }.put_with_flags(&mut self.txn, flags, &stored, value) {
            // Parts of long keys lie behind it.
            Err(heed::Error::Mdb(heed::MdbError::KeyExist)) => self.put(&stored, value),
            put => put.map_err(from_lmdb),
        }
    }
}

impl Stored for Writing<'_> {
    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        get(self.db, &self.txn, key, out)
    }

    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        scan(self.db, &self.txn, range, out)
    }
}

impl StoredMut for Writing<'_> {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        self.db.put(&mut self.txn, key, value).map_err(from_lmdb)
    }

    fn delete(&mut self, key: &[u8]) -> Result<()> {
        self.db.delete(&mut self.txn, key).map_err(from_lmdb)?;
        Ok(())
    }
}

fn get(
    db: Database<Bytes, Bytes>,
    txn: &RoTxn<'_>,
    key: &[u8],
    out: &mut dyn FnMut(&[u8]),
) -> Result<bool> {
    let found = db.get(txn, key).map_err(from_lmdb)?;
    Ok(found.map(out).is_some())
}

fn scan(
    db: Database<Bytes, Bytes>,
    txn: &RoTxn<'_>,
    range: Range<'_>,
    out: &mut dyn FnMut(&[u8], &[u8]) -> Flow,
) -> Result<()> {
    if range.to.is_some_and(|to| to <= range.from) {
        return Ok(());
    }
    let end = range.to.map_or(Bound::Unbounded, Bound::Excluded);
    let bounds = (Bound::Included(range.from), end);
    let mut visit = |entry: heed::Result<(&[u8], &[u8])>| {
        entry
            .map_err(from_lmdb)
            .map(|(key, value)| out(key, value) == Flow::Continue)
    };
    if range.reverse {
        for entry in db.rev_range(txn, &bounds).map_err(from_lmdb)? {
            if !visit(entry)? {
                break;
            }
        }
    } else {
        for entry in db.range(txn, &bounds).map_err(from_lmdb)? {
            if !visit(entry)? {
                break;
            }
        }
    }
    Ok(())
}
