//! The format of a proposal: a list of groups, each a list of commands.
//!
//! ```text
//! entry   = format u8 | feature level u16 | time ms u64 | seed u64 | groups u32 | group*
//! group   = length u32 | flags u8 | origin u64 | sequence u64
//!         | preconditions u32 | (key length u32 | key | modified index u64)*
//!         | commands u32 | command*
//! command = arguments u32 | (length u32 | bytes)*
//! ```
//!
//! All integers are little-endian. A node that meets a format or feature level above its own stops
//! before it applies the entry.

use bytes::Bytes;

use super::codec::{Malformed, Reader};
use super::types::NodeId;

/// The format that this version writes, and the highest it reads.
pub const FORMAT: u8 = 1;

/// The feature level that this version supports.
pub const FEATURE_LEVEL: u16 = 1;

/// Bytes of an entry before its first group.
const HEADER_BYTES: usize = 1 + 2 + 8 + 8 + 4;

/// All commands of the group succeed, or none of them changes anything.
const FLAG_ALL: u8 = 1;

/// kvd's own bookkeeping rather than a client's commands.
const FLAG_INTERNAL: u8 = 2;

/// Which failures undo what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Each command has its own outcome: a pipeline, or the body of an `EXEC`.
    Each,
    /// The first failure undoes the whole group.
    All,
}

/// Builds the bytes of one group, command by command.
#[derive(Debug)]
pub struct GroupBuilder {
    preconditions: Vec<u8>,
    precondition_count: u32,
    commands: Vec<u8>,
    command_count: u32,
    flags: u8,
}

impl GroupBuilder {
    /// An empty group of a client's commands.
    pub fn new(rule: Rule) -> Self {
        let flags = match rule {
            Rule::Each => 0,
            Rule::All => FLAG_ALL,
        };
        GroupBuilder {
            preconditions: Vec::new(),
            precondition_count: 0,
            commands: Vec::new(),
            command_count: 0,
            flags,
        }
    }

    /// An empty group of kvd's own commands.
    pub fn internal() -> Self {
        GroupBuilder {
            flags: FLAG_ALL | FLAG_INTERNAL,
            ..Self::new(Rule::All)
        }
    }

    /// The group is carried out only while `key` was last changed by the entry at `modified`
    /// (0: while it is absent).
    pub fn require(&mut self, key: &[u8], modified: u64) {
        put_bytes(&mut self.preconditions, key);
        self.preconditions
            .extend_from_slice(&modified.to_le_bytes());
        self.precondition_count += 1;
    }

    /// Adds a command: its name and arguments.
    pub fn command<A: AsRef<[u8]>>(&mut self, args: &[A]) {
        self.commands
            .extend_from_slice(&(args.len() as u32).to_le_bytes());
        for arg in args {
            put_bytes(&mut self.commands, arg.as_ref());
        }
        self.command_count += 1;
    }

    /// How many commands were added.
    pub fn len(&self) -> usize {
        self.command_count as usize
    }

    /// Whether no command was added.
    pub fn is_empty(&self) -> bool {
        self.command_count == 0
    }

    /// How many bytes the commands take.
    pub fn bytes(&self) -> usize {
        self.commands.len()
    }

    /// The finished group, not yet marked with where it comes from.
    pub fn finish(self) -> Group {
        Group {
            flags: self.flags,
            origin: 0,
            sequence: 0,
            precondition_count: self.precondition_count,
            preconditions: self.preconditions.into(),
            command_count: self.command_count,
            commands: self.commands.into(),
        }
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    let len = u32::try_from(bytes.len()).expect("limits keep arguments below 4 GiB");
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(bytes);
}

/// One group: the commands of a pipeline or of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    flags: u8,
    /// The node that a client gave the group to; 0 for none.
    pub origin: NodeId,
    /// The origin's number for it, unique within one run of the origin.
    pub sequence: u64,
    precondition_count: u32,
    preconditions: Bytes,
    command_count: u32,
    commands: Bytes,
}

impl Group {
    /// Which failures undo what.
    pub fn rule(&self) -> Rule {
        if self.flags & FLAG_ALL != 0 {
            Rule::All
        } else {
            Rule::Each
        }
    }

    /// Whether these are kvd's own commands.
    pub fn is_internal(&self) -> bool {
        self.flags & FLAG_INTERNAL != 0
    }

    /// How many commands there are.
    pub fn len(&self) -> usize {
        self.command_count as usize
    }

    /// Whether there are no commands.
    pub fn is_empty(&self) -> bool {
        self.command_count == 0
    }

