//! What went wrong elsewhere, and must not here: `docs/hazards.md` has a row for each, and the
//! names of the tests that would fail.

mod openraft;
mod page;
mod redisraft;
mod wired;
