//! Readers beside a writer.

use std::panic::resume_unwind;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use crate::{Caps, Op};

use super::super::Tried;
use super::super::subject::{
    ALL, Entries, Kit, Still, Subject, Verdict, compare, ensure, mark, scan,
};
use super::some;

/// How many keys the writes have that readers must see all or none of.
const GROUP: u64 = 8;

/// How many threads read beside the one that writes.
const READERS: usize = 2;

/// How many times over the writer goes on where no read has met any of its writes yet: a machine
/// with other work may let readers wait for longer than a quick engine needs for all of them.
const PATIENCE: u64 = 1000;

/// How the writer puts its groups in force.
#[derive(Clone, Copy)]
enum Way {
    Write,
    Replace,
}

/// How many times a read must meet another one of these writes, and the end of patience: on one
/// processor, or with a lock that lets nobody in, they hardly ever meet.
#[derive(Clone, Copy)]
struct Until {
    meetings: u64,
    writes_max: u64,
}

pub(super) fn readers_never_see_half_a_batch(kit: &Kit<'_>) -> Verdict<Tried> {
    let until = Until {
        meetings: kit.effort.meetings,
        writes_max: kit.effort.meetings * 100,
    };
    readers_see_whole_groups(kit, Way::Write, until)
}

pub(super) fn readers_never_see_half_a_replacement(kit: &Kit<'_>) -> Verdict<Tried> {
    // A replacement may cost several syncs of the disk.
    let until = Until {
        meetings: kit.effort.meetings / 10,
        writes_max: kit.effort.meetings / 2,
    };
    readers_see_whole_groups(kit, Way::Replace, until)
}

fn readers_see_whole_groups(kit: &Kit<'_>, way: Way, until: Until) -> Verdict<Tried> {
    let subject = kit.open()?;
    beside_readers(
        |traffic| read_groups(kit, &subject, traffic),
        |traffic| write_groups(&subject, traffic, way, until),
    )
}

pub(super) fn readers_go_on_beside_sync_and_compact(kit: &Kit<'_>) -> Verdict<Tried> {
    let expected = some(kit.effort.entries / 10);
    let subject = kit.open_with(&expected)?;
    let read = |traffic: &Traffic| -> Verdict {
        while !traffic.is_over() {
            compare("a read beside sync and compact", &subject, &expected)?;
            traffic.meetings.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    };
    let work = |traffic: &Traffic| -> Verdict {
        for index in 2..50 * PATIENCE {
            if traffic.is_over() || index >= 5 && traffic.has_met() {
                break;
            }
            subject.write(&[], &mark(index))?;
            subject.sync()?;
            // Whether it works is another clause's matter.
            drop(subject.backend.compact());
            traffic.let_others_run();
        }
        Ok(())
    };
    beside_readers(read, work)
}

/// Runs `write` beside several `read`, all of which end as soon as one of them does.
fn beside_readers(
    read: impl Fn(&Traffic) -> Verdict + Sync,
    write: impl FnOnce(&Traffic) -> Verdict,
) -> Verdict<Tried> {
    let traffic = Traffic::default();
    let begin = Barrier::new(READERS + 1);
    thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS)
            .map(|_| {
                scope.spawn(|| {
                    let _end = EndOnDrop(&traffic);
                    begin.wait();
                    read(&traffic)
                })
            })
            .collect();
        begin.wait();
        let written = {
            let _end = EndOnDrop(&traffic);
            write(&traffic)
        };
        for reader in readers {
            reader.join().unwrap_or_else(|panic| resume_unwind(panic))?;
        }
        written?;
        Ok(traffic.tried())
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

impl Traffic {
    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::SeqCst)
    }

    fn has_met(&self) -> bool {
        self.meetings.load(Ordering::SeqCst) > 0
    }

    /// For a writer that no read has met yet.
    fn let_others_run(&self) {
        if !self.has_met() {
            thread::yield_now();
        }
    }

    fn tried(&self) -> Tried {
        match self.has_met() {
            true => Tried::All,
            false => Tried::Nothing("no read came while the engine was at work; try it again"),
        }
    }
}

/// Tells the other threads to end, also when this one fails or panics.
struct EndOnDrop<'a>(&'a Traffic);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::SeqCst);
    }
}

/// Each batch sets all keys of the group to its own number; every third removes them.
fn write_groups(subject: &Subject, traffic: &Traffic, way: Way, until: Until) -> Verdict {
    let keys: Vec<_> = (0..GROUP).map(|at| [b'g', at as u8]).collect();
    for index in 1..=until.writes_max * PATIENCE {
        let is_enough = traffic.meetings.load(Ordering::SeqCst) >= until.meetings
            || index > until.writes_max && traffic.has_met();
        if is_enough || traffic.is_over() {
            break;
        }
        let value = index.to_be_bytes();
        let batch: Vec<_> = if index % 3 == 0 {
            vec![Op::DeleteRange(b"g", b"h")]
        } else {
            keys.iter().map(|key| Op::Put(key, &value)).collect()
        };
        let puts = || keys.iter().map(|key| (key.to_vec(), value.to_vec()));
        traffic.writes.fetch_add(1, Ordering::SeqCst);
        match way {
            Way::Write => subject.write(&batch, &mark(index))?,
            Way::Replace if index % 3 == 0 => subject.replace(&Entries::new(), &mark(index))?,
            Way::Replace => subject.replace(&puts().collect(), &mark(index))?,
        }
        traffic.writes.fetch_add(1, Ordering::SeqCst);
        traffic.let_others_run();
    }
    Ok(())
}

fn read_groups(kit: &Kit<'_>, subject: &Subject, traffic: &Traffic) -> Verdict {
    let mut last_met = 0;
    loop {
        let before = traffic.writes.load(Ordering::SeqCst);
        read_group(kit, subject)?;
        let after = traffic.writes.load(Ordering::SeqCst);
        // Many reads during one write that was itself held up say no more than one.
        if (before % 2 == 1 || before != after) && after != last_met {
            traffic.meetings.fetch_add(1, Ordering::SeqCst);
            last_met = after;
        }
        if traffic.is_over() {
            return Ok(());
        }
    }
}

fn read_group(kit: &Kit<'_>, subject: &Subject) -> Verdict {
    let (found, index) = if kit.caps().contains(Caps::VIEW) {
        let view = subject.view()?;
        (scan(&Still(&*view), ALL)?, Some(view.mark().index))
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
