//! The clauses that try one thing each.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use crate::{Backend, Caps, Error, ErrorKind, Flow, Mark, Op, Options, Range, Result, View};

use super::Clause;
use super::subject::{
    ALL, Bytes, Entries, EntriesFeed, Kit, Read, Still, Subject, Value, Verdict, compare, during,
    ensure, entries, get, mark, same, same_mark, scan,
};

/// Values and keys up to these sizes are tried, and the engine's limits where they are below.
const VALUE_BYTES_TRIED: u64 = 8 << 20;
const KEY_BYTES_TRIED: u64 = 4 << 10;
/// The host's part of a mark may be this long.
const MARK_DATA_BYTES_MAX: usize = 64 << 10;

/// How many keys the writes have that readers must see all or none of.
const GROUP: u64 = 8;
/// How many times a read must meet another one of these writes, and the end of patience: on one
/// processor, or with a lock that lets nobody in, they hardly ever meet.
const MEETINGS: u64 = 200;
const WRITES_MAX: u64 = 20_000;

macro_rules! list {
    ($($name:ident: $needs:expr),+ $(,)?) => {
        vec![$(Clause { name: stringify!($name), needs: $needs, try_on: $name }),+]
    };
}

/// Without options no engine opens.
pub(super) fn options<B: Backend>() -> Vec<Clause<B>> {
    list![options_are_specified: Caps::empty()]
}

/// All others begin with a new engine.
pub(super) fn first<B: Backend>() -> Vec<Clause<B>> {
    list![new_engine_is_empty: Caps::empty()]
}

pub(super) fn main<B: Backend>() -> Vec<Clause<B>> {
    list![
        get_returns_what_was_put: Caps::empty(),
        keys_are_in_byte_order: Caps::empty(),
        keys_and_values_are_any_bytes: Caps::empty(),
        empty_values_are_kept: Caps::empty(),
        large_values_are_kept: Caps::empty(),
        long_keys_are_kept: Caps::empty(),
        refused_batch_changes_nothing: Caps::empty(),
        later_changes_of_a_batch_see_earlier_ones: Caps::empty(),
        mark_comes_with_its_batch: Caps::empty(),
        unchanged_mark_is_kept: Caps::empty(),
        sync_returns_the_durable_mark: Caps::empty(),
        range_delete_keeps_to_its_bounds: Caps::empty(),
        scan_keeps_to_its_bounds: Caps::empty(),
        reverse_scan_goes_backwards: Caps::empty(),
        scan_stops_when_told: Caps::empty(),
        readers_never_see_half_a_batch: Caps::empty(),
        view_stays_as_it_was: Caps::VIEW,
        view_has_the_mark_of_its_moment: Caps::VIEW,
        view_outlives_replace: Caps::VIEW,
        view_without_capability_is_unsupported: Caps::empty(),
        replace_swaps_the_whole_contents: Caps::empty(),
        replace_by_nothing_leaves_nothing: Caps::empty(),
        replace_is_durable: Caps::empty(),
        failed_replace_leaves_old_contents_or_none: Caps::empty(),
        reopened_engine_has_what_was_synced: Caps::empty(),
        closed_engine_keeps_everything: Caps::DURABLE,
        second_opening_is_locked: Caps::DURABLE,
        compact_keeps_contents: Caps::empty(),
        verify_accepts_sound_contents: Caps::empty(),
        properties_have_values: Caps::empty(),
    ]
}

fn options_are_specified<B: Backend>(kit: &Kit<'_, B>) -> Verdict {
    let is_plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
    ensure!(
        !B::NAME.is_empty() && B::NAME.bytes().all(is_plain),
        "the name '{}' has other characters than a-z, 0-9, - and _",
        B::NAME
    );
    for (at, spec) in B::OPTIONS.iter().enumerate() {
        ensure!(
            B::OPTIONS[..at].iter().all(|other| other.name != spec.name),
            "the option '{}' is specified twice",
            spec.name
        );
    }
    Options::parse(B::OPTIONS, []).map_err(|error| format!("a default is wrong: {error}"))?;
    kit.options().map_err(during("parsing the given options"))?;
    let mut unknown = String::from("unknown");
    while B::OPTIONS.iter().any(|spec| spec.name == unknown) {
        unknown.push('_');
    }
    match Options::parse(B::OPTIONS, [(unknown.as_str(), "1")]) {
        Err(error) if error.kind() == ErrorKind::InvalidOption => Ok(()),
        Err(error) => Err(format!("an unknown option gave another error: {error}")),
        Ok(_) => Err("an unknown option was taken".into()),
    }
}

