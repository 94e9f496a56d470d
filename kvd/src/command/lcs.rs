//! LCS: the longest common subsequence of two strings, by the usual table of prefix lengths.

use crate::command::args::{error, integer, is_word, syntax_error};
use crate::command::{Call, Failure};
use crate::keyspace::View;
use crate::resp::Reply;

/// Most bytes that the table of one call may take: it grows with the product of both lengths.
const TABLE_BYTES_MAX: usize = 128 << 20;

#[derive(Default)]
struct Options {
    length_only: bool,
    ranges: bool,
    with_lengths: bool,
    shortest: usize,
}

fn options(args: &[&[u8]]) -> Result<Options, Reply> {
    let mut options = Options::default();
    let mut rest = args;
    while let [option, after @ ..] = rest {
        rest = after;
        if is_word(option, "LEN") {
            options.length_only = true;
        } else if is_word(option, "IDX") {
            options.ranges = true;
        } else if is_word(option, "WITHMATCHLEN") {
            options.with_lengths = true;
        } else if is_word(option, "MINMATCHLEN")
            && let [length, after @ ..] = after
        {
            options.shortest = usize::try_from(integer(length)?).unwrap_or(0);
            rest = after;
        } else {
            return Err(syntax_error());
        }
    }
    if options.length_only && options.ranges {
        return error("ERR If you want both the length and indexes, please just use IDX.");
    }
    Ok(options)
}

pub(super) fn check(args: &[&[u8]]) -> Result<(), Reply> {
    options(&args[3..]).map(|_| ())
}

pub(super) fn lcs(call: &Call<'_>, view: &View<'_>) -> Result<Reply, Failure> {
    let options = options(&call.args[3..])?;
    let a = view.get_string(call.args[1])?.unwrap_or_default();
    let b = view.get_string(call.args[2])?.unwrap_or_default();
    let Some(table) = Table::new(&a, &b) else {
        return Err(Reply::error(
            "ERR Insufficient memory, transient memory for LCS exceeds proto-max-bulk-len",
        )
        .into());
    };
    let length = table.length(a.len(), b.len()) as usize;
    if options.length_only {
        return Ok(Reply::Int(length as i64));
    }
    let pairs = table.pairs(&a, &b);
    if !options.ranges {
        let common: Vec<u8> = pairs.iter().rev().map(|(i, _)| a[*i]).collect();
        return Ok(Reply::Bulk(common.into()));
    }
    let matches = ranges(&pairs)
        .into_iter()
        .filter(|range| range.len >= options.shortest)
        .map(|range| {
            let bounds = |start: usize| {
                let end = start + range.len - 1;
                Reply::Array(vec![Reply::Int(start as i64), Reply::Int(end as i64)])
            };
            let mut fields = vec![bounds(range.a), bounds(range.b)];
            if options.with_lengths {
                fields.push(Reply::Int(range.len as i64));
            }
            Reply::Array(fields)
        });
    Ok(Reply::Map(vec![
        (Reply::bulk("matches"), Reply::Array(matches.collect())),
        (Reply::bulk("len"), Reply::Int(length as i64)),
    ]))
}

/// The lengths for all pairs of prefixes, row by row.
struct Table {
    lengths: Vec<u32>,
    columns: usize,
}

impl Table {
    /// `None` when it would take too much memory.
    fn new(a: &[u8], b: &[u8]) -> Option<Self> {
        let columns = b.len() + 1;
        let cells = (a.len() + 1).checked_mul(columns)?;
        if cells > TABLE_BYTES_MAX / size_of::<u32>() {
            return None;
        }
        let mut table = Table {
            lengths: vec![0; cells],
            columns,
        };
        for (i, x) in a.iter().enumerate() {
            for (j, y) in b.iter().enumerate() {
                let length = if x == y {
                    table.length(i, j) + 1
                } else {
                    table.length(i, j + 1).max(table.length(i + 1, j))
                };
                table.lengths[(i + 1) * columns + j + 1] = length;
            }
        }
        Some(table)
    }

    fn length(&self, i: usize, j: usize) -> u32 {
        self.lengths[i * self.columns + j]
    }

    /// The positions that are matched with each other, from the last to the first. Of several
    /// subsequences of the same length it is the one that Redis finds.
    fn pairs(&self, a: &[u8], b: &[u8]) -> Vec<(usize, usize)> {
        let (mut i, mut j, mut pairs) = (a.len(), b.len(), Vec::new());
        while i > 0 && j > 0 {
            if a[i - 1] == b[j - 1] {
                (i, j) = (i - 1, j - 1);
                pairs.push((i, j));
            } else if self.length(i - 1, j) > self.length(i, j - 1) {
                i -= 1;
            } else {
                j -= 1;
            }
        }
        pairs
    }
}

struct Range {
    a: usize,
    b: usize,
    len: usize,
}

/// Joins neighbours; from the last to the first.
fn ranges(pairs: &[(usize, usize)]) -> Vec<Range> {
    let mut ranges: Vec<Range> = Vec::new();
    for &(a, b) in pairs {
        match ranges.last_mut() {
            Some(last) if last.a == a + 1 && last.b == b + 1 => {
                (last.a, last.b) = (a, b);
                last.len += 1;
            }
            _ => ranges.push(Range { a, b, len: 1 }),
        }
    }
    ranges
}
