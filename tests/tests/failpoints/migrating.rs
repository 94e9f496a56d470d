//! A copy to another engine ends at each of its steps.

use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;

use kvd::exit;
use kvd_tests::{Node, alone, built, kvd, refused};

use super::{Point, Writes};

/// Steps of `kvd backend migrate`.
pub(super) const MIGRATING: &[Point] = &[
    ("file_created", 0),
    ("file_replaced", 0),
    ("dir_folder_made", 1),
    ("migrate_begun", 0),
    ("migrate_log_copied", 0),
    ("engine_replace_before", 0),
    ("engine_replace_after", 0),
    ("migrate_filled", 0),
    ("migrate_checked", 0),
    ("file_renamed", 1),
    ("migrate_after", 0),
];

/// Behind these the copy is whole.
const DONE: [(&str, usize); 2] = [("file_renamed", 1), ("migrate_after", 0)];

/// Before these the new directory says nothing yet.
const NOTHING: [(&str, usize); 1] = [("file_created", 0)];

#[test]
fn a_copy_to_another_engine_ends_at_each_step_and_is_made_again() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut node = Node::new(temp.path(), "node0", "redb");
    node.start();
    let mut writes = Writes::default();
    writes.some(&node.addr());
    node.kill();
    // What a start would finish is finished once; from then on nothing may change any more.
    let verify = ["data", "verify", node.dir.to_str().unwrap()];
    let before = kvd(&verify);
    assert!(before.status.success(), "{before:?}");
    for (name, passed) in MIGRATING.iter().copied() {
        let to = temp.path().join(format!("{name}-{passed}"));
        let migrate = [
            "backend",
            "migrate",
            "--from",
            node.dir.to_str().unwrap(),
            "--to",
            to.to_str().unwrap(),
            "--backend",
            "sled",
        ];
        let ended = Command::new(built().join("kvd"))
            .args(migrate)
            .env("FAILPOINTS", format!("{name}={passed}*off->return"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.signal(), Some(9), "{name}: {said}");
        let at = format!("kvd: ends at the failpoint {name}");
        assert!(said.contains(&at), "{said}");
        let looked = ["data", "verify", to.to_str().unwrap()];
        if DONE.contains(&(name, passed)) {
            refused(&migrate, exit::IO, "not empty");
        } else {
            let start = ["--backend", "sled", to.to_str().unwrap()];
            if !NOTHING.contains(&(name, passed)) {
                let ports = [
                    format!("--addr={}", node.addr()),
                    format!("--raft-addr={}", node.raft_addr()),
                ];
                let start = [&start[..], &[&ports[0], &ports[1]]].concat();
                refused(&start, exit::CONFIG, "is half made");
                refused(&looked, exit::CONFIG, "is half made");
                let recover = ["recover", "--force-new-cluster", to.to_str().unwrap()];
                refused(&recover, exit::CONFIG, "is half made");
            }
            let again = kvd(&migrate);
            assert!(again.status.success(), "{name}: {again:?}");
        }
        assert_eq!(kvd(&verify).stdout, before.stdout, "{name}");
        let whole = kvd(&looked);
        assert!(whole.status.success(), "{name}: {whole:?}");
        let mut moved = Node::new(temp.path(), "node0", "sled");
        moved.change_to(to, "sled");
        moved.start();
        writes.look_for(&moved, name);
    }
}