fn new_engine_is_empty<B: Backend>(kit: &Kit<'_, B>) -> Verdict {
    let subject = kit.open()?;
    same_mark("a new engine", &subject.mark()?, &Mark::default())?;
    compare("a new engine", &subject, &Entries::new())?;
    ensure!(
        get(&subject, b"absent")?.is_none(),
        "a new engine has a key"
    );
    let synced = subject.sync()?;
    same_mark("sync of a new engine", &synced, &Mark::default())
}

fn get_returns_what_was_put<B: Backend>(kit: &Kit<'_, B>) -> Verdict {
    let subject = kit.open_with(&entries([("a", "1"), ("b", "2"), ("c", "3")]))?;
    subject.write(&[Op::Put(b"a", b"other"), Op::Delete(b"b")], &mark(2))?;
    subject.write(&[Op::Delete(b"b"), Op::Delete(b"never")], &mark(3))?;
    for (key, expected) in [("a", Some("other")), ("b", None), ("c", Some("3"))] {
        let mut calls = 0;
        let is_found = subject
            .get(key.as_bytes(), &mut |_| calls += 1)
            .map_err(during("get"))?;
        ensure!(
            (is_found, calls) == (expected.is_some(), u32::from(expected.is_some())),
            "get of '{key}' returned {is_found} after {calls} calls of its callback"
        );
        let (found, expected) = (get(&subject, key.as_bytes())?, expected.map(str::as_bytes));
        ensure!(
            found.as_deref() == expected,
            "get of '{key}' found {}, expected {}",
            Value(found.as_deref()),
            Value(expected)
        );
    }
    Ok(())
}

fn keys_are_in_byte_order<B: Backend>(kit: &Kit<'_, B>) -> Verdict {
    let keys: [&[u8]; 12] = [
        &[1],
        &[1, 0xff],
        b"0",
        b"10",
        b"2",
        b"B",
        b"a",
        b"aa",
        b"b",
        &[0x7f],
        &[0x80],
        &[0xff, 0xff],
    ];
    let subject = kit.open()?;
    // Neither in order nor backwards.
    let puts: Vec<_> = (0..keys.len())
        .map(|at| Op::Put(keys[at * 5 % keys.len()], b"value"))
        .collect();
    subject.write(&puts, &mark(1))?;
    let found: Vec<_> = scan(&subject, ALL)?
        .into_iter()
        .map(|(key, _)| key)
        .collect();
    ensure!(
        found == keys,
        "a scan found the keys {}, expected {}",
        names(found.iter().map(Vec::as_slice)),
        names(keys.into_iter())
    );
    Ok(())
}

fn keys_and_values_are_any_bytes<B: Backend>(kit: &Kit<'_, B>) -> Verdict {
    let all: Vec<u8> = (0..=255).collect();
    let mut expected = Entries::new();
    for byte in &all {
        expected.insert(vec![*byte], vec![*byte; 2]);
    }
    let others = [b"".as_slice(), b"\0\0", b"a\0", b"a\0b", b"\xff\xff\xff"];
    // In short pieces, because long keys are another clause's matter.
    for key in others.into_iter().chain(all.chunks(16)) {
        expected.insert(key.to_vec(), [b"\0", key, b"\0"].concat());
    }
    let subject = kit.open_with(&expected)?;
    compare("binary keys and values", &subject, &expected)
}

fn empty_values_are_kept<B: Backend>(kit: &Kit<'_, B>) -> Verdict {
    let expected = entries([("a", ""), ("b", "full"), ("c", "")]);
    let subject = kit.open_with(&expected)?;
    compare("empty values", &subject, &expected)
}

