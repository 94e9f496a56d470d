//! `kvd backend`: another engine for a stopped node.

use kvd::config::{BackendCommand, MigrateFlags};
use kvd::offline::{self, Place};

use super::{engine, engine_of, failed};
use crate::Failed;
use crate::output::say;

/// `kvd backend`.
pub(crate) fn backend(command: BackendCommand) -> Result<(), Failed> {
    match command {
        BackendCommand::Migrate(flags) => migrate(&flags),
    }
}

fn migrate(flags: &MigrateFlags) -> Result<(), Failed> {
    // Before anything is made or opened: what is wrong with the new engine.
    let new = engine(&flags.new_engine(), None)?;
    let old = engine_of(&flags.old_engine(), &flags.from)?;
    let from = Place {
        path: &flags.from,
        backend: &old.name,
        open_engine: &old.open,
    };
    let to = Place {
        path: &flags.to,
        backend: &new.name,
        open_engine: &new.open,
    };
    let migrated = offline::migrate(&from, &to, new.limits).map_err(failed)?;
    say!(
        "{} is in {} on {}, was {}: log up to entry {}, contents up to entry {}",
        migrated.name,
        flags.to.display(),
        new.name,
        old.name,
        migrated.last,
        migrated.applied
    );
    say!("keys        {}", migrated.keys);
    say!("digest      {}", migrated.digest);
    say!(
        "start it: kvd --backend {} {}; never {} as well, which is the same node",
        flags.backend,
        flags.to.display(),
        flags.from.display()
    );
    Ok(())
}
