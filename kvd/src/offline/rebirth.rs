//! A new cluster from what is left of an old one: from a member's directory, or from a snapshot.

use std::path::Path;

use openraft::EntryPayload;

use super::{Error, State, engine_failed, fits, undamaged};
use crate::config;
use crate::data_dir::{Addresses, Birth, DataDir, Stage, new_ids};
use crate::doors::Random;
use crate::keyspace::{Limits, View};
use crate::node::{JOIN_INTENTS, OpenEngine};
use crate::raft::entry::{self, GroupBuilder, Stamp};
use crate::raft::executor::META_DELETE;
use crate::raft::log::{self, Contents, JournalState, RestartError};
use crate::raft::snapshot;
use crate::raft::{Entry, Member, NodeId, Proposal, Vote, log_id};

/// The only member of a new cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reborn {
    /// Its identity.
    pub node: NodeId,
    /// The cluster's.
    pub cluster: u128,
    /// Its name.
    pub name: String,
    /// The last entry of the old cluster that it holds.
    pub last: u64,
    /// How many of those were in the log and not yet in the state.
    pub applied: u64,
}

/// Makes the member in `path` the only member of a new cluster, with all that its log and state
/// hold: also entries of which it did not know that they were committed, since clients may have
/// been told that they were. What only members that are lost had is lost.
///
/// Cut off in the middle it is given again; the directory cannot be started until then.
///
/// # Errors
///
/// It never was a member, its log is damaged, or log and state do not fit together: nothing is
/// changed. Or a file could not be written.
pub fn force_new_cluster(
    path: &Path,
    open_engine: &OpenEngine,
    limits: Limits,
    random: &Random,
) -> Result<Reborn, Error> {
    let mut dir = DataDir::open_stopped(path)?;
    let identity = dir.identity().clone();
    if identity.stage != Stage::Founded {
        return Err(Error::Refused(format!(
            "{} is not a member's: its stage is {:?}",
            path.display(),
            identity.stage
        )));
    }
    // Where it was cut off the log may have gone already; its entries are in the state then.
    let log = match dir.log().exists() || !identity.rebuilding {
        true => Some(log::scan(&dir.log(), &mut |_| {})?),
        false => None,
    };
    log.as_ref().map_or(Ok(()), undamaged)?;
    let mut state = State::open(&dir, open_engine, limits)?;
    if let Some(log) = &log
        && !identity.rebuilding
    {
        match fits(&dir, log, &state) {
            // The state is what counts: what a log has lost is only missed where it is not in it.
            Err(Error::Restart(
                RestartError::StateAhead { .. }
                | RestartError::CommittedLost { .. }
                | RestartError::Vote { .. },
            )) => {}
            fits => fits?,
        }
    }
    dir.update(|identity| identity.rebuilding = true)?;
    let applied = match &log {
        Some(log) => state.catch_up(log, u64::MAX)?,
        None => 0,
    };
    let known = state.position().membership.nodes();
    let member = known
        .filter(|(id, _)| **id == identity.node)
        .map(|(_, member)| member.clone())
        .next();
    let member = member.unwrap_or_else(|| nowhere(&identity.name));
    found(dir, state, member, applied, random)
}

/// Makes a directory, which must be absent or empty, for the only member of a new cluster with the
/// contents of a snapshot file.
///
/// # Errors
///
/// The file is no snapshot or damaged, or the directory holds something: nothing is changed. Or a
/// file could not be written; what was made until then can be removed.
pub fn restore_snapshot(
    file: &Path,
    path: &Path,
    birth: &Birth,
    open_engine: &OpenEngine,
    limits: Limits,
    random: &Random,
) -> Result<Reborn, Error> {
    snapshot::verify(file)?;
    let dir = DataDir::create(path, birth, random)?;
    let mut state = State::open(&dir, open_engine, limits)?;
    snapshot::install(file, &state.store)?;
    state.executor.reload().map_err(std::io::Error::other)?;
    found(dir, state, nowhere(&birth.name), 0, random)
}

/// A member whose addresses are not known; its first start tells them.
fn nowhere(name: &str) -> Member {
    Member {
        name: name.to_owned(),
        raft_addr: config::RAFT_ADDR.to_owned(),
        client_addr: config::ADDR.to_owned(),
    }
}

/// Ends the state with entries that make `member` the only one, and gives it a log that begins
/// behind them.
fn found(
    mut dir: DataDir,
    mut state: State,
    member: Member,
    applied: u64,
    random: &Random,
) -> Result<Reborn, Error> {
    let (node, cluster) = new_ids(random);
    let last = state.position().index();
    // The term of the first entry of all is 0, and no vote was given then.
    let term = state.position().log_id.map_or(0, |id| id.leader_id.term) + 1;
    let forget = forget_joins(&state)?;
    let members = std::collections::BTreeMap::from([(node, member.clone())]);
    let membership = openraft::Membership::new(vec![[node].into()], members)
        .map_err(|error| Error::Refused(error.to_string()))?;
    let entries = [
        Entry {
            log_id: log_id(term, last + 1),
            payload: EntryPayload::Normal(Proposal::new(forget)),
        },
        Entry {
            log_id: log_id(term, last + 2),
            payload: EntryPayload::Membership(membership),
        },
    ];
    state.carry_out(&entries)?;
    state.make_durable()?;
    state.close()?;
    let end = log_id(term, last + 2);
    let identity = log::Identity {
        cluster,
        group: 0,
        node,
    };
    let contents = Contents {
        state: JournalState {
            vote: Some(Vote::new(term, node)),
            last: Some(end),
            committed: None,
            purged: Some(end),
        },
        entries: &mut std::iter::empty(),
    };
    log::rebuild(&dir.log(), identity, contents)?;
    dir.found(
        node,
        cluster,
        Addresses {
            raft: member.raft_addr,
            client: member.client_addr,
        },
    )?;
    Ok(Reborn {
        node,
        cluster,
        name: dir.identity().name.clone(),
        last,
        applied,
    })
}

/// The entry that drops what the old cluster meant to do about its members.
fn forget_joins(state: &State) -> Result<bytes::Bytes, Error> {
    let position = state.position();
    let read = state.store.read()?;
    let intents = View::new(&read, position.time_ms, position.time_ms)
        .and_then(|view| view.systems(JOIN_INTENTS))
        .map_err(engine_failed)?;
    let mut group = GroupBuilder::internal();
    for (name, _) in &intents {
        group.command(&[META_DELETE, name.as_bytes()]);
    }
    let stamp = Stamp {
        level: position.level,
        time_ms: position.time_ms,
        seed: 0,
    };
    Ok(entry::encode(stamp, &[group.finish()]))
}