fn large_values_are_kept<B: Backend>(kit: &Kit<'_, B>) -> Verdict {
    let subject = kit.open()?;
    let mut expected = Entries::new();
    for (index, bytes) in [(1, 1 << 20), (2, VALUE_BYTES_TRIED)] {
        let batch = B::LIMITS.batch_bytes_max.saturating_sub(1);
        let bytes = bytes.min(B::LIMITS.value_bytes_max).min(batch);
        let value: Vec<u8> = (0..bytes).map(|at| (at % 251) as u8).collect();
        let key = [index as u8];
        subject.write(&[Op::Put(&key, &value)], &mark(index))?;
        expected.insert(key.to_vec(), value);
    }
    compare("large values", &subject, &expected)
}

fn long_keys_are_kept<B: Backend>(kit: &Kit<'_, B>) -> Verdict {
    let subject = kit.open()?;
    let batch = B::LIMITS.batch_bytes_max.saturating_sub(1);
    let bytes = KEY_BYTES_TRIED.min(B::LIMITS.key_bytes_max).min(batch);
    let mut expected = Entries::new();
    // Different in their last byte alone.
    for (index, last) in [(1, b'x'), (2, b'y')] {
        let mut key = vec![b'k'; bytes as usize];
        key[bytes as usize - 1] = last;
        subject.write(&[Op::Put(&key, &[last])], &mark(index))?;
        expected.insert(key, vec![last]);
    }
    compare("long keys", &subject, &expected)
}

fn refused_batch_changes_nothing<B: Backend>(kit: &Kit<'_, B>) -> Verdict {
    let mut refused: Vec<(&str, Vec<(Vec<u8>, Vec<u8>)>)> = Vec::new();
    let above = |limit: u64| (limit < VALUE_BYTES_TRIED).then(|| limit as usize + 1);
    if let Some(bytes) = above(B::LIMITS.key_bytes_max) {
        refused.push(("key", vec![(vec![b'k'; bytes], b"value".to_vec())]));
    }
    if let Some(bytes) = above(B::LIMITS.value_bytes_max) {
        refused.push(("value", vec![(b"key".to_vec(), vec![b'v'; bytes])]));
    }
    if let Some(bytes) = above(B::LIMITS.batch_bytes_max) {
        let value = B::LIMITS.value_bytes_max.min(1 << 10) as usize;
        let puts = (0..bytes.div_ceil(value) as u32)
            .map(|at| (at.to_be_bytes().to_vec(), vec![b'v'; value]))
            .collect();
        refused.push(("batch", puts));
    }
    for (what, puts) in refused {
        let expected = entries([("a", "1"), ("b", "2")]);
        let subject = kit.open_with(&expected)?;
        let mut batch = vec![Op::Put(b"a", b"3"), Op::Delete(b"b"), Op::Put(b"c", b"4")];
        batch.extend(puts.iter().map(|(key, value)| Op::Put(key, value)));
        match subject.backend.write(&batch, &mark(2)) {
            Err(error) if error.kind() == ErrorKind::TooLarge => {}
            Err(error) => return Err(format!("a {what} above the limit: {error}")),
            Ok(()) => return Err(format!("a {what} above the limit was taken")),
        }
        same_mark("after a refused batch", &subject.mark()?, &mark(1))?;
        compare("after a refused batch", &subject, &expected)?;
    }
    Ok(())
}

fn later_changes_of_a_batch_see_earlier_ones<B: Backend>(kit: &Kit<'_, B>) -> Verdict {
    let subject = kit.open_with(&entries([("a", "old"), ("m1", "old"), ("z", "old")]))?;
    let batch = [
        Op::Put(b"a", b"1"),
        Op::Put(b"a", b"2"),
        Op::Put(b"b", b"1"),
        Op::Delete(b"b"),
        Op::Delete(b"z"),
        Op::Put(b"z", b"1"),
        Op::Put(b"m2", b"1"),
        Op::DeleteRange(b"m", b"n"),
        Op::Put(b"m3", b"1"),
    ];
    subject.write(&batch, &mark(2))?;
    let expected = entries([("a", "2"), ("m3", "1"), ("z", "1")]);
    compare("after a batch about the same keys", &subject, &expected)
}

