//! From opening to opening again.

use crate::{Caps, ErrorKind, Mark, Op};

use super::super::Tried;
use super::super::subject::{
    Entries, Kit, Subject, Verdict, compare, during, ensure, entries, mark, same_mark,
};
use super::{VOLATILE, letters, some};

pub(super) fn reopened_engine_has_what_was_synced(kit: &Kit<'_>) -> Verdict<Tried> {
    let mut tried = Tried::Nothing(VOLATILE);
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
        let least = if kit.is_durable() { synced } else { 0 };
        ensure!(
            (least..=last).contains(&found.index),
            "opened again with the mark {}, but {least} was synced and {last} written",
            found.index
        );
        let what = format!("opened again with the mark {}", found.index);
        same_mark(&what, &found, &mark(found.index))?;
        compare(&what, &subject, &history(found.index))?;
        if kit.is_durable() || found.index > 0 {
            tried = Tried::All;
        }
    }
    Ok(tried)
}

pub(super) fn closed_engine_keeps_everything(kit: &Kit<'_>) -> Verdict {
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
    // Also what came with no mark but that of a new engine.
    let subject = kit.open()?;
    subject.write(&[Op::Put(b"a", b"1")], &Mark::default())?;
    subject.backend.close().map_err(during("close"))?;
    let subject = kit.reopen(subject)?;
    let what = "opened after a close with the default mark";
    same_mark(what, &subject.mark()?, &Mark::default())?;
    compare(what, &subject, &entries([("a", "1")]))
}

pub(super) fn second_opening_is_locked(kit: &Kit<'_>) -> Verdict {
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

pub(super) fn compact_keeps_contents(kit: &Kit<'_>) -> Verdict<Tried> {
    let mut expected = some(kit.effort.entries);
    let subject = kit.open_with(&expected)?;
    let (from, to) = (b"key-0099x".as_slice(), b"key-1999x".as_slice());
    subject.write(&[Op::DeleteRange(from, to)], &mark(2))?;
    expected.retain(|key, _| key.as_slice() < from || key.as_slice() >= to);
    let tried = match subject.backend.compact() {
        Ok(()) => Tried::All,
        Err(error)
            if error.kind() == ErrorKind::Unsupported && !kit.caps().contains(Caps::COMPACT) =>
        {
            Tried::Nothing("the engine does not compact, and does not claim to")
        }
        Err(error) => return Err(format!("compact failed: {error}")),
    };
    same_mark("after compact", &subject.mark()?, &mark(2))?;
    compare("after compact", &subject, &expected)?;
    Ok(tried)
}

pub(super) fn verify_accepts_sound_contents(kit: &Kit<'_>) -> Verdict<Tried> {
    let full = letters();
    let subject = kit.open_with(&full)?;
    subject.backend.verify().map_err(during("verify"))?;
    same_mark("after verify", &subject.mark()?, &mark(1))?;
    compare("after verify", &subject, &full)?;
    Ok(match kit.caps().contains(Caps::VERIFY) {
        true => Tried::All,
        // One that looks at nothing has nothing to find.
        false => Tried::Nothing("the engine does not claim to verify anything"),
    })
}

pub(super) fn properties_have_values(kit: &Kit<'_>) -> Verdict {
    let subject = kit.open_with(&letters())?;
    for name in subject.backend.properties() {
        ensure!(
            subject.backend.property(&name).is_some(),
            "the property '{name}' has no value"
        );
    }
    let unknown = subject.backend.property("kvd.testkit.unknown");
    ensure!(unknown.is_none(), "an unknown property has a value");
    Ok(())
}

pub(super) fn reconfigure_keeps_contents(kit: &Kit<'_>) -> Verdict {
    let mut expected = letters();
    let subject = kit.open_with(&expected)?;
    // What is in force may be given again, and is taken.
    let given = kit.given();
    subject
        .backend
        .reconfigure(given)
        .map_err(during("reconfigure"))?;
    same_mark("after reconfigure", &subject.mark()?, &mark(1))?;
    compare("after reconfigure", &subject, &expected)?;
    match subject.backend.reconfigure(&[("no such option", "1")]) {
        Err(error) if error.kind() == ErrorKind::InvalidOption => {}
        Err(error) => return Err(format!("an unknown option gave another error: {error}")),
        Ok(()) => return Err("an unknown option was taken".into()),
    }
    subject.write(&[Op::Put(b"a", b"new")], &mark(2))?;
    expected.insert(b"a".to_vec(), b"new".to_vec());
    compare("written after reconfigure", &subject, &expected)
}

/// Puts one key, overwrites another, and removes the one of three writes before.
pub(super) fn write_history(subject: &Subject, index: u64) -> Verdict {
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
pub(super) fn history(index: u64) -> Entries {
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
