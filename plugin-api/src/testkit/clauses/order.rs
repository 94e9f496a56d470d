//! Ranges: what scans visit, and what is deleted.

use crate::{Flow, Op, Range};

use super::super::subject::{
    ALL, Bytes, Entries, Kit, Read, Value, Verdict, compare, during, ensure, mark, same, same_mark,
    scan,
};
use super::{letters, names, within};

pub(super) fn range_delete_keeps_to_its_bounds(kit: &Kit<'_>) -> Verdict {
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

pub(super) fn scan_keeps_to_its_bounds(kit: &Kit<'_>) -> Verdict {
    let full = letters();
    check_bounds(&kit.open_with(&full)?, &full)
}

/// Scans forwards; the order is another clause's matter.
pub(super) fn check_bounds(read: &impl Read, full: &Entries) -> Verdict {
    for (from, to) in BOUNDS {
        let range = Range {
            from,
            to,
            reverse: false,
        };
        let found = scan(read, range)?.into_iter().collect();
        let what = format!("the scan from {} to {}", Bytes(from), Value(to));
        same(&what, &found, &within(full, range).into_iter().collect())?;
    }
    Ok(())
}

pub(super) fn reverse_scan_goes_backwards(kit: &Kit<'_>) -> Verdict {
    let full = letters();
    check_reverse(&kit.open_with(&full)?, &full)
}

pub(super) fn check_reverse(read: &impl Read, full: &Entries) -> Verdict {
    for (from, to) in BOUNDS {
        let range = Range {
            from,
            to,
            reverse: true,
        };
        let found = scan(read, range)?;
        let mut expected = within(full, range);
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

pub(super) fn scan_stops_when_told(kit: &Kit<'_>) -> Verdict {
    check_stop(&kit.open_with(&letters())?)
}

pub(super) fn check_stop(read: &impl Read) -> Verdict {
    for (reverse, wanted) in [(false, 1), (false, 3), (true, 1), (true, 3)] {
        let mut calls = 0;
        let range = Range { reverse, ..ALL };
        read.scan(range, &mut |_, _| {
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