fn mark_comes_with_its_batch<B: Backend>(kit: &Kit<'_, B>) -> Verdict {
    let subject = kit.open()?;
    let lengths = [0, 1, 300, MARK_DATA_BYTES_MAX];
    for (index, len) in (1..).zip(lengths) {
        let mark = Mark {
            index: u64::MAX / 8 * index,
            data: (0..len).map(|at| (at % 256) as u8).collect(),
        };
        subject.write(&[Op::Put(b"key", &[index as u8])], &mark)?;
        same_mark("after a write", &subject.mark()?, &mark)?;
    }
    // A mark moves on without changes too.
    let last = mark(u64::MAX);
    subject.write(&[], &last)?;
    same_mark("after an empty batch", &subject.mark()?, &last)
}

fn unchanged_mark_is_kept<B: Backend>(kit: &Kit<'_, B>) -> Verdict {
    let subject = kit.open()?;
    let mark = mark(7);
    let batches: [&[Op<'_>]; 3] = [&[Op::Put(b"a", b"1")], &[Op::Put(b"b", b"2")], &[]];
    for batch in batches {
        subject.write(batch, &mark)?;
        // Looked at each time: a lost mark would come back with the next write.
        same_mark("after a write with the same mark", &subject.mark()?, &mark)?;
    }
    let expected = entries([("a", "1"), ("b", "2")]);
    compare("after a write with the same mark", &subject, &expected)
}

fn sync_returns_the_durable_mark<B: Backend>(kit: &Kit<'_, B>) -> Verdict {
    let subject = kit.open()?;
    let is_durable = B::CAPS.contains(Caps::DURABLE);
    for index in 1..=3 {
        subject.write(&[Op::Put(b"key", &[index as u8])], &mark(index))?;
        let durable = if is_durable {
            mark(index)
        } else {
            Mark::default()
        };
        // The second has nothing to do.
        for _ in 0..2 {
            same_mark("the return of sync", &subject.sync()?, &durable)?;
        }
        same_mark("after sync", &subject.mark()?, &mark(index))?;
    }
    Ok(())
}

fn range_delete_keeps_to_its_bounds<B: Backend>(kit: &Kit<'_, B>) -> Verdict {
    let full = letters();
    let cases: [(&[u8], &[u8]); 8] = [
        (b"b", b"d"),
        (b"bb", b"dd"),
        (b"b", b"b"),
        (b"d", b"b"),
        (b"", b"c"),
        (b"x", b"zz"),
        (b"y", b"\xff"),
        (b"", b"\xff"),
    ];
    for (from, to) in cases {
        let subject = kit.open_with(&full)?;
        subject.write(&[Op::DeleteRange(from, to)], &mark(2))?;
        let mut expected = full.clone();
        expected.retain(|key, _| key.as_slice() < from || key.as_slice() >= to);
        let what = format!(
            "after the range {} to {} was deleted",
            Bytes(from),
            Bytes(to)
        );
        compare(&what, &subject, &expected)?;
        same_mark(&what, &subject.mark()?, &mark(2))?;
    }
    Ok(())
}

/// The ranges that scans are tried with, over [`letters`].
const BOUNDS: [(&[u8], Option<&[u8]>); 10] = [
    (b"", None),
    (b"", Some(b"")),
    (b"b", Some(b"d")),
    (b"bb", Some(b"dd")),
    (b"b", Some(b"b")),
    (b"d", Some(b"b")),
    (b"c", None),
    (b"", Some(b"c")),
    (b"zz", None),
    (b"x", Some(b"\xff")),
];

fn scan_keeps_to_its_bounds<B: Backend>(kit: &Kit<'_, B>) -> Verdict {
    let full = letters();
    let subject = kit.open_with(&full)?;
    for (from, to) in BOUNDS {
        let range = Range {
            from,
            to,
            reverse: false,
        };
        // The order is another clause's matter.
        let found = scan(&subject, range)?.into_iter().collect();
        let what = format!("the scan from {} to {}", Bytes(from), Value(to));
        same(&what, &found, &within(&full, range).into_iter().collect())?;
    }
    Ok(())
}

fn reverse_scan_goes_backwards<B: Backend>(kit: &Kit<'_, B>) -> Verdict {
    let full = letters();
    let subject = kit.open_with(&full)?;
    for (from, to) in BOUNDS {
        let range = Range {
            from,
            to,
            reverse: true,
        };
        let found = scan(&subject, range)?;
        let mut expected = within(&full, range);
        expected.reverse();
        ensure!(
            found == expected,
            "the reverse scan from {} to {} found the keys {}, expected {}",
            Bytes(from),
            Value(to),
            names(found.iter().map(|(key, _)| key.as_slice())),
            names(expected.iter().map(|(key, _)| key.as_slice()))
        );
    }
    Ok(())
}

fn scan_stops_when_told<B: Backend>(kit: &Kit<'_, B>) -> Verdict {
    let subject = kit.open_with(&letters())?;
    for (reverse, wanted) in [(false, 1), (false, 3), (true, 1), (true, 3)] {
        let mut calls = 0;
        let range = Range { reverse, ..ALL };
        subject
            .scan(range, &mut |_, _| {
                calls += 1;
                if calls < wanted {
                    Flow::Continue
                } else {
                    Flow::Stop
                }
            })
            .map_err(during("a stopped scan"))?;
        ensure!(
            calls == wanted,
            "a scan, reverse {reverse}, that was stopped at entry {wanted} visited {calls}"
        );
    }
    Ok(())
}

fn readers_never_see_half_a_batch<B: Backend>(kit: &Kit<'_, B>) -> Verdict {
    let subject = kit.open()?;
    let traffic = Traffic::default();
    thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| scope.spawn(|| read_groups(&subject, &traffic)))
            .collect();
        let written = write_groups(&subject, &traffic);
        for reader in readers {
            reader.join().unwrap_or_else(|panic| resume_unwind(panic))?;
        }
        written
    })
}

