//! Which keys a set surely does not hold, told by one word of memory.

/// Of so many keys the set itself is as quick to ask.
const KEYS_MIN: usize = 8;

/// Bits of the filter for each key; with three of them set, 1 to 2 of 100 absent keys are taken
/// for present.
const BITS_PER_KEY: usize = 16;

/// A Bloom filter whose bits for one key are all in one word.
#[derive(Debug, Clone)]
pub(super) struct Filter {
    words: Box<[u64]>,
}

impl Filter {
    /// Of all these keys; none where a filter gains nothing.
    pub(super) fn new<'k>(keys: impl ExactSizeIterator<Item = &'k [u8]>) -> Option<Self> {
        if keys.len() < KEYS_MIN {
            return None;
        }
        let words = (keys.len() * BITS_PER_KEY).div_ceil(64).next_power_of_two();
        let mut words = vec![0; words].into_boxed_slice();
        for key in keys {
            let hash = hash(key);
            words[place(hash, words.len())] |= bits(hash);
        }
        Some(Filter { words })
    }

    /// Whether the set may hold a key of this hash; `false` is certain.
    pub(super) fn may_hold(&self, hash: u64) -> bool {
        let bits = bits(hash);
        self.words[place(hash, self.words.len())] & bits == bits
    }
}

fn place(hash: u64, words: usize) -> usize {
    (hash >> 32) as usize & (words - 1)
}

fn bits(hash: u64) -> u64 {
    1 << (hash & 63) | 1 << (hash >> 6 & 63) | 1 << (hash >> 12 & 63)
}

/// A hash for filters. Whoever finds keys of the same hash gains that a filter is asked in vain.
pub(super) fn hash(key: &[u8]) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut hash = ODD ^ key.len() as u64;
    let mut mix = |word: u64| {
        let wide = u128::from(hash ^ word) * u128::from(ODD);
        hash = (wide >> 64) as u64 ^ wide as u64;
    };
    let (words, rest) = key.as_chunks::<8>();
    for word in words {
        mix(u64::from_le_bytes(*word));
    }
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    mix(u64::from_le_bytes(last));
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(from: u32, to: u32) -> Vec<Vec<u8>> {
        let keys = (from..to).map(|n| format!("some prefix:{n:012}").into_bytes());
        keys.collect()
    }

    #[test]
    fn what_a_set_holds_is_never_denied_and_of_the_rest_nearly_all() {
        for count in [8, 100, 5000] {
            let held = keys(0, count);
            let filter = Filter::new(held.iter().map(Vec::as_slice)).unwrap();
            assert!(held.iter().all(|key| filter.may_hold(hash(key))));
            let others = keys(1_000_000, 1_010_000);
            let mistaken = others.iter().filter(|key| filter.may_hold(hash(key)));
            let mistaken = mistaken.count();
            assert!(mistaken < 500, "{mistaken} of 10000 with {count} keys");
        }
    }
}
