//! Replacing the whole contents.

use crate::{Error, ErrorKind, Mark, Op};

use super::super::Tried;
use super::super::subject::{
    Entries, EntriesFeed, Kit, Subject, Verdict, compare, ensure, mark, same_mark,
};
use super::{VOLATILE, letters, some};

pub(super) fn replace_swaps_the_whole_contents(kit: &Kit<'_>) -> Verdict {
    let subject = kit.open_with(&letters())?;
    let mut new = some(kit.effort.entries);
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

pub(super) fn replace_by_nothing_leaves_nothing(kit: &Kit<'_>) -> Verdict {
    let subject = kit.open_with(&letters())?;
    subject.replace(&Entries::new(), &mark(2))?;
    same_mark("after replace by an empty feed", &subject.mark()?, &mark(2))?;
    compare("after replace by an empty feed", &subject, &Entries::new())
}

pub(super) fn replace_is_durable(kit: &Kit<'_>) -> Verdict<Tried> {
    let subject = kit.open()?;
    let new = some(kit.effort.entries);
    subject.replace(&new, &mark(2))?;
    let subject = kit.reopen(subject)?;
    let found = subject.mark()?;
    if !kit.is_durable() && found == Mark::default() {
        compare("opened after replace", &subject, &Entries::new())?;
        return Ok(Tried::Nothing(VOLATILE));
    }
    same_mark("opened after replace", &found, &mark(2))?;
    compare("opened after replace", &subject, &new)?;
    Ok(Tried::All)
}

pub(super) fn failed_replace_leaves_old_contents_or_none(kit: &Kit<'_>) -> Verdict {
    for taken in [0, 5, usize::MAX] {
        let old = letters();
        let subject = kit.open_with(&old)?;
        subject.sync()?;
        let new = some(kit.effort.entries);
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

pub(super) fn old_or_none(what: &str, subject: &Subject, old: &Entries) -> Verdict {
    let found = subject.mark()?;
    if found == Mark::default() {
        return compare(what, subject, &Entries::new());
    }
    same_mark(what, &found, &mark(1))?;
    compare(what, subject, old)
}
