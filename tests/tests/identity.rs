//! Data directories that are not what the cluster knows: wiped, restored, exchanged.

use std::path::Path;

use kvd::resp::Reply;
use kvd_tests::{alone, cluster, leader, level_digests, until};

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn a_member_restored_from_an_old_copy_is_refused_however_often_it_starts() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut nodes = cluster(temp.path(), &["redb", "redb", "redb"]);
    assert_eq!(nodes[2].terminate(), Some(0));
    let copy = temp.path().join("copy");
    copy_folder(&nodes[2].dir, &copy);
    // It goes on, and may promise what the copy does not know of.
    nodes[2].start();
    assert_eq!(nodes[2].client().call(&["SET", "a", "1"]), Reply::Ok);
    level_digests(&nodes);
    nodes[2].kill();
    // What its peers saw of it must outlive them.
    for node in &mut nodes[..2] {
        node.kill();
        node.start();
    }
    leader(&nodes[..2]);
    std::fs::remove_dir_all(&nodes[2].dir).unwrap();
    copy_folder(&copy, &nodes[2].dir);
    for start in 1..=3 {
        nodes[2].start();
        until("the copy is told why it is refused", || {
            nodes[2].log().matches("this node serves no more").count() >= start
        });
        let mut client = nodes[2].client();
        assert_eq!(client.call(&["READONLY"]), Reply::Ok);
        assert!(client.call(&["GET", "a"]).is_error());
        assert_eq!(nodes[0].client().call(&["SET", "a", "2"]), Reply::Ok);
        nodes[2].kill();
    }
}

#[test]
fn a_member_with_the_directory_of_another_is_refused() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut nodes = cluster(temp.path(), &["redb", "redb", "redb"]);
    assert_eq!(nodes[0].client().call(&["SET", "a", "1"]), Reply::Ok);
    level_digests(&nodes);
    nodes[1].kill();
    nodes[2].kill();
    std::fs::remove_dir_all(&nodes[2].dir).unwrap();
    copy_folder(&nodes[1].dir, &nodes[2].dir);
    nodes[1].start();
    leader(&nodes[..2]);
    nodes[2].start();
    until("the double is told why it is refused", || {
        nodes[2].log().contains("this node serves no more")
    });
    assert!(nodes[2].log().contains("is in use twice"));
    assert!(nodes[2].client().call(&["GET", "a"]).is_error());
    assert_eq!(nodes[0].client().call(&["SET", "a", "2"]), Reply::Ok);
    assert_eq!(nodes[1].client().call(&["GET", "a"]), Reply::bulk("2"));
}

#[test]
fn a_wiped_member_serves_nothing_until_it_is_taken_in_again_under_its_old_name() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut nodes = cluster(temp.path(), &["redb", "redb", "redb"]);
    assert_eq!(nodes[0].client().call(&["SET", "a", "1"]), Reply::Ok);
    nodes[2].kill();
    std::fs::remove_dir_all(&nodes[2].dir).unwrap();
    nodes[2].start();
    until("the wiped node is out of service", || {
        nodes[2].log().contains("it serves nothing until")
    });
    for request in [&["GET", "a"][..], &["SET", "a", "2"][..]] {
        match nodes[2].client().call(request) {
            Reply::Error(text) => assert!(text.starts_with("NOCLUSTER"), "{text}"),
            other => panic!("{other:?}"),
        }
    }
    // Also after another start.
    nodes[2].kill();
    nodes[2].start();
    assert!(nodes[2].client().call(&["GET", "a"]).is_error());
    let address = nodes[2].raft_addr();
    assert_eq!(
        nodes[0].client().call(&["JOIN", "node2", &address]),
        Reply::Ok
    );
    assert_eq!(nodes[2].client().call(&["GET", "a"]), Reply::bulk("1"));
    assert_eq!(nodes[0].info("raft_members").as_deref(), Some("3"));
    let digests = level_digests(&nodes);
    assert!(
        digests.iter().all(|digest| *digest == digests[0]),
        "{digests:?}"
    );
    // It counts as a voter again: the cluster does without another one.
    nodes[1].kill();
    assert_eq!(nodes[2].client().call(&["SET", "a", "3"]), Reply::Ok);
}