/// What writer and readers know of each other.
#[derive(Default)]
struct Traffic {
    is_over: AtomicBool,
    /// Odd during a write.
    writes: AtomicU64,
    meetings: AtomicU64,
}

/// Tells the other threads to end, also when this one fails or panics.
struct EndOnDrop<'a>(&'a Traffic);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::SeqCst);
    }
}

/// Each batch sets all keys of the group to its own number; every third removes them.
fn write_groups<B: Backend>(subject: &Subject<B>, traffic: &Traffic) -> Verdict {
    let _end = EndOnDrop(traffic);
    let keys: Vec<_> = (0..GROUP).map(|at| [b'g', at as u8]).collect();
    for index in 1..=WRITES_MAX {
        let is_enough = traffic.meetings.load(Ordering::SeqCst) >= MEETINGS;
        if is_enough || traffic.is_over.load(Ordering::SeqCst) {
            break;
        }
        let value = index.to_be_bytes();
        let batch: Vec<_> = if index % 3 == 0 {
            vec![Op::DeleteRange(b"g", b"h")]
        } else {
            keys.iter().map(|key| Op::Put(key, &value)).collect()
        };
        traffic.writes.fetch_add(1, Ordering::SeqCst);
        subject.write(&batch, &mark(index))?;
        traffic.writes.fetch_add(1, Ordering::SeqCst);
    }
    Ok(())
}

fn read_groups<B: Backend>(subject: &Subject<B>, traffic: &Traffic) -> Verdict {
    let _end = EndOnDrop(traffic);
    let mut last_met = 0;
    loop {
        let before = traffic.writes.load(Ordering::SeqCst);
        read_group(subject)?;
        let after = traffic.writes.load(Ordering::SeqCst);
        // Many reads during one write that was itself held up say no more than one.
        if (before % 2 == 1 || before != after) && after != last_met {
            traffic.meetings.fetch_add(1, Ordering::SeqCst);
            last_met = after;
        }
        if traffic.is_over.load(Ordering::SeqCst) {
            return Ok(());
        }
    }
}

