//! Losses of power under engines, as `kvd plugin check` and the engines' own tests try them
//! (`kvd_plugin_api::testkit::power`): the trial itself can fail.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use kvd_plugin_api::testkit::history::Random;
use kvd_plugin_api::testkit::power::{Disk, Shim};
use kvd_tests::{alone, built, kvd, until};
use serde_json::Value;

/// Runs the process of `kvd plugin check --crash` until it has promised something more, and kills
/// it. Returns its last promise.
fn write_and_kill(
    root: &Path,
    library: &str,
    disk: &Disk,
    shim: &Shim,
    random: &mut Random,
) -> u64 {
    let promises = root.join("promises");
    drop(fs::remove_file(&promises));
    let mut child = Command::new(built().join("kvd"))
        .args(["plugin", "trial", library, "crash-write"])
        .arg(root)
        .envs(disk.lying_environment(shim))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let wanted = 1 + random.below(4) as usize;
    let told = || fs::read_to_string(&promises).unwrap_or_default();
    until("marks are promised", || {
        assert_eq!(child.try_wait().unwrap(), None, "the process has ended");
        told().lines().count() > wanted
    });
    child.kill().unwrap();
    child.wait().unwrap();
    told().rsplit('\n').nth(1).unwrap().parse().unwrap()
}

/// Whether the engine has kept its promise.
fn keeps(root: &Path, library: &str, promised: u64) -> bool {
    let promised = promised.to_string();
    let args = ["plugin", "trial", library, "crash-verify"];
    let more = [root.to_str().unwrap(), "--promised", &promised];
    kvd(&[&args[..], &more[..]].concat());
    let outcome = fs::read_to_string(root.join("outcome")).unwrap();
    let outcome: Value = serde_json::from_str(&outcome).unwrap();
    outcome["index"].is_u64()
}

#[test]
fn a_disk_that_lies_about_syncs_loses_what_engines_promised() {
    let _alone = alone();
    let shim = Shim::build().unwrap();
    for engine in ["redb", "sled", "fjall"] {
        let temp = tempfile::tempdir().unwrap();
        let library = built().join(format!("libkvd_{engine}.so"));
        let library = library.to_str().unwrap();
        let is_found = (0..10).any(|round| {
            let root = temp.path().join(round.to_string());
            fs::create_dir(&root).unwrap();
            let mut disk = Disk::new(&root, round).unwrap();
            let promised = write_and_kill(&root, library, &disk, &shim, &mut Random::new(round));
            disk.lose_power().unwrap();
            !keeps(&root, library, promised)
        });
        assert!(
            is_found,
            "{engine} has everything, though nothing was synced"
        );
    }
}
