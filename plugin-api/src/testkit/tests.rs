//! The suite accepts a right engine, and reports each fault under its own clause.

use std::collections::{BTreeMap, BTreeSet};
use std::marker::PhantomData;
use std::ops::Bound;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread;
use std::time::Duration;

use crate::{
    Backend, Caps, Error, ErrorKind, Feed, Flow, Limits, Mark, Op, OpenContext, OptionKind,
    OptionSpec, Options, Range, Result, View,
};

use super::history::{self, Lives, Model};
use super::subject::Entries;
use super::{Candidate, Clause, Kit, Outcome, check, crash, run};

/// What is wrong with an engine.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Nothing,
    GetCallsTwice,
    SignedOrder,
    CutsAtNul,
    LosesEmptyValues,
    CutsLargeValues,
    CutsLongKeys,
    TakesTooLarge,
    KeepsPartOfRefusedBatch,
    RangeDeleteMissesOwnBatch,
    ForgetsMarkData,
    ForgetsUnchangedMark,
    ForgetsMarkOfEmptyBatch,
    SyncReturnsDefault,
    SyncReturnsMark,
    RangeDeleteTakesEnd,
    RangeDeleteSparesStart,
    RangeDeletePanicsBackwards,
    ScanTakesEnd,
    ScanSparesStart,
    IgnoresReverse,
    IgnoresStop,
    IgnoresStopBackwards,
    AppliesOneByOne,
    ViewGetsLive,
    ViewForgetsMark,
    ViewEndsWithReplace,
    GivesUnclaimedView,
    ReplaceKeepsOld,
    ReplaceForgetsMark,
    ReplaceIgnoresEmptyFeed,
    ReplaceIsLazy,
    ReplaceKeepsPart,
    ReplaceHidesError,
    SyncIsLazy,
    CrashTearsMark,
    CloseIsLazy,
    OpensTwice,
    OpensNever,
    CompactLoses,
    CompactFails,
    VerifyFails,
    HidesProperty,
    InventsProperty,
    ReconfigureLoses,
    ReconfigureFails,
    CutsLargeBatches,
    ReverseEndsEarly,
    ReplacesOneByOne,
    CompactsInView,
    ViewCallsTwice,
    ViewScanTakesEnd,
    ViewIgnoresStop,
    ViewMindsClose,
    BadDefault,
    StartsMarked,
    KeepsRareDeletes,
}

/// An engine's fault, and what the engine claims.
trait Fault: Send + Sync + 'static {
    const KIND: Kind;
    const CAPS: Caps = Caps::DURABLE
        .with(Caps::VIEW)
        .with(Caps::COMPACT)
        .with(Caps::RECONFIGURE);
    const LIMITS: Limits = Limits::UNBOUNDED;
}

#[derive(Clone, Default)]
struct State {
    entries: Entries,
    mark: Mark,
}

/// Stands for the files in each directory, so that an engine can be lost and opened again.
static DISKS: Mutex<BTreeMap<PathBuf, State>> = Mutex::new(BTreeMap::new());
static LOCKS: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn disks() -> MutexGuard<'static, BTreeMap<PathBuf, State>> {
    DISKS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn locks() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    LOCKS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An engine in memory, as the contract wants it but for its fault.
struct Memory<F> {
    dir: PathBuf,
    state: Arc<RwLock<Arc<State>>>,
    /// Counts replacements, so that a view can tell.
    replaced: Arc<Mutex<u64>>,
    is_closed: Arc<AtomicBool>,
    _fault: PhantomData<fn() -> F>,
}

struct MemoryView<F: Fault> {
    is_closed: Arc<AtomicBool>,
    state: Arc<State>,
    mark: Mark,
    live: Arc<RwLock<Arc<State>>>,
    replaced: Arc<Mutex<u64>>,
    replaced_then: u64,
    _fault: PhantomData<fn() -> F>,
}

/// Long enough for a reader on a busy machine to come by.
fn let_readers_in() {
    thread::park_timeout(Duration::from_millis(5));
}

