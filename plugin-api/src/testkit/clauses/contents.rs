//! Keys, values, batches and marks: what is written is there.

use crate::{ErrorKind, Mark, Op, Options};

use super::super::Tried;
use super::super::subject::{
    ALL, Entries, Kit, Read as _, Value, Verdict, compare, during, ensure, entries, get, mark,
    same_mark, scan,
};
use super::names;

/// Keys up to this size are tried, and the engine's limit where it is below.
const KEY_BYTES_TRIED: u64 = 4 << 10;
/// The host's part of a mark may be this long.
const MARK_DATA_BYTES_MAX: usize = 64 << 10;
/// How many changes a large batch has.
const LARGE_BATCH: u64 = 20_000;

pub(super) fn options_are_specified(kit: &Kit<'_>) -> Verdict {
    let is_plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
    ensure!(
        !kit.candidate.name.is_empty() && kit.candidate.name.bytes().all(is_plain),
        "the name '{}' has other characters than a-z, 0-9, - and _",
        kit.candidate.name
    );
    for (at, spec) in kit.candidate.options.iter().enumerate() {
        ensure!(
            kit.candidate.options[..at]
                .iter()
                .all(|other| other.name != spec.name),
            "the option '{}' is specified twice",
            spec.name
        );
    }
    Options::parse(&kit.candidate.options, [])
        .map_err(|error| format!("a default is wrong: {error}"))?;
    kit.options().map_err(during("parsing the given options"))?;
    let mut unknown = String::from("unknown");
    while kit
        .candidate
        .options
        .iter()
        .any(|spec| spec.name == unknown)
    {
        unknown.push('_');
    }
    match Options::parse(&kit.candidate.options, [(unknown.as_str(), "1")]) {
        Err(error) if error.kind() == ErrorKind::InvalidOption => Ok(()),
        Err(error) => Err(format!("an unknown option gave another error: {error}")),
        Ok(_) => Err("an unknown option was taken".into()),
    }
}

pub(super) fn new_engine_is_empty(kit: &Kit<'_>) -> Verdict {
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

pub(super) fn get_returns_what_was_put(kit: &Kit<'_>) -> Verdict {
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

pub(super) fn keys_are_in_byte_order(kit: &Kit<'_>) -> Verdict {
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

pub(super) fn keys_and_values_are_any_bytes(kit: &Kit<'_>) -> Verdict {
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

pub(super) fn empty_values_are_kept(kit: &Kit<'_>) -> Verdict {
    let expected = entries([("a", ""), ("b", "full"), ("c", "")]);
    let subject = kit.open_with(&expected)?;
    compare("empty values", &subject, &expected)
}

pub(super) fn large_values_are_kept(kit: &Kit<'_>) -> Verdict {
    let subject = kit.open()?;
    let mut expected = Entries::new();
    for (index, bytes) in [(1, 1 << 20), (2, kit.effort.value_bytes)] {
        let batch = kit.limits().batch_bytes_max.saturating_sub(1);
        let bytes = bytes.min(kit.limits().value_bytes_max).min(batch);
        let value: Vec<u8> = (0..bytes).map(|at| (at % 251) as u8).collect();
        let key = [index as u8];
        subject.write(&[Op::Put(&key, &value)], &mark(index))?;
        expected.insert(key.to_vec(), value);
    }
    compare("large values", &subject, &expected)
}

pub(super) fn long_keys_are_kept(kit: &Kit<'_>) -> Verdict {
    let subject = kit.open()?;
    let batch = kit.limits().batch_bytes_max.saturating_sub(1);
    let bytes = KEY_BYTES_TRIED.min(kit.limits().key_bytes_max).min(batch);
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

pub(super) fn large_batches_are_kept(kit: &Kit<'_>) -> Verdict<Tried> {
    let subject = kit.open()?;
    // Five bytes of a key and one of a value each.
    let count = (kit.limits().batch_bytes_max / 6).min(LARGE_BATCH);
    if count == 0 {
        return Ok(Tried::Nothing(
            "the engine takes no batch that holds anything",
        ));
    }
    let keys: Vec<String> = (0..count).map(|at| format!("{at:05}")).collect();
    let puts: Vec<_> = keys
        .iter()
        .map(|key| Op::Put(key.as_bytes(), b"v"))
        .collect();
    subject.write(&puts, &mark(1))?;
    let found = scan(&subject, ALL)?;
    ensure!(
        found.len() == keys.len(),
        "a batch of {count} changes left {} keys",
        found.len()
    );
    let last = keys.last().map_or("", String::as_str);
    ensure!(
        get(&subject, last.as_bytes())?.is_some(),
        "the last change of a batch of {count} is not there"
    );
    same_mark("after a large batch", &subject.mark()?, &mark(1))?;
    Ok(Tried::All)
}

pub(super) fn refused_batch_changes_nothing(kit: &Kit<'_>) -> Verdict<Tried> {
    let mut refused: Vec<(&str, Vec<(Vec<u8>, Vec<u8>)>)> = Vec::new();
    let above = |limit: u64| (limit < kit.effort.value_bytes).then(|| limit as usize + 1);
    if let Some(bytes) = above(kit.limits().key_bytes_max) {
        refused.push(("key", vec![(vec![b'k'; bytes], b"value".to_vec())]));
    }
    if let Some(bytes) = above(kit.limits().value_bytes_max) {
        refused.push(("value", vec![(b"key".to_vec(), vec![b'v'; bytes])]));
    }
    if let Some(bytes) = above(kit.limits().batch_bytes_max) {
        let value = kit.limits().value_bytes_max.min(1 << 10) as usize;
        let puts = (0..bytes.div_ceil(value) as u32)
            .map(|at| (at.to_be_bytes().to_vec(), vec![b'v'; value]))
            .collect();
        refused.push(("batch", puts));
    }
    if refused.is_empty() {
        let why = "the engine has no limit, or none that is low enough to be tried";
        return Ok(Tried::Nothing(why));
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
    Ok(Tried::All)
}

pub(super) fn later_changes_of_a_batch_see_earlier_ones(kit: &Kit<'_>) -> Verdict {
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

pub(super) fn mark_comes_with_its_batch(kit: &Kit<'_>) -> Verdict {
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

pub(super) fn unchanged_mark_is_kept(kit: &Kit<'_>) -> Verdict {
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

pub(super) fn sync_returns_the_durable_mark(kit: &Kit<'_>) -> Verdict {
    let subject = kit.open()?;
    let is_durable = kit.is_durable();
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