    /// How many bytes the group takes in an entry.
    pub fn bytes(&self) -> usize {
        4 + 1 + 8 + 8 + 4 + self.preconditions.len() + 4 + self.commands.len()
    }

    /// Writes the group as it stands in an entry.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.reserve(self.bytes());
        out.extend_from_slice(&((self.bytes() - 4) as u32).to_le_bytes());
        out.push(self.flags);
        out.extend_from_slice(&self.origin.to_le_bytes());
        out.extend_from_slice(&self.sequence.to_le_bytes());
        out.extend_from_slice(&self.precondition_count.to_le_bytes());
        out.extend_from_slice(&self.preconditions);
        out.extend_from_slice(&self.command_count.to_le_bytes());
        out.extend_from_slice(&self.commands);
    }

    /// Reads one group from the front of `r`; keys and arguments stay slices of its bytes.
    ///
    /// # Errors
    ///
    /// The bytes are not a group.
    pub fn decode(r: &mut Reader) -> Result<Self, Malformed> {
        let mut body = Reader::new(r.blob("group")?);
        let flags = body.u8("group")?;
        let (origin, sequence) = (body.u64("group")?, body.u64("group")?);
        let precondition_count = body.u32("group")?;
        let mut rest = Reader::new(body.rest());
        let all = rest.take(rest.remaining(), "group")?;
        let mut preconditions = Reader::new(all.clone());
        for _ in 0..precondition_count {
            preconditions.blob("precondition")?;
            preconditions.u64("precondition")?;
        }
        let at = all.len() - preconditions.remaining();
        let command_count = preconditions.u32("group")?;
        Ok(Group {
            flags,
            origin,
            sequence,
            precondition_count,
            preconditions: all.slice(..at),
            command_count,
            commands: preconditions.rest(),
        })
    }

    /// Calls `each` for every precondition: the key, and the index of its last change.
    ///
    /// # Errors
    ///
    /// The bytes are damaged.
    pub fn preconditions(&self, mut each: impl FnMut(&[u8], u64)) -> Result<(), Malformed> {
        let mut rest = &self.preconditions[..];
        for _ in 0..self.precondition_count {
            let key = split_bytes(&mut rest)?;
            let modified = split::<8>(&mut rest)?;
            each(key, u64::from_le_bytes(modified));
        }
        Ok(())
    }

    /// The commands, as lists of arguments that borrow from the group.
    pub fn commands(&self) -> Commands<'_> {
        Commands {
            left: self.command_count,
            rest: &self.commands,
        }
    }
}

/// Reads the commands of a group one after another.
pub struct Commands<'a> {
    left: u32,
    rest: &'a [u8],
}

impl<'a> Commands<'a> {
    /// Puts the arguments of the next command into `args`, or returns `false` at the end.
    ///
    /// # Errors
    ///
    /// The bytes are damaged.
    pub fn next_into(&mut self, args: &mut Vec<&'a [u8]>) -> Result<bool, Malformed> {
        args.clear();
        if self.left == 0 {
            return if self.rest.is_empty() {
                Ok(false)
            } else {
                Err(Malformed("command"))
            };
        }
        self.left -= 1;
        let count = u32::from_le_bytes(split::<4>(&mut self.rest)?);
        for _ in 0..count {
            args.push(split_bytes(&mut self.rest)?);
        }
        Ok(true)
    }
}

fn split<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], Malformed> {
    let (head, tail) = rest.split_first_chunk::<N>().ok_or(Malformed("command"))?;
    *rest = tail;
    Ok(*head)
}

fn split_bytes<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], Malformed> {
    let len = u32::from_le_bytes(split::<4>(rest)?) as usize;
    if rest.len() < len {
        return Err(Malformed("command"));
    }
    let (head, tail) = rest.split_at(len);
    *rest = tail;
    Ok(head)
}

/// What all commands of an entry share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// The feature level in force at the proposer.
    pub level: u16,
    /// The leader's time, in milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// The seed of whatever is random.
    pub seed: u64,
}

/// Encodes an entry.
pub fn encode(stamp: Stamp, groups: &[Group]) -> Bytes {
    let bytes = HEADER_BYTES + groups.iter().map(Group::bytes).sum::<usize>();
    let mut out = Vec::with_capacity(bytes);
    out.push(FORMAT);
    out.extend_from_slice(&stamp.level.to_le_bytes());
    out.extend_from_slice(&stamp.time_ms.to_le_bytes());
    out.extend_from_slice(&stamp.seed.to_le_bytes());
    out.extend_from_slice(&(groups.len() as u32).to_le_bytes());
    for group in groups {
        group.encode(&mut out);
    }
    debug_assert_eq!(out.len(), bytes);
    out.into()
}

