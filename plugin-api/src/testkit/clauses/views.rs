//! Views: reads that stay as they are.

use crate::{Caps, ErrorKind, Mark, Op, Range};

use super::super::Tried;
use super::super::subject::{
    Entries, Kit, Read as _, Still, Verdict, compare, during, ensure, entries, get, mark,
    same_mark, scan,
};
use super::{letters, order, within};

pub(super) fn view_stays_as_it_was(kit: &Kit<'_>) -> Verdict {
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
    compare("a view after writes", &Still(&*view), &old)?;
    let found = get(&Still(&*view), b"new")?;
    ensure!(found.is_none(), "a view has a key that was put later");
    let range = Range {
        from: b"b",
        to: Some(b"y"),
        reverse: true,
    };
    let mut expected = within(&old, range);
    expected.reverse();
    ensure!(
        scan(&Still(&*view), range)? == expected,
        "a reverse scan of a range differs in a view after writes"
    );
    compare(
        "a view of an emptied engine",
        &Still(&*subject.view()?),
        &Entries::new(),
    )
}

pub(super) fn view_has_the_mark_of_its_moment(kit: &Kit<'_>) -> Verdict {
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

pub(super) fn view_reads_as_its_engine_does(kit: &Kit<'_>) -> Verdict {
    let full = letters();
    let subject = kit.open_with(&full)?;
    let view = subject.view()?;
    let view = Still(&*view);
    for (key, expected) in [(b"b", 1), (b"0", 0)] {
        let mut calls = 0;
        let is_found = view.get(key, &mut |_| calls += 1).map_err(during("get"))?;
        ensure!(
            (u32::from(is_found), calls) == (expected, expected),
            "get in a view returned {is_found} after {calls} calls of its callback"
        );
    }
    let within_view = |how| format!("in a view, {how}");
    order::check_bounds(&view, &full).map_err(within_view)?;
    order::check_reverse(&view, &full).map_err(within_view)?;
    order::check_stop(&view).map_err(within_view)
}

/// As kvd does when a snapshot is under way while the node stops.
pub(super) fn view_may_end_after_its_engine(kit: &Kit<'_>) -> Verdict {
    let full = letters();
    let subject = kit.open_with(&full)?;
    let view = subject.view()?;
    subject
        .backend
        .close()
        .map_err(during("close with a view"))?;
    drop(subject);
    drop(view);
    Ok(())
}

pub(super) fn view_outlives_replace(kit: &Kit<'_>) -> Verdict {
    let old = letters();
    let subject = kit.open_with(&old)?;
    let view = subject.view()?;
    subject.replace(&entries([("a", "new"), ("new", "new")]), &mark(2))?;
    subject.write(&[Op::Put(b"b", b"newer")], &mark(3))?;
    compare("a view after replace", &Still(&*view), &old)?;
    same_mark("a view after replace", view.mark(), &mark(1))
}

pub(super) fn view_without_capability_is_unsupported(kit: &Kit<'_>) -> Verdict<Tried> {
    if kit.caps().contains(Caps::VIEW) {
        return Ok(Tried::Nothing("the engine claims the capability"));
    }
    match kit.open()?.backend.view() {
        Err(error) if error.kind() == ErrorKind::Unsupported => Ok(Tried::All),
        Err(error) => Err(format!("view gave another error: {error}")),
        Ok(_) => Err("there is a view, but the capability is not claimed".into()),
    }
}
