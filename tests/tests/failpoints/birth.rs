//! A node ends at each step of its first start.

use kvd::resp::Reply;
use kvd_tests::{Node, alone, until};

use super::{Point, arm, ends_at};

/// Files are replaced as a whole for the node's identity, its addresses, the log's format, the end
/// of the founding, and to say that it is a member.
const FILES: usize = 5;

pub(super) const BEING_BORN: &[Point] = &[
    ("dir_made", 0),
    ("dir_locked", 0),
    ("dir_folder_made", 0),
    ("dir_folder_made", 1),
    ("dir_folder_made", 2),
    ("dir_folder_synced", 0),
    ("dir_folder_synced", 1),
    ("dir_folder_synced", 2),
    ("addresses_noted", 0),
    ("open_engine_after", 0),
    ("open_recovered", 0),
    ("open_log_after", 0),
    ("open_raft_after", 0),
    ("found_initialized", 0),
    ("found_leads", 0),
    ("found_noted", 0),
    ("log_append_begun", 0),
    ("log_append_after", 0),
    ("log_append_after", 1),
    ("log_vote_before", 0),
    ("log_vote_after", 0),
    ("apply_membership", 0),
    ("engine_write_after", 0),
    ("file_created", 0),
    ("file_written", 0),
    ("file_synced", 0),
    ("file_renamed", 0),
    ("file_replaced", 0),
];

#[test]
fn a_node_ends_at_each_step_of_its_birth() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut points = BEING_BORN.to_vec();
    for nth in 1..FILES {
        let names = BEING_BORN.iter().map(|(name, _)| *name);
        let files = names.filter(|name| name.starts_with("file_"));
        points.extend(files.map(|name| (name, nth)));
    }
    let born = |point: Point| {
        let (name, passed) = point;
        let mut node = Node::new(temp.path(), &format!("{name}-{passed}"), "redb");
        arm(&mut node, point);
        node.spawn();
        ends_at(&mut node, point, || {});
        node.start();
        let mut client = node.client();
        let mut reply = Reply::Null;
        until("a node that was born serves", || {
            reply = client.call(&["SET", "a", name]);
            reply.error_prefix() != Some("CLUSTERDOWN")
        });
        assert_eq!(reply, Reply::Ok, "{name}: {}", node.log());
        node.kill();
        node.start();
        assert_eq!(node.client().call(&["GET", "a"]), Reply::bulk(name));
    };
    // Nodes of their own, each a process that waits for its disk most of the time.
    let (one, other) = points.split_at(points.len() / 2);
    std::thread::scope(|scope| {
        for half in [one, other] {
            scope.spawn(|| half.iter().for_each(|point| born(*point)));
        }
    });
}