fn read_group<B: Backend>(subject: &Subject<B>) -> Verdict {
    let (found, index) = if B::CAPS.contains(Caps::VIEW) {
        let view = subject.view()?;
        (scan(&Still(&view), ALL)?, Some(view.mark().index))
    } else {
        (scan(subject, ALL)?, None)
    };
    let Some((_, first)) = found.first() else {
        ensure!(
            index.is_none_or(|index| index % 3 == 0),
            "a reader found the mark {index:?} without its batch"
        );
        return Ok(());
    };
    ensure!(
        found.len() as u64 == GROUP,
        "a reader found {} of the {GROUP} keys of a batch",
        found.len()
    );
    let is_whole = found.iter().all(|(_, value)| value == first);
    ensure!(is_whole, "a reader found the values of two batches");
    ensure!(
        index.is_none_or(|index| first[..] == index.to_be_bytes()),
        "a reader found the mark {index:?} with the values of another batch"
    );
    Ok(())
}

fn view_stays_as_it_was<B: Backend>(kit: &Kit<'_, B>) -> Verdict {
    let old = letters();
    let subject = kit.open_with(&old)?;
    let view = subject.view()?;
    let batch = [
        Op::Put(b"a", b"new"),
        Op::Delete(b"b"),
        Op::DeleteRange(b"d", b"x"),
        Op::Put(b"new", b"new"),
    ];
    subject.write(&batch, &mark(2))?;
    subject.sync()?;
    subject.write(&[Op::DeleteRange(b"", b"\xff")], &mark(3))?;
    compare("a view after writes", &Still(&view), &old)?;
    let found = get(&Still(&view), b"new")?;
    ensure!(found.is_none(), "a view has a key that was put later");
    let range = Range {
        from: b"b",
        to: Some(b"y"),
        reverse: true,
    };
    let mut expected = within(&old, range);
    expected.reverse();
    ensure!(
        scan(&Still(&view), range)? == expected,
        "a reverse scan of a range differs in a view after writes"
    );
    compare(
        "a view of an emptied engine",
        &Still(&subject.view()?),
        &Entries::new(),
    )
}

fn view_has_the_mark_of_its_moment<B: Backend>(kit: &Kit<'_, B>) -> Verdict {
    let subject = kit.open()?;
    same_mark(
        "a view of a new engine",
        subject.view()?.mark(),
        &Mark::default(),
    )?;
    let old = Mark {
        index: 5,
        data: b"five".to_vec(),
    };
    subject.write(&[Op::Put(b"key", b"value")], &old)?;
    let view = subject.view()?;
    subject.write(&[], &mark(6))?;
    same_mark("a view after a write", view.mark(), &old)?;
    same_mark("a later view", subject.view()?.mark(), &mark(6))
}

fn view_outlives_replace<B: Backend>(kit: &Kit<'_, B>) -> Verdict {
    let old = letters();
    let subject = kit.open_with(&old)?;
    let view = subject.view()?;
    subject.replace(&entries([("a", "new"), ("new", "new")]), &mark(2))?;
    subject.write(&[Op::Put(b"b", b"newer")], &mark(3))?;
    compare("a view after replace", &Still(&view), &old)?;
    same_mark("a view after replace", view.mark(), &mark(1))
}

fn view_without_capability_is_unsupported<B: Backend>(kit: &Kit<'_, B>) -> Verdict {
    if B::CAPS.contains(Caps::VIEW) {
        return Ok(());
    }
    match kit.open()?.backend.view() {
        Err(error) if error.kind() == ErrorKind::Unsupported => Ok(()),
        Err(error) => Err(format!("view gave another error: {error}")),
        Ok(_) => Err("there is a view, but the capability is not claimed".into()),
    }
}

fn replace_swaps_the_whole_contents<B: Backend>(kit: &Kit<'_, B>) -> Verdict {
    let subject = kit.open_with(&letters())?;
    let mut new = many();
    new.insert(b"b".to_vec(), b"new".to_vec());
    let new_mark = Mark {
        index: 9,
        data: b"nine".to_vec(),
    };
    subject.replace(&new, &new_mark)?;
    same_mark("after replace", &subject.mark()?, &new_mark)?;
    compare("after replace", &subject, &new)?;
    subject.write(&[Op::Delete(b"b"), Op::Put(b"c", b"later")], &mark(10))?;
    new.remove(b"b".as_slice());
    new.insert(b"c".to_vec(), b"later".to_vec());
    same_mark("a write after replace", &subject.mark()?, &mark(10))?;
    compare("a write after replace", &subject, &new)
}

