//! One tree: how it is read, written, made durable and checked.

use std::fs::{self, File};
use std::io::{BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kvd_plugin_api::{
    Error, ErrorKind, Feed, Flow, Limits, LongKeys, Mark, Op, Range, Result, Stored, StoredMut,
    View,
};
use lsm_tree::config::{
    BloomConstructionPolicy, CompressionPolicy, FilterPolicy, FilterPolicyEntry,
};
use lsm_tree::{
    AbstractTree, AnyTree, Cache, CompressionType, Config, DescriptorTable, Guard, SeqNo,
    SequenceNumberCounter,
};
use xxhash_rust::xxh3::Xxh3;

use crate::background::Background;
use crate::error::from_lsm;
use crate::instants::{Instant, Instants};

/// The key of the mark: in front of all of the host's, which begin with 1 or 2.
const MARK: &[u8] = &[0];

/// The tree notes a key's length in 16 bits.
const KEYS: LongKeys = LongKeys::new(u16::MAX as usize);

/// The largest that were tried. The tree notes a value's length in 32 bits.
pub(crate) const LIMITS: Limits = Limits {
    key_bytes_max: 1 << 20,
    value_bytes_max: 512 << 20,
    batch_bytes_max: u64::MAX,
};

/// Sealed memory that waits to become a table: a write makes the table itself from here on.
const SEALED_MAX: usize = 3;

/// Files of tables that are kept open.
const OPEN_FILES: usize = 512;

/// How much of a feed's long keys is held in memory.
const LONG_BYTES: u64 = 16 << 20;

/// How a tree is opened.
#[derive(Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) cache_bytes: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) is_compressed: bool,
}

/// An open tree.
pub(crate) struct Store {
    background: Background,
    instants: Arc<Instants>,
    seqno: SequenceNumberCounter,
    cache: Arc<Cache>,
    dir: PathBuf,
    memory_bytes: u64,
    /// Whether its directory goes with it: it was replaced, and views may still read it.
    is_replaced: AtomicBool,
}

impl Store {
    /// Opens the tree in `dir`, making it where there is none.
    pub(crate) fn open(dir: &Path, settings: Settings) -> Result<Store> {
        check_manifest(dir)?;
        let seqno = SequenceNumberCounter::default();
        let cache = Arc::new(Cache::with_capacity_bytes(settings.cache_bytes));
        let compression = if settings.is_compressed {
            // What is new is merged again soon.
            CompressionPolicy::new([
                CompressionType::None,
                CompressionType::None,
                CompressionType::Lz4,
            ])
        } else {
            CompressionPolicy::disabled()
        };
        let bloom = FilterPolicyEntry::Bloom;
        // What the tree shows to readers by itself is not used: it shows batches before they are
        // complete when a table comes into force meanwhile.
        let tree = Config::new(dir, seqno.clone(), SequenceNumberCounter::default())
            .use_cache(Arc::clone(&cache))
            .use_descriptor_table(Some(Arc::new(DescriptorTable::new(OPEN_FILES))))
            .data_block_compression_policy(compression)
            .filter_policy(FilterPolicy::new([
                bloom(BloomConstructionPolicy::FalsePositiveRate(0.0001)),
                bloom(BloomConstructionPolicy::BitsPerKey(10.0)),
            ]))
            .open()
            .map_err(from_lsm)?;
        // Nothing is readable at 0.
        seqno.set(tree.get_highest_persisted_seqno().unwrap_or(0) + 1);
        let instants = Arc::new(Instants::default());
        Ok(Store {
            background: Background::start(tree, Arc::clone(&instants))?,
            instants,
            seqno,
            cache,
            dir: dir.to_owned(),
            memory_bytes: settings.memory_bytes,
            is_replaced: AtomicBool::new(false),
        })
    }

    fn tree(&self) -> &AnyTree {
        self.background.tree()
    }

    /// The state as it is now, with the mark that is stored; no write may be under way.
    pub(crate) fn read(self: &Arc<Self>) -> Result<State> {
        let mut state = self.read_at(Mark::default());
        let mut mark = None;
        let is_there = state.get_stored(MARK, &mut |bytes| mark = Some(Mark::from_bytes(bytes)))?;
        if let Some(mark) = mark {
            state.mark = mark?;
        }
        if !is_there {
            let message = "fjall: the mark is missing";
            return Err(Error::new(ErrorKind::Corruption, message));
        }
        Ok(state)
    }

