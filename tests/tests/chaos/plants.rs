//! The run can fail: rules are broken on purpose, and each must be found.

use std::sync::Mutex;
use std::time::Duration;

use kvd_tests::{Node, alone, until};

use super::clients::{Plant, Shared};
use super::cluster::Cluster;
use super::report::Report;
use super::{read_all, work};

/// Three members on engines that forget, so that the logs alone bring the data back.
const ENGINES: [&str; 3] = ["memory", "memory", "memory"];

fn addrs(cluster: &Cluster<'_>) -> Vec<String> {
    cluster.nodes.iter().map(Node::addr).collect()
}

#[test]
fn local_reads_taken_for_linearizable_ones_are_found() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let report = Mutex::new(Report::new());
    let cluster = Cluster::start(temp.path(), &ENGINES, &report);
    let shared = Shared::new(addrs(&cluster), &report).with(Plant::LocalReads);
    work(&shared, 1, || {
        until("a read is stale", || {
            // A follower that hears nobody.
            for other in [0, 1] {
                cluster.wires.cut(cluster.id(other), cluster.id(2));
            }
            std::thread::park_timeout(Duration::from_secs(1));
            cluster.wires.heal();
            shared.record.lock().unwrap().check().is_err()
        });
    });
    let error = shared.record.lock().unwrap().check().unwrap_err();
    assert!(error.contains("no order explains"), "{error}");
}

#[test]
fn writes_that_are_sent_again_without_a_token_are_found() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let report = Mutex::new(Report::new());
    let mut cluster = Cluster::start(temp.path(), &ENGINES, &report);
    let shared = Shared::new(addrs(&cluster), &report).with(Plant::SentAgain);
    until("a write is carried out twice", || {
        let workers = work(&shared, 1, || {
            for n in 0..3 {
                std::thread::park_timeout(Duration::from_millis(300));
                cluster.kill(n);
                cluster.mend();
            }
            cluster.settle();
        });
        workers
            .into_iter()
            .any(|mut worker| worker.settle(&mut cluster.nodes[0].client()).is_err())
    });
}

#[test]
fn disks_that_lie_about_syncs_are_found_when_all_power_goes() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let report = Mutex::new(Report::new());
    let mut cluster = Cluster::start(temp.path(), &ENGINES, &report);
    let shared = Shared::new(addrs(&cluster), &report);
    // From now on nothing is synced that is said to be.
    for n in 0..3 {
        cluster.lose_power(n);
        cluster.nodes[n].set_env("KVD_POWER_LIE", Some("1"));
        cluster.mend();
    }
    work(&shared, 1, || {
        std::thread::park_timeout(Duration::from_secs(2));
        for n in 0..3 {
            cluster.kill(n);
        }
        for n in 0..3 {
            cluster.lose_power(n);
            cluster.nodes[n].set_env("KVD_POWER_LIE", None);
        }
        cluster.settle();
    });
    let mut record = shared.record.lock().unwrap();
    read_all(&cluster, &mut record);
    let error = record.check().unwrap_err();
    assert!(error.contains("no order explains"), "{error}");
}