fn replace_by_nothing_leaves_nothing<B: Backend>(kit: &Kit<'_, B>) -> Verdict {
    let subject = kit.open_with(&letters())?;
    subject.replace(&Entries::new(), &mark(2))?;
    same_mark("after replace by an empty feed", &subject.mark()?, &mark(2))?;
    compare("after replace by an empty feed", &subject, &Entries::new())
}

fn replace_is_durable<B: Backend>(kit: &Kit<'_, B>) -> Verdict {
    let subject = kit.open()?;
    let new = many();
    subject.replace(&new, &mark(2))?;
    let subject = kit.reopen(subject)?;
    let found = subject.mark()?;
    if !B::CAPS.contains(Caps::DURABLE) && found == Mark::default() {
        return compare("opened after replace", &subject, &Entries::new());
    }
    same_mark("opened after replace", &found, &mark(2))?;
    compare("opened after replace", &subject, &new)
}

fn failed_replace_leaves_old_contents_or_none<B: Backend>(kit: &Kit<'_, B>) -> Verdict {
    for taken in [0, 5, usize::MAX] {
        let old = letters();
        let subject = kit.open_with(&old)?;
        subject.sync()?;
        let new = many();
        let mut feed = EntriesFeed {
            entries: new.iter().take(taken),
            end: Some(Error::new(ErrorKind::Corruption, "the feed broke")),
        };
        match subject.backend.replace(&mut feed, &mark(2)) {
            Ok(()) => return Err("replace returned no error when its feed failed".into()),
            Err(error) => ensure!(
                error.kind() == ErrorKind::Corruption && error.to_string().contains("feed broke"),
                "replace returned another error than its feed's: {error}"
            ),
        }
        old_or_none("after a failed replace", &subject, &old)?;
        let subject = kit.reopen(subject)?;
        old_or_none("opened after a failed replace", &subject, &old)?;
    }
    Ok(())
}

fn old_or_none<B: Backend>(what: &str, subject: &Subject<B>, old: &Entries) -> Verdict {
    let found = subject.mark()?;
    if found == Mark::default() {
        return compare(what, subject, &Entries::new());
    }
    same_mark(what, &found, &mark(1))?;
    compare(what, subject, old)
}

fn reopened_engine_has_what_was_synced<B: Backend>(kit: &Kit<'_, B>) -> Verdict {
    let mut subject = kit.open()?;
    for (synced, last) in [(0, 3), (9, 9), (12, 17), (20, 21)] {
        let start = subject.mark()?.index + 1;
        for index in start..=last {
            write_history(&subject, index)?;
            if index == synced {
                subject.sync()?;
            }
        }
        subject = kit.reopen(subject)?;
        let found = subject.mark()?;
        let least = if B::CAPS.contains(Caps::DURABLE) {
            synced
        } else {
            0
        };
        ensure!(
            (least..=last).contains(&found.index),
            "opened again with the mark {}, but {least} was synced and {last} written",
            found.index
        );
        let what = format!("opened again with the mark {}", found.index);
        same_mark(&what, &found, &mark(found.index))?;
        compare(&what, &subject, &history(found.index))?;
    }
    Ok(())
}

fn closed_engine_keeps_everything<B: Backend>(kit: &Kit<'_, B>) -> Verdict {
    let mut subject = kit.open()?;
    for last in [4, 11] {
        for index in subject.mark()?.index + 1..=last {
            write_history(&subject, index)?;
        }
        subject.backend.close().map_err(during("close"))?;
        subject = kit.reopen(subject)?;
        same_mark("opened after close", &subject.mark()?, &mark(last))?;
        compare("opened after close", &subject, &history(last))?;
    }
    Ok(())
}