    /// As [`read`](Self::read), where the mark is known.
    pub(crate) fn read_at(self: &Arc<Self>, mark: Mark) -> State {
        State {
            instant: self.instants.keep(self.seqno.get()),
            mark,
            store: Arc::clone(self),
        }
    }

    /// Writes a batch and its mark to memory, where nobody sees it before the next
    /// [`read_at`](Self::read_at). After an error nothing may be written any more: a part of the
    /// batch is there.
    pub(crate) fn write(&self, batch: &[Op<'_>], mark: Option<&Mark>) -> Result<()> {
        self.background.check()?;
        let mut writing = Writing {
            tree: self.tree(),
            seqno: self.seqno.next(),
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
        Ok(())
    }

    /// Lets what was written become tables, where it has become much.
    pub(crate) fn make_room(&self) -> Result<()> {
        if self.tree().active_memtable().size() < self.memory_bytes {
            return Ok(());
        }
        self.tree().rotate_memtable();
        if self.tree().sealed_memtable_count() > SEALED_MAX {
            self.background.flush()?;
        } else {
            self.background.flush_soon();
        }
        self.background.wait_for_merges()
    }

    /// Makes all that was written a table, durably.
    pub(crate) fn sync(&self) -> Result<()> {
        self.background.check()?;
        self.tree().rotate_memtable();
        self.background.flush()?;
        if self.tree().sealed_memtable_count() > 0 {
            let message = "fjall: memory was not made a table";
            return Err(Error::new(ErrorKind::Other, message));
        }
        self.background.wait_for_merges()
    }

    /// Forgets versions of the tree that nobody reads.
    pub(crate) fn tidy(&self) -> Result<()> {
        let oldest = self.instants.oldest();
        let mut versions = self.tree().get_version_history_lock();
        versions.maintenance(&self.dir, oldest).map_err(from_lsm)
    }

    /// Fills a new tree from `feed`; durable on return.
    pub(crate) fn fill(&self, feed: &mut dyn Feed, mark: &Mark) -> Result<()> {
        let mut ingestion = self.tree().ingestion().map_err(from_lsm)?;
        ingestion.write(MARK, mark.to_bytes()).map_err(from_lsm)?;
        let mut long: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        let mut long_bytes = 0;
        let mut more = true;
        while more {
            let mut taken = Ok(());
            more = feed.next(&mut |key, value| {
                taken = LIMITS
                    .check(&Op::Put(key, value))
                    .and_then(|()| match KEYS.short(key) {
                        Some(stored) => ingestion.write(stored, value).map_err(from_lsm),
                        None => {
                            long_bytes += (key.len() + value.len()) as u64;
                            long.push((key.to_vec(), value.to_vec()));
                            Ok(())
                        }
                    });
            })?;
            taken?;
            if long_bytes >= LONG_BYTES || !more {
                let ops: Vec<Op<'_>> = { long.iter() }
                    .map(|(key, value)| Op::Put(key, value))
                    .collect();
                self.write(&ops, None)?;
                self.make_room()?;
                long.clear();
                long_bytes = 0;
            }
        }
        ingestion.finish().map_err(from_lsm)?;
        self.sync()?;
        self.background.settle()
    }

    /// Merges all tables into the last level.
    pub(crate) fn compact(&self) -> Result<()> {
        let oldest = self.instants.oldest();
        let table_bytes = 64 << 20;
        let merged = self.tree().major_compact(table_bytes, oldest);
        merged.map_err(from_lsm)?;
        self.tidy()
    }

    /// Reads every table, and compares it with the checksum that the manifest has of it.
    pub(crate) fn verify(&self) -> Result<()> {
        check_manifest(&self.dir)?;
        // A version keeps its tables, whatever is merged meanwhile.
        let version = self.tree().current_version();
        for table in version.iter_tables() {
            if checksum(&table.path)? != table.checksum().into_u128() {
                let name = table.path.display();
                let message = format!("fjall: {name} is not what was written");
                return Err(Error::new(ErrorKind::Corruption, message));
            }
        }
        Ok(())
    }

    /// Ends its threads: from here on nothing of it writes.
    pub(crate) fn stop(&self) {
        self.background.stop();
    }

    /// The directory is removed with the last of its readers.
    pub(crate) fn was_replaced(&self) {
        self.stop();
        self.is_replaced.store(true, Ordering::Release);
    }

    /// The size of the tables, in bytes.
    pub(crate) fn disk_bytes(&self) -> u64 {
        self.tree().disk_space()
    }

    /// How many tables each level has, from the newest.
    pub(crate) fn tables(&self) -> Vec<usize> {
        let version = self.tree().current_version();
        { version.iter_levels() }
            .map(|level| level.table_count())
            .collect()
    }

    /// Memory that holds what is not yet in a table.
    pub(crate) fn memory_used_bytes(&self) -> u64 {
        self.tree().version_memtable_size_sum()
    }

    /// Memory that the cache holds.
    pub(crate) fn cache_used_bytes(&self) -> u64 {
        self.cache.size()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.background.stop();
        if self.is_replaced.load(Ordering::Acquire) {
            // The next opening of the engine removes what is left.
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// A batch that is being written.
struct Writing<'a> {
    tree: &'a AnyTree,
    seqno: SeqNo,
}

impl Stored for Writing<'_> {
    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        get(self.tree, self.seqno + 1, key, out)
    }

    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        scan(self.tree, self.seqno + 1, range, out)
    }
}

impl StoredMut for Writing<'_> {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        self.tree.insert(key, value, self.seqno);
        Ok(())
    }

    fn delete(&mut self, key: &[u8]) -> Result<()> {
        self.tree.remove(key, self.seqno);
        Ok(())
    }
}