fn visit(
    kind: Kind,
    entries: &Entries,
    range: Range<'_>,
    out: &mut dyn FnMut(&[u8], &[u8]) -> Flow,
) -> Result<()> {
    if range.to.is_some_and(|to| to <= range.from) {
        return Ok(());
    }
    let from = match kind {
        Kind::ScanSparesStart if !range.reverse && !range.from.is_empty() => {
            Bound::Excluded(range.from)
        }
        _ => Bound::Included(range.from),
    };
    let to = match range.to {
        Some(to) if kind == Kind::ScanTakesEnd && !range.reverse => Bound::Included(to),
        Some(to) => Bound::Excluded(to),
        None => Bound::Unbounded,
    };
    let mut found: Vec<_> = entries.range::<[u8], _>((from, to)).collect();
    if kind == Kind::SignedOrder && !range.reverse {
        found.sort_by_key(|(key, _)| key.iter().map(|byte| *byte as i8).collect::<Vec<_>>());
    }
    if range.reverse && kind != Kind::IgnoresReverse {
        found.reverse();
    }
    if kind == Kind::ReverseEndsEarly && range.reverse && range.to.is_some() {
        found.truncate(100);
    }
    for (key, value) in found {
        let goes_on = match kind {
            Kind::IgnoresStop => true,
            Kind::IgnoresStopBackwards => range.reverse,
            _ => false,
        };
        if out(key, value) == Flow::Stop && !goes_on {
            break;
        }
    }
    Ok(())
}

impl<F: Fault> Memory<F> {
    fn state(&self) -> Arc<State> {
        Arc::clone(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn publish(&self, state: State) {
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(state);
    }

    fn persist(&self) {
        if F::CAPS.contains(Caps::DURABLE) {
            disks().insert(self.dir.clone(), State::clone(&self.state()));
        }
    }

    fn put(entries: &mut Entries, key: &[u8], value: &[u8]) {
        let key = match F::KIND {
            Kind::CutsAtNul => key.split(|byte| *byte == 0).next().unwrap_or(key),
            Kind::CutsLongKeys => &key[..key.len().min(255)],
            _ => key,
        };
        let value = match F::KIND {
            Kind::CutsLargeValues => &value[..value.len().min(4 << 20)],
            _ => value,
        };
        if F::KIND == Kind::LosesEmptyValues && value.is_empty() {
            entries.remove(key);
        } else {
            entries.insert(key.to_vec(), value.to_vec());
        }
    }

    fn delete_range(entries: &mut Entries, from: &[u8], to: &[u8]) {
        assert!(
            F::KIND != Kind::RangeDeletePanicsBackwards || from <= to,
            "the range is backwards"
        );
        if to <= from {
            return;
        }
        entries.retain(|key, _| {
            let key = key.as_slice();
            let is_within = match F::KIND {
                Kind::RangeDeleteTakesEnd => key >= from && key <= to,
                Kind::RangeDeleteSparesStart => key > from && key < to,
                _ => key >= from && key < to,
            };
            !is_within
        });
    }

    fn is_too_large(op: &Op<'_>) -> bool {
        match op {
            Op::Put(key, value) => {
                key.len() as u64 > F::LIMITS.key_bytes_max
                    || value.len() as u64 > F::LIMITS.value_bytes_max
            }
            Op::Delete(_) | Op::DeleteRange(..) => false,
        }
    }
}

impl<F: Fault> Backend for Memory<F> {
    const NAME: &'static str = "memory-with-fault";
    const VERSION: &'static str = "1";
    const CAPS: Caps = F::CAPS;
    const LIMITS: Limits = F::LIMITS;
    const OPTIONS: &'static [OptionSpec] = &[OptionSpec {
        name: "size",
        kind: OptionKind::Size,
        default: if matches!(F::KIND, Kind::BadDefault) {
            "big"
        } else {
            "1MiB"
        },
        help: "nothing",
    }];
    type View = MemoryView<F>;

    fn open(cx: &OpenContext<'_>) -> Result<Self> {
        assert_ne!(cx.options.size("size"), 0);
        let dir = cx.dir.to_owned();
        if F::KIND == Kind::OpensNever {
            return Err(Error::new(ErrorKind::Io, "no such engine"));
        }
        let is_free = locks().insert(dir.clone());
        if !is_free && F::CAPS.contains(Caps::DURABLE) && F::KIND != Kind::OpensTwice {
            return Err(Error::new(ErrorKind::Locked, "open already"));
        }
        let mut state = disks().get(&dir).cloned().unwrap_or_default();
        if F::KIND == Kind::StartsMarked && state.entries.is_empty() {
            state.mark.index = 1;
        }
        Ok(Memory {
            dir,
            state: Arc::new(RwLock::new(Arc::new(state))),
            replaced: Arc::default(),
            is_closed: Arc::default(),
            _fault: PhantomData,
        })
    }

