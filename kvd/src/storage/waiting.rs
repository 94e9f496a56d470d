//! Changes that are applied and visible, and that the engine does not have yet.
//!
//! ```text
//! oldest                                                        newest
//! [ being stored ............ ][ merged ][ merged ][ one ][ one ][ one ]
//!   stay as they are, until      eight of about one size become one,
//!   the engine has them          so that a read looks through few
//! ```

use std::sync::Arc;

use super::{Layer, Mark};

/// What one change takes in memory beside its key and value, about.
const CHANGE_OVERHEAD: usize = 96;

/// What a step takes beside its changes, about.
const STEP_OVERHEAD: usize = 512;

/// So many steps of about one size become one.
const FAN_IN: usize = 8;

/// Steps are not joined to more changes than these: whoever joins them is on the way of writes.
const JOINED_CHANGES_MAX: usize = 8192;

/// Most changes of several steps that the engine gets at once; one step may be larger.
const STORED_CHANGES_MAX: usize = 65536;

/// Most bytes of several steps that the engine gets at once; one step may be larger.
const STORED_BYTES_MAX: usize = 16 << 20;

/// The changes from one mark to the next.
pub(super) struct Step {
    pub(super) layer: Layer,
    /// Of the state behind them.
    pub(super) mark: Mark,
    /// Grows from step to step.
    pub(super) number: u64,
    /// Of the oldest step that this one was made of.
    pub(super) first: u64,
    /// Memory, about; never 0.
    pub(super) bytes: usize,
}

impl Step {
    /// Its numbers are given to it where it comes to the others.
    pub(super) fn new(layer: Layer, mark: Mark) -> Self {
        Self::numbered(layer, mark, 0, 0)
    }

    fn numbered(mut layer: Layer, mark: Mark, first: u64, number: u64) -> Self {
        layer.seal();
        Step {
            bytes: STEP_OVERHEAD + layer.bytes() + layer.len() * CHANGE_OVERHEAD,
            layer,
            mark,
            number,
            first,
        }
    }

    /// Whether an engine that stands at `mark` has these changes.
    pub(super) fn is_in(&self, mark: &Mark) -> bool {
        // The first mark there is has the index of no mark at all.
        mark.index > self.mark.index || *mark == self.mark
    }
}

impl AsRef<Layer> for Arc<Step> {
    fn as_ref(&self) -> &Layer {
        &self.layer
    }
}

/// Steps from the oldest to the newest, shared with readers.
pub(super) type Steps = Arc<Vec<Arc<Step>>>;

/// How much waits for the engine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    /// Memory, about.
    pub bytes: usize,
    /// Changes of single keys and ranges.
    pub changes: usize,
    /// What a read looks through.
    pub layers: usize,
}

/// All steps that wait.
#[derive(Default)]
pub(super) struct Waiting {
    steps: Steps,
    /// So many of the oldest are being stored, and stay as they are.
    taken: usize,
    bytes: usize,
    changes: usize,
    /// Of the newest step there ever was.
    number: u64,
}

/// Some steps that become one.
pub(super) struct Joining(Vec<Arc<Step>>);

impl Waiting {
    pub(super) fn steps(&self) -> &Steps {
        &self.steps
    }

    /// The number of the newest step, whether or not it still waits.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn amount(&self) -> Amount {
        Amount {
            bytes: self.bytes,
            changes: self.changes,
            layers: self.steps.len(),
        }
    }

    fn count(&mut self) {
        self.bytes = self.steps.iter().map(|step| step.bytes).sum();
        self.changes = self.steps.iter().map(|step| step.layer.len()).sum();
    }

    /// Adds the newest changes; returns how many bytes more wait.
    pub(super) fn push(&mut self, mut step: Step) -> usize {
        self.number += 1;
        (step.first, step.number) = (self.number, self.number);
        let bytes = step.bytes;
        Arc::make_mut(&mut self.steps).push(Arc::new(step));
        self.count();
        bytes
    }

    /// The newest steps that should become one, if there are any.
    pub(super) fn to_join(&self) -> Option<Joining> {
        let free = &self.steps[self.taken..];
        let size = |step: &Arc<Step>| step.layer.len().max(1).ilog(FAN_IN);
        let newest = size(free.last()?);
        let mut changes = 0;
        let joined = free.iter().rev().take_while(|step| {
            changes += step.layer.len();
            size(step) <= newest && changes <= JOINED_CHANGES_MAX
        });
        let joined = joined.count();
        (joined >= FAN_IN).then(|| Joining(free[free.len() - joined..].to_vec()))
    }

    /// Puts a joined step in the place of those that it was made of, unless they were taken.
    pub(super) fn joined(&mut self, joined: Step, of: &Joining) {
        let first = of.0[0].number;
        let place = self.steps.partition_point(|step| step.number < first);
        if place < self.taken
            || self
                .steps
                .get(place)
                .is_none_or(|step| step.number != first)
        {
            return;
        }
        let steps = Arc::make_mut(&mut self.steps);
        drop(steps.splice(place..place + of.0.len(), [Arc::new(joined)]));
        self.count();
    }

    /// Takes the oldest steps for the engine, as many as it should get at once: those that hold
    /// anything of steps up to `wanted`, and nothing beyond `known`. They wait until they are
    /// [`stored`](Self::stored).
    pub(super) fn take(&mut self, wanted: u64, known: u64) -> Vec<Arc<Step>> {
        let (mut changes, mut bytes) = (0, 0);
        let taken = self.steps.iter().enumerate().take_while(|(n, step)| {
            changes += step.layer.len();
            bytes += step.bytes;
            step.first <= wanted
                && step.number <= known
                && (*n == 0 || changes <= STORED_CHANGES_MAX && bytes <= STORED_BYTES_MAX)
        });
        let taken: Vec<Arc<Step>> = taken.map(|(_, step)| step.clone()).collect();
        self.taken = taken.len();
        taken
    }

    /// What was taken is in the engine.
    pub(super) fn stored(&mut self) -> Steps {
        let left = self.steps[self.taken..].to_vec();
        self.taken = 0;
        let before = std::mem::replace(&mut self.steps, Arc::new(left));
        self.count();
        before
    }

    /// Forgets all steps.
    pub(super) fn clear(&mut self) -> Steps {
        self.taken = 0;
        let before = std::mem::take(&mut self.steps);
        self.count();
        before
    }
}

impl Joining {
    /// Makes one step of them.
    pub(super) fn join(&self) -> Step {
        let newest = self.0.last().expect("there are some");
        let layer = Layer::joined(&self.0);
        Step::numbered(layer, newest.mark.clone(), self.0[0].first, newest.number)
    }
}
