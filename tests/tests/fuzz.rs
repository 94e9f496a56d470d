//! The fuzz targets over mutations of their seeds: without coverage, but with any toolchain.
//! `KVD_FUZZ_ROUNDS` and `KVD_SEED` make longer and other runs; see `fuzz/README.md`.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

const TARGETS: &[(&str, fn(&[u8]))] = &[
    ("log_entries", kvd::raft::entry::fuzz_entries),
    ("log_files", kvd::raft::log::fuzz_log),
    ("peer_frames", kvd::raft::transport::fuzz_frames),
    ("peer_handshake", kvd::raft::transport::fuzz_handshake),
    ("peer_requests", kvd::node::fuzz_requests),
    ("resp_replies", kvd::resp::fuzz_replies),
    ("resp_requests", kvd::resp::fuzz_requests),
    ("snapshots", kvd::keyspace::stream::fuzz_stream),
];

/// An input is not grown beyond this.
const BYTES_MAX: usize = 1 << 16;

fn number(name: &str, unless_told: u64) -> u64 {
    let told = std::env::var(name).ok();
    told.map_or(unless_told, |told| told.parse().expect("a number"))
}

/// Numbers at which something changes.
const EDGES: [u64; 8] = [0, 1, 0x7f, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, u64::MAX];

fn mutate(input: &mut Vec<u8>, other: &[u8], random: &mut StdRng) {
    let below = |random: &mut StdRng, end: usize| random.next_u64() as usize % end.max(1);
    let at = below(random, input.len());
    match random.next_u32() % 7 {
        0 if !input.is_empty() => input[at] ^= 1 << (random.next_u32() % 8),
        1 if !input.is_empty() => input[at] = random.next_u32() as u8,
        2 => input.truncate(at),
        3 => input.insert(at, random.next_u32() as u8),
        4 if !input.is_empty() => {
            let end = (at + 1 + below(random, 16)).min(input.len());
            input.drain(at..end);
        }
        // A number of some width and either order.
        5 => {
            let edge = EDGES[below(random, EDGES.len())];
            let width = 1 << (random.next_u32() % 4);
            let bytes = match random.next_u32() % 2 {
                0 => edge.to_le_bytes()[..width].to_vec(),
                _ => edge.to_be_bytes()[8 - width..].to_vec(),
            };
            let end = (at + width).min(input.len());
            input.splice(at..end, bytes);
        }
        // A piece of another seed.
        _ => {
            let from = below(random, other.len());
            let to = (from + 1 + below(random, 32)).min(other.len());
            input.splice(at..at, other[from..to].iter().copied());
        }
    }
    input.truncate(BYTES_MAX);
}

#[test]
fn no_input_makes_a_reader_of_foreign_bytes_panic() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    let (rounds, seed) = (number("KVD_FUZZ_ROUNDS", 5000), number("KVD_SEED", 1));
    for (name, target) in TARGETS {
        let seeds: Vec<Vec<u8>> = fs::read_dir(corpora.join(name))
            .unwrap_or_else(|error| panic!("{name} has no seeds: {error}"))
            .map(|file| fs::read(file.unwrap().path()).unwrap())
            .collect();
        assert!(!seeds.is_empty(), "{name} has no seeds");
        let mut random = StdRng::seed_from_u64(seed);
        for seed in &seeds {
            target(seed);
        }
        for _ in 0..rounds {
            let mut pick = || &seeds[random.next_u64() as usize % seeds.len()];
            let (mut input, other) = (pick().clone(), pick());
            for _ in 0..=random.next_u32() % 4 {
                mutate(&mut input, other, &mut random);
            }
            if catch_unwind(AssertUnwindSafe(|| target(&input))).is_err() {
                let file = std::env::temp_dir().join(format!("kvd-fuzz-{name}"));
                fs::write(&file, &input).unwrap();
                panic!("{name} fails; the input is in {}", file.display());
            }
        }
    }
}

#[test]
fn every_fuzz_target_is_run_here_too() {
    let targets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/fuzz_targets");
    let mut found: Vec<String> = fs::read_dir(targets)
        .unwrap()
        .map(|file| file.unwrap().path())
        .map(|file| file.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    found.sort();
    let names: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    assert_eq!(found, names);
}
