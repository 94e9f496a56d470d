//! What goes wrong.

use rand::Rng as _;
use rand::rngs::StdRng;

use std::time::Duration;

use kvd_tests::proxy::Trouble;

use super::cluster::Cluster;

/// The names of all kinds of fault, as `KVD_CHAOS_FAULTS` has them.
pub(super) const FAULTS: &[&str] = &[
    "kill",
    "kill-all",
    "power",
    "power-all",
    "pause",
    "isolate",
    "one-way",
    "bridge",
    "ring",
    "slow",
    "lossy",
    "handover",
    "disk-error",
    "disk-full",
    "clock",
    "replace",
    "damage",
];

/// What fails of a disk, in the words of `preload/fail_io.c`.
const DISK_ERRORS: [&str; 4] = [
    "sync /log/",
    "write /log/",
    "sync /engine/",
    "write /engine/",
];

const CLOCKS_OFF_MS: [i64; 5] = [0, 1_500, -1_500, 3_600_000, -3_600_000];

impl Cluster {
    /// Something goes wrong; whether it could.
    pub(super) fn fault(&mut self, name: &str, random: &mut StdRng) -> bool {
        let count = self.nodes.len();
        let mut below = |end: usize| random.next_u64() as usize % end;
        let (n, m) = (below(count), below(count));
        self.look_after();
        match name {
            "kill" => self.kill(n),
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
            "pause" if self.awake(n) => self.pause(n),
            "isolate" => {
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
            "slow" => {
                let delay = Duration::from_millis(20 + below(300) as u64);
                self.trouble(n, Trouble::Slow(delay));
            }
            "lossy" => self.trouble(n, Trouble::Lossy(5 + below(40) as u32)),
            // It may be in no state to hand anything over.
            "handover" if self.awake(n) => self.hand_over(n, m),
            "disk-error" => self.fail_disk(n, DISK_ERRORS[below(DISK_ERRORS.len())]),
            // Nothing is left, or so little that growth is refused.
            "disk-full" => return self.fill_disk(n, [0, 4 << 20, 24 << 20][below(3)]),
            "clock" => self.set_clock(n, CLOCKS_OFF_MS[below(CLOCKS_OFF_MS.len())]),
            "replace" => return self.replace(n),
            "damage" => return self.damage(n, random.next_u64()),
            _ => return false,
        }
        true
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