/// The contents at one moment.
pub(crate) struct State {
    instant: Instant,
    mark: Mark,
    store: Arc<Store>,
}

impl State {
    /// Where it lives.
    pub(crate) fn store(&self) -> &Arc<Store> {
        &self.store
    }

    fn get_stored(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        get(self.store.tree(), self.instant.at(), key, out)
    }
}

impl Stored for State {
    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        self.get_stored(key, out)
    }

    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        scan(self.store.tree(), self.instant.at(), range, out)
    }
}

impl View for State {
    fn mark(&self) -> &Mark {
        &self.mark
    }

    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        KEYS.get(self, key, out)
    }

    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        KEYS.scan(self, range, out)
    }
}

fn get(tree: &AnyTree, at: SeqNo, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
    let found = tree.get(key, at).map_err(from_lsm)?;
    Ok(found.map(|value| out(&value)).is_some())
}

fn scan(
    tree: &AnyTree,
    at: SeqNo,
    range: Range<'_>,
    out: &mut dyn FnMut(&[u8], &[u8]) -> Flow,
) -> Result<()> {
    let mut entries = match range.to {
        Some(to) if to <= range.from => return Ok(()),
        Some(to) => tree.range(range.from..to, at, None),
        None => tree.range(range.from.., at, None),
    };
    let mut next = || {
        if range.reverse {
            entries.next_back()
        } else {
            entries.next()
        }
    };
    while let Some(entry) = next() {
        let (key, value) = entry.into_inner().map_err(from_lsm)?;
        if out(&key, &value) == Flow::Stop {
            break;
        }
    }
    Ok(())
}

/// The file `current` names the manifest in force and has its checksum, which the tree itself
/// does not compare.
fn check_manifest(dir: &Path) -> Result<()> {
    let damaged = |what: &str| {
        let message = format!("fjall: {}: {what}", dir.display());
        Error::new(ErrorKind::Corruption, message)
    };
    let current = match fs::read(dir.join("current")) {
        Ok(current) => current,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let (number, rest) = { current.split_first_chunk() }
        .ok_or_else(|| damaged("the file 'current' is cut short"))?;
    let (expected, _) =
        { rest.split_first_chunk() }.ok_or_else(|| damaged("the file 'current' is cut short"))?;
    let manifest = dir.join(format!("v{}", u64::from_le_bytes(*number)));
    match checksum(&manifest) {
        Ok(found) if found == u128::from_le_bytes(*expected) => Ok(()),
        Ok(_) => Err(damaged("the manifest is not what was written")),
        Err(error) => Err(damaged(&format!("the manifest: {error}"))),
    }
}

fn checksum(path: &Path) -> Result<u128> {
    let mut file = BufReader::with_capacity(1 << 20, File::open(path)?);
    let mut hasher = Xxh3::new();
    let mut bytes = vec![0; 1 << 16];
    loop {
        match file.read(&mut bytes)? {
            0 => return Ok(hasher.digest128()),
            count => hasher.update(&bytes[..count]),
        }
    }
}
