//! What goes wrong.

use std::time::Duration;

use kvd_tests::proxy::Trouble;
use rand::Rng as _;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;

use super::cluster::Cluster;
use super::disks::Damage;

/// The names of all kinds of fault, as `KVD_CHAOS_FAULTS` has them.
pub(super) const FAULTS: &[&str] = &[
    // Processes.
    "kill",
    "kill-leader",
    "kill-all",
    "power",
    "power-all",
    "pause",
    "pause-leader",
    // Wires between named nodes.
    "isolate",
    "isolate-leader",
    "one-way",
    "bridge",
    "ring",
    "slow-wire",
    "lossy-wire",
    // Disks and clocks.
    "disk-error",
    "fsync-once",
    "disk-slow",
    "disk-full",
    "clock",
    // Logs.
    "torn-tail",
    "damage",
    "hole",
    "truncate",
    // Members.
    "handover",
    "replace",
];

/// What fails of a disk until it is mended, in the words of `preload/fail_io.c`.
const DISK_ERRORS: [&str; 6] = [
    "sync /log/",
    "write /log/",
    "read /log/",
    "sync /engine/",
    "write /engine/",
    "read /engine/",
];

const CLOCKS_OFF_MS: [i64; 5] = [0, 1_500, -1_500, 3_600_000, -3_600_000];

/// Kinds of fault in an order of chance, each as often as all others.
pub(super) struct Deck {
    kinds: Vec<&'static str>,
    left: Vec<&'static str>,
    /// Those that had their turn in this round when the cluster was in no state for them.
    later: Vec<&'static str>,
}

impl Deck {
    pub(super) fn new(kinds: &[&'static str], random: &mut StdRng) -> Self {
        let mut deck = Deck {
            kinds: kinds.to_vec(),
            left: Vec::new(),
            later: Vec::new(),
        };
        deck.shuffle(random);
        deck
    }

    fn shuffle(&mut self, random: &mut StdRng) {
        self.left.clone_from(&self.kinds);
        self.left.shuffle(random);
        self.later.clear();
    }

    /// The next one; none when all had their turn.
    pub(super) fn deal(&mut self) -> Option<&'static str> {
        if self.left.is_empty() {
            self.left = std::mem::take(&mut self.later);
        }
        self.left.pop()
    }

    /// It could not be injected, and shall have another turn in this round.
    pub(super) fn put_back(&mut self, kind: &'static str) {
        self.later.push(kind);
    }

    /// Begins a new round.
    pub(super) fn again(&mut self, random: &mut StdRng) -> &'static str {
        self.shuffle(random);
        self.left.pop().expect("there are kinds")
    }
}

impl Cluster<'_> {
    /// Something goes wrong; whether it could.
    pub(super) fn fault(&mut self, name: &str, random: &mut StdRng) -> bool {
        let count = self.nodes.len();
        let mut below = |end: usize| random.next_u64() as usize % end;
        let mut n = below(count);
        // Another one.
        let m = (n + 1 + below(count - 1)) % count;
        let what = below(1000);
        if name.ends_with("-leader") {
            let Some(leader) = self.leads() else {
                return false;
            };
            n = leader;
        }
        match name {
            "kill" | "kill-leader" => self.kill(n),
            "kill-all" => {
                for n in 0..count {
                    self.kill(n);
                }
                self.mend();
            }
            "power" => self.lose_power(n),
            "power-all" => {
                for n in 0..count {
                    self.kill(n);
                }
                for n in 0..count {
                    self.lose_power(n);
                }
                self.mend();
            }
            "pause" | "pause-leader" if self.awake(n) => self.pause(n),
            "isolate" | "isolate-leader" => {
                for other in 0..count {
                    self.part(n, other);
                }
            }
            "one-way" => self.wires.cut(self.id(n), self.id(m)),
            // Two halves, and one member that hears both.
            "bridge" => {
                for (a, b) in pairs(count) {
                    let half = |of: usize| (of + count - n) % count <= count / 2;
                    if a != n && b != n && half(a) != half(b) {
                        self.part(a, b);
                    }
                }
            }
            // Each hears its two neighbours: there are majorities, and no two are the same.
            "ring" if count >= 5 => {
                for (a, b) in pairs(count) {
                    if (b - a) != 1 && (b - a) != count - 1 {
                        self.part(a, b);
                    }
                }
            }
            "slow-wire" => {
                let delay = Duration::from_millis(20 + what as u64 % 300);
                self.trouble(n, Trouble::Slow(delay));
            }
            "lossy-wire" => self.trouble(n, Trouble::Lossy(5 + what as u32 % 40)),
            "disk-error" => self.arm(n, DISK_ERRORS[what % DISK_ERRORS.len()]),
            "fsync-once" => self.arm(n, ["sync-once /log/", "sync-once /engine/"][what % 2]),
            "disk-slow" => self.arm(n, &format!("slow-{} /", 50 + what / 2)),
            // Nothing is left, or so little that growth is refused.
            "disk-full" => return self.fill_disk(n, [0, 2 << 20, 12 << 20][what % 3]),
            "clock" => self.set_clock(n, CLOCKS_OFF_MS[what % CLOCKS_OFF_MS.len()]),
            "torn-tail" => return self.tear_log(n, random),
            "damage" => return self.damage(n, Damage::Flip, random),
            "hole" => return self.damage(n, Damage::Hole, random),
            "truncate" => return self.damage(n, Damage::Tail, random),
            // It may be in no state to hand anything over.
            "handover" if self.awake(n) => self.hand_over(n, m),
            "replace" => return self.begin_change(n),
            _ => return false,
        }
        true
    }

    /// Who says that it leads.
    fn leads(&self) -> Option<usize> {
        (0..self.nodes.len()).find(|n| {
            self.awake(*n) && self.nodes[*n].info("raft_role").as_deref() == Some("leader")
        })
    }

    /// Two do not hear each other.
    fn part(&self, a: usize, b: usize) {
        self.wires.cut(self.id(a), self.id(b));
        self.wires.cut(self.id(b), self.id(a));
    }

    /// All wires from and to a member have this.
    fn trouble(&self, n: usize, trouble: Trouble) {
        for other in 0..self.nodes.len() {
            self.wires.trouble(self.id(n), self.id(other), trouble);
            self.wires.trouble(self.id(other), self.id(n), trouble);
        }
    }
}

fn pairs(count: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..count).flat_map(move |a| (a + 1..count).map(move |b| (a, b)))
}