    fn mark(&self) -> Result<Mark> {
        Ok(self.state().mark.clone())
    }

    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let state = self.state();
        let Some(value) = state.entries.get(key) else {
            return Ok(false);
        };
        out(value);
        if F::KIND == Kind::GetCallsTwice {
            out(value);
        }
        Ok(true)
    }

    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        visit(F::KIND, &self.state().entries, range, out)
    }

    fn write(&self, batch: &[Op<'_>], mark: &Mark) -> Result<()> {
        let mut state = State::clone(&self.state());
        let before = state.entries.clone();
        for (at, op) in batch.iter().enumerate() {
            if F::KIND == Kind::CutsLargeBatches && at >= 10_000 {
                break;
            }
            if Self::is_too_large(op) && F::KIND != Kind::TakesTooLarge {
                if F::KIND == Kind::KeepsPartOfRefusedBatch {
                    self.publish(state);
                }
                return Err(Error::new(ErrorKind::TooLarge, "too large"));
            }
            match *op {
                Op::Put(key, value) => Self::put(&mut state.entries, key, value),
                Op::Delete(key)
                    if F::KIND == Kind::KeepsRareDeletes
                        && key.len() < 4
                        && batch.len() >= 8
                        && at + 1 == batch.len() => {}
                Op::Delete(key) => drop(state.entries.remove(key)),
                Op::DeleteRange(from, to) if F::KIND == Kind::RangeDeleteMissesOwnBatch => {
                    state.entries.retain(|key, _| {
                        !(before.contains_key(key) && key.as_slice() >= from && key.as_slice() < to)
                    });
                }
                Op::DeleteRange(from, to) => Self::delete_range(&mut state.entries, from, to),
            }
            if F::KIND == Kind::AppliesOneByOne && at == 3 {
                self.publish(state.clone());
                let_readers_in();
            }
        }
        let is_same = state.mark == *mark;
        state.mark = match F::KIND {
            Kind::ForgetsMarkData => Mark {
                index: mark.index,
                data: Vec::new(),
            },
            Kind::ForgetsUnchangedMark if is_same => Mark::default(),
            Kind::ForgetsMarkOfEmptyBatch if batch.is_empty() && mark.index > 1 << 32 => state.mark,
            _ => mark.clone(),
        };
        if F::KIND == Kind::CrashTearsMark {
            // The mark goes to disk at once, its changes only with the next sync.
            let mut disks = disks();
            let disk = disks.entry(self.dir.clone()).or_default();
            disk.mark = state.mark.clone();
        }
        self.publish(state);
        Ok(())
    }

    fn sync(&self) -> Result<Mark> {
        if F::KIND != Kind::SyncIsLazy {
            self.persist();
        }
        let is_mark_due = match F::KIND {
            Kind::SyncReturnsDefault => false,
            Kind::SyncReturnsMark => true,
            _ => F::CAPS.contains(Caps::DURABLE),
        };
        Ok(if is_mark_due {
            self.state().mark.clone()
        } else {
            Mark::default()
        })
    }

    fn view(&self) -> Result<MemoryView<F>> {
        if !F::CAPS.contains(Caps::VIEW) && F::KIND != Kind::GivesUnclaimedView {
            return Err(Error::unsupported("view"));
        }
        let state = self.state();
        let mut mark = state.mark.clone();
        if F::KIND == Kind::ViewForgetsMark {
            mark.data.clear();
        }
        let replaced_then = *self.replaced.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(MemoryView {
            is_closed: Arc::clone(&self.is_closed),
            state,
            mark,
            live: Arc::clone(&self.state),
            replaced: Arc::clone(&self.replaced),
            replaced_then,
            _fault: PhantomData,
        })
    }

    fn replace(&self, feed: &mut dyn Feed, mark: &Mark) -> Result<()> {
        let old = self.state();
        let mut entries = Entries::new();
        loop {
            match feed.next(&mut |key, value| drop(entries.insert(key.to_vec(), value.to_vec()))) {
                Ok(true) => {}
                Ok(false) => break,
                Err(_) if F::KIND == Kind::ReplaceHidesError => return Ok(()),
                Err(error) => {
                    if F::KIND == Kind::ReplaceKeepsPart {
                        let mark = old.mark.clone();
                        self.publish(State { entries, mark });
                    }
                    return Err(error);
                }
            }
        }
        let is_empty = entries.is_empty();
        if F::KIND == Kind::ReplaceKeepsOld && !is_empty {
            for (key, value) in &old.entries {
                entries.entry(key.clone()).or_insert(value.clone());
            }
        }
        if F::KIND == Kind::ReplaceIgnoresEmptyFeed && is_empty {
            entries = old.entries.clone();
        }
        let mut mark = mark.clone();
        if F::KIND == Kind::ReplaceForgetsMark {
            mark.data.clear();
        }
        if F::KIND == Kind::ReplacesOneByOne {
            let mut state = State {
                entries: Entries::new(),
                mark: mark.clone(),
            };
            for (key, value) in &entries {
                state.entries.insert(key.clone(), value.clone());
                self.publish(state.clone());
                if state.entries.len() == 3 {
                    let_readers_in();
                }
            }
        }
        self.publish(State { entries, mark });
        *self.replaced.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        if F::KIND != Kind::ReplaceIsLazy {
            self.persist();
        }
        Ok(())
    }

    fn property(&self, name: &str) -> Option<String> {
        match F::KIND {
            Kind::HidesProperty => None,
            Kind::InventsProperty => Some("0".into()),
            _ => (name == "kvd.keys").then(|| self.state().entries.len().to_string()),
        }
    }

    fn properties(&self) -> Vec<&'static str> {
        vec!["kvd.keys"]
    }

    fn compact(&self) -> Result<()> {
        match F::KIND {
            Kind::CompactFails => Err(Error::unsupported("compact")),
            Kind::CompactLoses => {
                let mut state = State::clone(&self.state());
                state.entries.pop_last();
                self.publish(state);
                Ok(())
            }
            Kind::CompactsInView => {
                let state = State::clone(&self.state());
                self.publish(State {
                    entries: Entries::new(),
                    mark: state.mark.clone(),
                });
                let_readers_in();
                self.publish(state);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn reconfigure(&self, _options: &Options) -> Result<()> {
        match F::KIND {
            Kind::ReconfigureFails => Err(Error::unsupported("reconfigure")),
            Kind::ReconfigureLoses => {
                let mut state = State::clone(&self.state());
                state.entries.pop_last();
                self.publish(state);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn verify(&self) -> Result<()> {
        match F::KIND {
            Kind::VerifyFails => Err(Error::new(ErrorKind::Corruption, "wrong")),
            _ => Ok(()),
        }
    }

    fn close(&self) -> Result<()> {
        if F::KIND != Kind::CloseIsLazy {
            self.persist();
        }
        self.is_closed.store(true, Ordering::SeqCst);
        Ok(())
    }
}

impl<F> Drop for Memory<F> {
    fn drop(&mut self) {
        locks().remove(&self.dir);
    }
}

impl<F: Fault> Drop for MemoryView<F> {
    fn drop(&mut self) {
        assert!(
            F::KIND != Kind::ViewMindsClose || !self.is_closed.load(Ordering::SeqCst),
            "the engine is gone"
        );
    }
}

impl<F: Fault> View for MemoryView<F> {
    fn mark(&self) -> &Mark {
        &self.mark
    }

    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let live = self.live.read().unwrap_or_else(PoisonError::into_inner);
        let is_live = F::KIND == Kind::ViewGetsLive && live.entries.is_empty();
        let state = if is_live { &*live } else { &self.state };
        Ok(match state.entries.get(key) {
            Some(value) => {
                out(value);
                if F::KIND == Kind::ViewCallsTwice {
                    out(value);
                }
                true
            }
            None => false,
        })
    }

    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        let replaced = *self.replaced.lock().unwrap_or_else(PoisonError::into_inner);
        if F::KIND == Kind::ViewEndsWithReplace && replaced != self.replaced_then {
            return Err(Error::new(ErrorKind::Closed, "the file is gone"));
        }
        let kind = match F::KIND {
            Kind::ViewScanTakesEnd => Kind::ScanTakesEnd,
            Kind::ViewIgnoresStop => Kind::IgnoresStop,
            _ => Kind::Nothing,
        };
        visit(kind, &self.state.entries, range, out)
    }
}

fn broken<F: Fault>() -> Vec<&'static str> {
    let report = run::<Memory<F>>(&[]);
    report.broken().map(|(clause, _)| clause).collect()
}

/// An engine with one fault each, and the only clause that it may break.
macro_rules! faults {
    ($($test:ident: $kind:ident $(, $const:ident: $type:ty = $value:expr)* => $clause:literal;)+) => {
        $(
            #[test]
            fn $test() {
                struct Broken;
                impl Fault for Broken {
                    const KIND: Kind = Kind::$kind;
                    $(const $const: $type = $value;)*
                }
                assert_eq!(broken::<Broken>(), [$clause]);
            }
        )+

        /// Which test has an engine that breaks which clause.
        const FAULTS: &[(&str, &str)] = &[$((stringify!($test), $clause)),+];
    };
}

const SMALL: Limits = Limits {
    key_bytes_max: 10 << 10,
    value_bytes_max: 2 << 20,
    batch_bytes_max: u64::MAX,
};

faults! {
    two_calls_for_one_get_are_found: GetCallsTwice => "get_returns_what_was_put";
    wrong_order_is_found: SignedOrder => "keys_are_in_byte_order";
    text_keys_are_found: CutsAtNul => "keys_and_values_are_any_bytes";
    lost_empty_value_is_found: LosesEmptyValues => "empty_values_are_kept";
    cut_value_is_found: CutsLargeValues => "large_values_are_kept";
    cut_key_is_found: CutsLongKeys => "long_keys_are_kept";
    limits_that_are_not_kept_are_found: TakesTooLarge, LIMITS: Limits = SMALL
        => "refused_batch_changes_nothing";
    part_of_a_refused_batch_is_found: KeepsPartOfRefusedBatch, LIMITS: Limits = SMALL
        => "refused_batch_changes_nothing";
    range_delete_that_misses_its_own_batch_is_found: RangeDeleteMissesOwnBatch
        => "later_changes_of_a_batch_see_earlier_ones";
    lost_bytes_of_a_mark_are_found: ForgetsMarkData, CAPS: Caps = Caps::DURABLE
        => "mark_comes_with_its_batch";
    lost_mark_of_an_empty_batch_is_found: ForgetsMarkOfEmptyBatch => "mark_comes_with_its_batch";
    lost_unchanged_mark_is_found: ForgetsUnchangedMark => "unchanged_mark_is_kept";
    sync_without_a_mark_is_found: SyncReturnsDefault => "sync_returns_the_durable_mark";
    sync_that_a_volatile_engine_boasts_of_is_found: SyncReturnsMark, CAPS: Caps = Caps::VIEW
        => "sync_returns_the_durable_mark";
    range_delete_beyond_its_end_is_found: RangeDeleteTakesEnd
        => "range_delete_keeps_to_its_bounds";
    range_delete_after_its_start_is_found: RangeDeleteSparesStart
        => "range_delete_keeps_to_its_bounds";
    panic_is_found: RangeDeletePanicsBackwards => "range_delete_keeps_to_its_bounds";
    scan_beyond_its_end_is_found: ScanTakesEnd => "scan_keeps_to_its_bounds";
    scan_after_its_start_is_found: ScanSparesStart => "scan_keeps_to_its_bounds";
    ignored_reverse_is_found: IgnoresReverse, CAPS: Caps = Caps::DURABLE
        => "reverse_scan_goes_backwards";
    ignored_stop_is_found: IgnoresStop => "scan_stops_when_told";
    ignored_stop_of_a_reverse_scan_is_found: IgnoresStopBackwards => "scan_stops_when_told";
    half_a_batch_in_a_view_is_found: AppliesOneByOne => "readers_never_see_half_a_batch";
    half_a_batch_in_a_scan_is_found: AppliesOneByOne, CAPS: Caps = Caps::empty()
        => "readers_never_see_half_a_batch";
    view_that_changes_is_found: ViewGetsLive => "view_stays_as_it_was";
    view_without_its_mark_is_found: ViewForgetsMark => "view_has_the_mark_of_its_moment";
    view_that_ends_with_replace_is_found: ViewEndsWithReplace => "view_outlives_replace";
    unclaimed_view_is_found: GivesUnclaimedView, CAPS: Caps = Caps::DURABLE
        => "view_without_capability_is_unsupported";
    old_keys_after_replace_are_found: ReplaceKeepsOld => "replace_swaps_the_whole_contents";
    lost_mark_of_replace_is_found: ReplaceForgetsMark => "replace_swaps_the_whole_contents";
    ignored_empty_feed_is_found: ReplaceIgnoresEmptyFeed => "replace_by_nothing_leaves_nothing";
    lazy_replace_is_found: ReplaceIsLazy => "replace_is_durable";
    part_of_a_failed_replace_is_found: ReplaceKeepsPart
        => "failed_replace_leaves_old_contents_or_none";
    hidden_error_of_a_feed_is_found: ReplaceHidesError
        => "failed_replace_leaves_old_contents_or_none";
    lazy_sync_is_found: SyncIsLazy => "reopened_engine_has_what_was_synced";
    mark_ahead_of_its_batch_is_found: CrashTearsMark => "reopened_engine_has_what_was_synced";
    lazy_close_is_found: CloseIsLazy => "closed_engine_keeps_everything";
    second_opening_is_found: OpensTwice => "second_opening_is_locked";
    compaction_that_loses_is_found: CompactLoses => "compact_keeps_contents";
    claimed_compaction_that_is_not_there_is_found: CompactFails => "compact_keeps_contents";
    false_alarm_of_verify_is_found: VerifyFails => "verify_accepts_sound_contents";
    property_without_value_is_found: HidesProperty => "properties_have_values";
    invented_property_is_found: InventsProperty => "properties_have_values";
    reconfiguration_that_loses_is_found: ReconfigureLoses => "reconfigure_keeps_contents";
    claimed_reconfiguration_that_is_not_there_is_found: ReconfigureFails
        => "reconfigure_keeps_contents";
    cut_batch_is_found: CutsLargeBatches => "large_batches_are_kept";
    half_a_replacement_is_found: ReplacesOneByOne => "readers_never_see_half_a_replacement";
    half_a_replacement_in_a_scan_is_found: ReplacesOneByOne, CAPS: Caps = Caps::empty()
        => "readers_never_see_half_a_replacement";
    compaction_that_readers_see_is_found: CompactsInView
        => "readers_go_on_beside_sync_and_compact";
    two_calls_for_one_get_in_a_view_are_found: ViewCallsTwice => "view_reads_as_its_engine_does";
    scan_beyond_its_end_in_a_view_is_found: ViewScanTakesEnd => "view_reads_as_its_engine_does";
    ignored_stop_in_a_view_is_found: ViewIgnoresStop => "view_reads_as_its_engine_does";
    view_that_outlives_its_engine_badly_is_found: ViewMindsClose
        => "view_may_end_after_its_engine";
    wrong_default_is_found: BadDefault => "options_are_specified";
    engine_that_never_opens_is_found: OpensNever => "new_engine_is_empty";
    mark_of_a_new_engine_is_found: StartsMarked => "new_engine_is_empty";
    fault_of_long_scans_is_found: ReverseEndsEarly => "reads_among_many_keys_match_a_model";
    rare_fault_is_found: KeepsRareDeletes => "random_operations_match_a_model";
}

struct Sound;

impl Fault for Sound {
    const KIND: Kind = Kind::Nothing;
    const CAPS: Caps = Caps::DURABLE
        .with(Caps::VIEW)
        .with(Caps::COMPACT)
        .with(Caps::VERIFY)
        .with(Caps::RECONFIGURE);
    const LIMITS: Limits = SMALL;
}

/// The clauses that were not tried, with the reasons.
fn skipped<F: Fault>(options: &[(&str, &str)]) -> Vec<(&'static str, &'static str)> {
    let report = run::<Memory<F>>(options);
    assert!(report.is_ok(), "{report}");
    let skipped = |(name, outcome): &(&'static str, Outcome)| match outcome {
        Outcome::Skipped(why) => Some((*name, *why)),
        _ => None,
    };
    report.outcomes().iter().filter_map(skipped).collect()
}

#[test]
fn sound_engine_passes_every_clause() {
    let why = "the engine claims the capability";
    let unclaimed = "view_without_capability_is_unsupported";
    assert_eq!(skipped::<Sound>(&[("size", "2MiB")]), [(unclaimed, why)]);
}

/// An `ok` would say that something was looked at.
#[test]
fn clauses_that_an_engine_leaves_nothing_of_are_skipped_with_the_reason() {
    struct Unbounded;
    impl Fault for Unbounded {
        const KIND: Kind = Kind::Nothing;
        const CAPS: Caps = Caps::DURABLE;
    }
    struct Volatile;
    impl Fault for Volatile {
        const KIND: Kind = Kind::Nothing;
        const CAPS: Caps = Caps::empty();
    }
    let unclaimed = "the engine does not claim the capability";
    let any = |part: &'static str| move |(_, why): &(&str, &str)| why.contains(part);
    let names = |skipped: &[(&'static str, &str)], is: &dyn Fn(&(&str, &str)) -> bool| {
        let skipped = skipped.iter().filter(|(name, why)| is(&(*name, *why)));
        skipped.map(|(name, _)| *name).collect::<Vec<_>>()
    };
    let found = skipped::<Unbounded>(&[]);
    let limits = names(&found, &any("has no limit"));
    assert_eq!(limits, ["refused_batch_changes_nothing"]);
    let verify = names(&found, &any("does not claim to verify"));
    assert_eq!(verify, ["verify_accepts_sound_contents"]);
    assert_eq!(
        names(&found, &any(unclaimed)),
        [
            "view_stays_as_it_was",
            "view_has_the_mark_of_its_moment",
            "view_reads_as_its_engine_does",
            "view_outlives_replace",
            "view_may_end_after_its_engine",
            "reconfigure_keeps_contents",
        ]
    );
    let found = skipped::<Volatile>(&[]);
    assert_eq!(
        names(&found, &any("nothing outlives the engine")),
        ["replace_is_durable", "reopened_engine_has_what_was_synced"]
    );
    assert!(!names(&found, &any(unclaimed)).is_empty());
}

/// One that does not claim to compact, and says so when it is asked to.
#[test]
fn a_compaction_that_is_not_there_is_not_called_tried() {
    struct Uncompacted;
    impl Fault for Uncompacted {
        const KIND: Kind = Kind::CompactFails;
        const CAPS: Caps = Caps::DURABLE.with(Caps::VIEW);
    }
    let found = skipped::<Uncompacted>(&[]);
    let why = "the engine does not compact, and does not claim to";
    assert!(
        found.contains(&("compact_keeps_contents", why)),
        "{found:?}"
    );
}

#[test]
fn wrong_option_is_named_and_nothing_else_is_tried() {
    let report = run::<Memory<Sound>>(&[("sise", "1")]);
    let broken: Vec<_> = report.broken().collect();
    assert_eq!(broken.len(), 1, "{report}");
    assert!(broken[0].0 == "options_are_specified" && broken[0].1.contains("'sise'"));
}

#[test]
#[should_panic(expected = "verify_accepts_sound_contents")]
fn check_panics_with_the_name_of_the_clause() {
    struct Broken;
    impl Fault for Broken {
        const KIND: Kind = Kind::VerifyFails;
    }
    check::<Memory<Broken>>(&[]);
}

/// The table in the module's documentation: what is asked, the clause, the tests with engines that
/// break it.
#[test]
fn each_clause_has_a_broken_engine_and_a_row_in_the_table() {
    let rows: Vec<String> = include_str!("mod.rs")
        .lines()
        .filter_map(|line| line.strip_prefix("//! | "))
        .filter(|row| row.contains("_is_found") || row.contains("_are_found"))
        .map(str::to_owned)
        .collect();
    let expected: Vec<String> = Clause::all()
        .iter()
        .map(|clause| {
            let faults: Vec<_> = FAULTS
                .iter()
                .filter(|(_, broken)| *broken == clause.name())
                .map(|(test, _)| format!("`{test}`"))
                .collect();
            let faults = faults.join(", ");
            format!("{} | `{}` | {faults} |", clause.text(), clause.name())
        })
        .collect();
    assert_eq!(rows, expected);
}

/// It takes eight changes in a batch and a key that is there, so that is what is left.
#[test]
fn failing_operations_are_reduced_to_the_smallest_example() {
    struct Broken;
    impl Fault for Broken {
        const KIND: Kind = Kind::KeepsRareDeletes;
    }
    let report = run::<Memory<Broken>>(&[]).to_string();
    let (_, example) = report
        .split_once("the smallest example:")
        .expect("an example");
    let steps: Vec<_> = example.trim().lines().collect();
    assert!(steps.len() <= 2, "{report}");
    let last = steps.last().expect("a step");
    assert!(last.contains("write 8 changes: "), "{report}");
    // Values of one byte, marks without bytes of the host.
    assert!(example.len() < 400, "{report}");
}

#[test]
fn report_names_the_random_seed() {
    struct Broken;
    impl Fault for Broken {
        const KIND: Kind = Kind::KeepsRareDeletes;
    }
    let report = run::<Memory<Broken>>(&[]).to_string();
    assert!(
        report.contains("random_operations_match_a_model: seed "),
        "{report}"
    );
}

/// What a process that was killed has left, for engines that write their mark in time or not.
#[test]
fn crash_that_lost_a_promise_or_tore_a_mark_is_found() {
    let candidate = Candidate::of::<Memory<Sound>>();
    let kit = Kit::new(&candidate, &[]);
    let dir = PathBuf::from("only a name");
    let leave = |mark: u64, contents: u64| {
        let state = State {
            entries: Model::at(contents).entries,
            mark: history::mark(mark),
        };
        disks().insert(dir.clone(), state);
    };
    leave(5, 5);
    let lives = Lives::default();
    let verify = |promised| crash::verify(&kit, &dir, promised, &lives);
    assert_eq!(verify(5), Ok(5));
    assert_eq!(verify(0), Ok(5));
    let lost = verify(6).unwrap_err();
    assert!(lost.contains("the mark is 5, but 6 was promised"), "{lost}");
    for (mark, contents) in [(5, 4), (5, 6), (0, 1)] {
        leave(mark, contents);
        let torn = verify(0).unwrap_err();
        let said = format!("after a crash with the mark {mark}: at key");
        assert!(torn.starts_with(&said), "{torn}");
    }
    let mut foreign = State::default();
    foreign.mark.index = 5;
    disks().insert(dir.clone(), foreign);
    let foreign = verify(0).unwrap_err();
    assert!(foreign.contains("expected 5 with 'mark 5'"), "{foreign}");
}

/// A process found the mark 3 and wrote the 4th batch. The one before it had written that too, and
/// the 5th: they must not come to life again behind those of the newer one.
#[test]
fn what_an_earlier_process_wrote_and_nobody_found_is_not_taken_for_later_writes() {
    let mut lives = Lives::default();
    lives.begin(0);
    let earlier = lives.clone();
    lives.begin(3);
    assert_eq!(lives.to_string().parse(), Ok(lives.clone()));
    let lengths = |lives: &Lives, index| {
        let changes = lives.batch(index).into_iter();
        let lengths = changes.map(|change| match change {
            history::Change::Put(key, value) => (key, value.len()),
            history::Change::Delete(key) | history::Change::DeleteRange(key, _) => (key, 0),
        });
        lengths.collect::<Vec<_>>()
    };
    for index in 1..=5 {
        assert_eq!(lives.batch(index) == earlier.batch(index), index <= 3);
        assert_eq!(lengths(&lives, index), lengths(&earlier, index));
    }
    let candidate = Candidate::of::<Memory<Sound>>();
    let kit = Kit::new(&candidate, &[]);
    let dir = PathBuf::from("the name of a file with an old end");
    let leave = |model: &Model| {
        let state = State {
            entries: model.entries.clone(),
            mark: history::mark(5),
        };
        disks().insert(dir.clone(), state);
    };
    leave(&Model::after(&lives, 5));
    assert_eq!(crash::verify(&kit, &dir, 4, &lives), Ok(5));
    let mut joined = Model::after(&lives, 4);
    joined.add(&earlier.batch(5));
    leave(&joined);
    let found = crash::verify(&kit, &dir, 4, &lives).unwrap_err();
    assert!(
        found.starts_with("after a crash with the mark 5: at key"),
        "{found}"
    );
    // A loss beyond what an earlier one had found.
    lives.begin(1);
    assert_eq!(lives.to_string(), "0,1,1");
}