fn second_opening_is_locked<B: Backend>(kit: &Kit<'_, B>) -> Verdict {
    let full = letters();
    let subject = kit.open_with(&full)?;
    match kit.open_in(subject.dir()) {
        Err(error) if error.kind() == ErrorKind::Locked => {}
        Err(error) => return Err(format!("a second opening gave another error: {error}")),
        Ok(_) => return Err("a directory was opened twice at the same time".into()),
    }
    // The first one takes no harm.
    subject.write(&[Op::Put(b"a", b"new")], &mark(2))?;
    let mut expected = full;
    expected.insert(b"a".to_vec(), b"new".to_vec());
    compare("after a second opening", &subject, &expected)
}

fn compact_keeps_contents<B: Backend>(kit: &Kit<'_, B>) -> Verdict {
    let mut expected = many();
    let subject = kit.open_with(&expected)?;
    let (from, to) = (b"key-0099x".as_slice(), b"key-1999x".as_slice());
    subject.write(&[Op::DeleteRange(from, to)], &mark(2))?;
    expected.retain(|key, _| key.as_slice() < from || key.as_slice() >= to);
    may_be_unsupported::<B>("compact", Caps::COMPACT, subject.backend.compact())?;
    same_mark("after compact", &subject.mark()?, &mark(2))?;
    compare("after compact", &subject, &expected)
}

fn verify_accepts_sound_contents<B: Backend>(kit: &Kit<'_, B>) -> Verdict {
    let full = letters();
    let subject = kit.open_with(&full)?;
    subject.backend.verify().map_err(during("verify"))?;
    same_mark("after verify", &subject.mark()?, &mark(1))?;
    compare("after verify", &subject, &full)
}

fn properties_have_values<B: Backend>(kit: &Kit<'_, B>) -> Verdict {
    let subject = kit.open_with(&letters())?;
    for name in subject.backend.properties() {
        ensure!(
            subject.backend.property(name).is_some(),
            "the property '{name}' has no value"
        );
    }
    let unknown = subject.backend.property("kvd.testkit.unknown");
    ensure!(unknown.is_none(), "an unknown property has a value");
    Ok(())
}

fn may_be_unsupported<B: Backend>(what: &str, cap: Caps, result: Result<()>) -> Verdict {
    match result {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::Unsupported && !B::CAPS.contains(cap) => Ok(()),
        Err(error) => Err(format!("{what} failed: {error}")),
    }
}

/// A to z, each with a value of its own.
fn letters() -> Entries {
    (b'a'..=b'z')
        .map(|letter| (vec![letter], format!("value {letter}").into_bytes()))
        .collect()
}

/// About three megabytes: more than an engine is likely to take in one step.
fn many() -> Entries {
    (0..3000)
        .map(|at| {
            let value = vec![b'0' + (at % 10) as u8; 1 << 10];
            (format!("key-{at:04}").into_bytes(), value)
        })
        .collect()
}

/// Puts one key, overwrites another, and removes the one of three writes before.
fn write_history<B: Backend>(subject: &Subject<B>, index: u64) -> Verdict {
    let value = index.to_string();
    let key = format!("key {index}");
    let old = format!("key {}", index.saturating_sub(3));
    let batch = [
        Op::Put(b"last", value.as_bytes()),
        Op::Put(key.as_bytes(), value.as_bytes()),
        Op::Delete(old.as_bytes()),
    ];
    subject.write(&batch, &mark(index))
}

/// What [`write_history`] comes to after `index` writes.
fn history(index: u64) -> Entries {
    let mut expected: Entries = (index.saturating_sub(2)..=index)
        .filter(|at| *at > 0)
        .map(|at| {
            (
                format!("key {at}").into_bytes(),
                at.to_string().into_bytes(),
            )
        })
        .collect();
    if index > 0 {
        expected.insert(b"last".to_vec(), index.to_string().into_bytes());
    }
    expected
}

/// The entries of a range, in ascending order.
fn within(full: &Entries, range: Range<'_>) -> Vec<(Vec<u8>, Vec<u8>)> {
    full.iter()
        .filter(|(key, _)| {
            key.as_slice() >= range.from && range.to.is_none_or(|to| key.as_slice() < to)
        })
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

fn names<'a>(keys: impl Iterator<Item = &'a [u8]>) -> String {
    let names: Vec<_> = keys.map(|key| Bytes(key).to_string()).collect();
    names.join(" ")
}
