//! The starts of a node, so that a data directory that was restored from an old copy, or runs
//! twice, is found out by its peers.
//!
//! Counting alone does not tell a copy from the original: both count on from the same number. So
//! each start has a random id as well, a node shows the ids of its last starts, and a peer lets
//! it in only if the start that the peer saw last is among them.

use serde::{Deserialize, Serialize};

use crate::doors::Random;
use crate::raft::codec::{Malformed, Reader};

/// Starts whose ids are kept. A peer that has missed more of them cannot tell any more.
const KEPT_MAX: usize = 256;

/// One start of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incarnation {
    /// Which start of its directory it is; the first is 1.
    pub number: u64,
    /// Random.
    #[serde(with = "crate::hex::u64")]
    pub id: u64,
}

/// The last starts of a node, the oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Incarnations(Vec<Incarnation>);

impl Incarnations {
    /// Adds a start.
    pub fn begin(&mut self, random: &Random) {
        let number = self.number() + 1;
        if self.0.len() == KEPT_MAX {
            self.0.remove(0);
        }
        self.0.push(Incarnation {
            number,
            id: random.next(),
        });
    }

    /// The present start; none before the first.
    pub fn latest(&self) -> Option<Incarnation> {
        self.0.last().copied()
    }

    /// How often the node has started.
    pub fn number(&self) -> u64 {
        self.latest().map_or(0, |latest| latest.number)
    }

    /// Whether a start that was seen is one of these.
    pub fn contains(&self, seen: Incarnation) -> bool {
        self.0.contains(&seen)
    }

    /// Appends `count u16 | number u64 of the first | id u64 ...`.
    pub fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&(self.0.len() as u16).to_le_bytes());
        let first = self.0.first().map_or(0, |first| first.number);
        out.extend_from_slice(&first.to_le_bytes());
        for start in &self.0 {
            out.extend_from_slice(&start.id.to_le_bytes());
        }
    }

    /// Reads the same.
    ///
    /// # Errors
    ///
    /// The bytes are no such list.
    pub fn read(r: &mut Reader) -> Result<Self, Malformed> {
        const WHAT: &str = "incarnations";
        let count = r.u16(WHAT)?;
        let first = r.u64(WHAT)?;
        if usize::from(count) > KEPT_MAX || first.checked_add(count.into()).is_none() {
            return Err(Malformed(WHAT));
        }
        let starts = (0..u64::from(count)).map(|n| {
            Ok(Incarnation {
                number: first + n,
                id: r.u64(WHAT)?,
            })
        });
        starts.collect::<Result<_, _>>().map(Incarnations)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(times: u64, random: &Random) -> Incarnations {
        let mut starts = Incarnations::default();
        for _ in 0..times {
            starts.begin(random);
        }
        starts
    }

    #[test]
    fn a_copy_does_not_know_the_starts_of_its_original() {
        let random = Random::from_seed(1);
        let mut original = started(3, &random);
        let mut copy = original.clone();
        original.begin(&random);
        let seen = original.latest().unwrap();
        for _ in 0..5 {
            copy.begin(&random);
            assert!(!copy.contains(seen));
            original.begin(&random);
            assert!(original.contains(seen));
        }
    }

    #[test]
    fn the_last_starts_are_kept_and_survive_the_wire() {
        let random = Random::from_seed(1);
        for times in [0, 1, 7, 1000] {
            let starts = started(times, &random);
            assert_eq!(starts.number(), times);
            assert_eq!(starts.0.len() as u64, times.min(KEPT_MAX as u64));
            let mut out = Vec::new();
            starts.put(&mut out);
            let mut r = Reader::new(out.clone().into());
            assert_eq!(Incarnations::read(&mut r), Ok(starts));
            r.finish("all").unwrap();
            for len in 0..out.len() {
                let mut r = Reader::new(out[..len].to_vec().into());
                assert!(Incarnations::read(&mut r).is_err());
            }
        }
    }
}
