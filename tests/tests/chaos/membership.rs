//! Members that are replaced while other things go wrong: LEAVE, a wiped disk, JOIN.
//!
//! The administrator asks one node after another, goes on with other things until it is answered,
//! and asks again where the connection ends: the step may have been done all the same. A call is
//! never given up otherwise, for a LEAVE that begins late may mean another member of that name.

use std::fs;
use std::io;
use std::time::Duration;

use kvd::resp::Reply;
use kvd_tests::{Client, PATIENCE, until};
use rand::Rng as _;
use rand::rngs::StdRng;

use super::cluster::Cluster;

/// How far the replacement of a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Leave,
    Join,
}

/// A replacement that is under way.
pub(super) struct Change {
    n: usize,
    step: Step,
    /// Where the step was asked for, until that is answered.
    call: Option<Client>,
}

impl Cluster<'_> {
    /// A member is to be replaced; one at a time is.
    pub(super) fn begin_change(&mut self, n: usize) -> bool {
        if self.change.is_some() {
            return false;
        }
        self.change = Some(Change {
            n,
            step: Step::Leave,
            call: None,
        });
        true
    }

    /// Takes the replacement that is under way further, as far as that goes without waiting.
    pub(super) fn administer(&mut self, random: &mut StdRng) {
        let count = self.nodes.len();
        let Some(Change { n, step, call }) = &mut self.change else {
            return;
        };
        if call.is_none() {
            let by = (*n + 1 + random.next_u64() as usize % (count - 1)) % count;
            let (n, step) = (*n, *step);
            let asked = self.awake(by).then(|| self.request(n, step, by));
            self.change.as_mut().expect("it is under way").call = asked.flatten();
            return;
        }
        if let Some(reply) = self.answer(Duration::from_millis(1)) {
            self.answered(&reply);
        }
    }

    /// Asks a node for a step.
    fn request(&self, n: usize, step: Step, by: usize) -> Option<Client> {
        let mut client = Client::connect(&self.nodes[by].addr()).ok()?;
        let name = format!("node{n}");
        let sent = match step {
            Step::Leave => client.send(&["LEAVE", &name]),
            Step::Join => client.send(&["JOIN", &name, &self.states[n].addr]),
        };
        sent.ok().map(|()| client)
    }

    /// The answer to what was asked for, if it comes; without a connection it never will.
    fn answer(&mut self, patience: Duration) -> Option<Reply> {
        let change = self.change.as_mut()?;
        let client = change.call.as_mut()?;
        client.set_patience(patience);
        let answer = client.receive();
        if answer.as_ref().is_err_and(is_late) {
            return None;
        }
        change.call = None;
        answer.ok()
    }

    /// A step of the replacement was answered.
    fn answered(&mut self, reply: &Reply) {
        let change = self.change.as_mut().expect("a change is under way");
        let n = change.n;
        let gone = matches!(reply, Reply::Error(text) if text.starts_with("ERR no member"));
        match change.step {
            Step::Leave if *reply == Reply::Ok || gone => {
                change.step = Step::Join;
                self.begin_anew(n);
            }
            Step::Join if *reply == Reply::Ok => {
                self.change = None;
                self.happened("members replaced");
            }
            // Not now.
            _ => {}
        }
    }

    /// A member that has left is wiped, and starts as a node that waits to be taken in.
    fn begin_anew(&mut self, n: usize) {
        self.kill(n);
        self.mend_disk(n);
        fs::remove_dir_all(&self.nodes[n].dir).unwrap();
        // What is noted of syncs is of files that are gone.
        drop(fs::remove_file(self.beside(n, "notes")));
        let state = &mut self.states[n];
        (state.armed, state.damaged, state.fallible) = (None, false, false);
        self.nodes[n].start();
        self.learn_id(n);
    }

    /// Ends the replacement that is under way.
    pub(super) fn finish_change(&mut self) {
        let mut by = 0;
        until("a member is replaced", || {
            let Some(Change { n, step, call }) = &self.change else {
                return true;
            };
            if call.is_none() {
                by = (by + 1) % self.nodes.len();
                let by = if by == *n {
                    (by + 1) % self.nodes.len()
                } else {
                    by
                };
                let asked = self.request(*n, *step, by);
                self.change.as_mut().expect("it is under way").call = asked;
            }
            if let Some(reply) = self.answer(PATIENCE) {
                self.answered(&reply);
            }
            self.change.is_none()
        });
    }

    /// Takes a node in by way of another.
    pub(super) fn join(&self, n: usize) {
        let by = if n == 0 { 1 } else { 0 };
        let call = ["JOIN", &format!("node{n}"), &self.states[n].addr];
        until("a node is taken in", || {
            self.ask(by, &call, PATIENCE) == Some(Reply::Ok)
        });
    }
}

/// No answer came yet.
fn is_late(error: &io::Error) -> bool {
    let kinds = [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut];
    kinds.contains(&error.kind())
}