/// Why an entry cannot be applied by this node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes are damaged.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// A newer version wrote it.
    #[error("entry format {0} is newer than this version of kvd reads ({FORMAT})")]
    Format(u8),
    /// The cluster has agreed on features that this version does not have.
    #[error("feature level {0} is above what this version of kvd supports ({FEATURE_LEVEL})")]
    Level(u16),
}

/// Decodes an entry; the groups stay slices of its bytes.
///
/// # Errors
///
/// See [`DecodeError`].
pub fn decode(bytes: Bytes) -> Result<(Stamp, Vec<Group>), DecodeError> {
    let mut r = Reader::new(bytes);
    let format = r.u8("entry")?;
    if format != FORMAT {
        return Err(DecodeError::Format(format));
    }
    let level = r.u16("entry")?;
    if level > FEATURE_LEVEL {
        return Err(DecodeError::Level(level));
    }
    let stamp = Stamp {
        level,
        time_ms: r.u64("entry")?,
        seed: r.u64("entry")?,
    };
    let count = r.u32("entry")?;
    let mut groups = Vec::with_capacity((count as usize).min(1024));
    for _ in 0..count {
        groups.push(Group::decode(&mut r)?);
    }
    r.finish("entry")?;
    Ok((stamp, groups))
}

/// Decodes `data` as an entry, with all commands and preconditions of its groups. For fuzzing.
#[doc(hidden)]
pub fn fuzz_entries(data: &[u8]) {
    let Ok((stamp, groups)) = decode(Bytes::copy_from_slice(data)) else {
        return;
    };
    for group in &groups {
        let (mut commands, mut args) = (group.commands(), Vec::new());
        while let Ok(true) = commands.next_into(&mut args) {}
        let _ = group.preconditions(|_, _| {});
    }
    assert_eq!(&encode(stamp, &groups)[..], data);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> (Stamp, Vec<Group>) {
        let mut pipeline = GroupBuilder::new(Rule::Each);
        pipeline.command(&["SET", "a", "1"]);
        pipeline.command(&["GET", "a"]);
        let mut exec = GroupBuilder::new(Rule::All);
        exec.require(b"watched", 17);
        exec.require(b"", 0);
        exec.command(&[&b"SET"[..], b"b", b""]);
        let mut exec = exec.finish();
        (exec.origin, exec.sequence) = (5, 6);
        let stamp = Stamp {
            level: 1,
            time_ms: 1_700_000_000_000,
            seed: 99,
        };
        (stamp, vec![pipeline.finish(), exec])
    }

    fn commands(group: &Group) -> Vec<Vec<Vec<u8>>> {
        let (mut all, mut args, mut commands) = (Vec::new(), Vec::new(), group.commands());
        while commands.next_into(&mut args).unwrap() {
            all.push(args.iter().map(|arg| arg.to_vec()).collect());
        }
        all
    }

    #[test]
    fn an_entry_survives_the_round_trip() {
        let (stamp, groups) = sample();
        let decoded = decode(encode(stamp, &groups)).unwrap();
        assert_eq!(decoded, (stamp, groups));
        let (_, groups) = decoded;
        assert_eq!(
            commands(&groups[0]),
            [
                vec![b"SET".to_vec(), b"a".to_vec(), b"1".to_vec()],
                vec![b"GET".to_vec(), b"a".to_vec()]
            ]
        );
        assert_eq!(
            (groups[0].rule(), groups[1].rule()),
            (Rule::Each, Rule::All)
        );
        let mut seen = Vec::new();
        groups[1]
            .preconditions(|key, modified| seen.push((key.to_vec(), modified)))
            .unwrap();
        assert_eq!(seen, [(b"watched".to_vec(), 17), (b"".to_vec(), 0)]);
    }

    #[test]
    fn every_truncation_of_an_entry_is_refused() {
        let (stamp, groups) = sample();
        let whole = encode(stamp, &groups);
        for len in 0..whole.len() {
            assert!(decode(whole.slice(..len)).is_err(), "{len}");
        }
    }

    #[test]
    fn a_newer_format_or_level_is_named() {
        let (stamp, groups) = sample();
        let mut bytes = encode(stamp, &groups).to_vec();
        bytes[0] = FORMAT + 1;
        assert_eq!(
            decode(bytes.clone().into()),
            Err(DecodeError::Format(FORMAT + 1))
        );
        bytes[0] = FORMAT;
        bytes[1] = FEATURE_LEVEL as u8 + 1;
        assert_eq!(
            decode(bytes.into()),
            Err(DecodeError::Level(FEATURE_LEVEL + 1))
        );
    }
}
