//! Three members: birth, JOIN, reads and writes everywhere, the loss of members.

use kvd::resp::Reply;
use kvd_tests::{Node, alone, cluster, join, leader, level_digests, until};

#[test]
fn three_members_serve_reads_and_writes_on_every_node() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let nodes = cluster(temp.path(), &["redb", "redb", "redb"]);
    for (n, node) in nodes.iter().enumerate() {
        let key = format!("key{n}");
        assert_eq!(node.client().call(&["SET", &key, "value"]), Reply::Ok);
        // Linearizable by default: no node may miss an acknowledged write.
        for other in &nodes {
            assert_eq!(other.client().call(&["GET", &key]), Reply::bulk("value"));
        }
    }
    let digests = level_digests(&nodes);
    assert!(
        digests.iter().all(|digest| *digest == digests[0]),
        "{digests:?}"
    );
}

#[test]
fn joining_again_is_no_error_and_a_node_with_data_is_refused() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let nodes = cluster(temp.path(), &["redb", "redb"]);
    let again = nodes[1].raft_addr();
    assert_eq!(
        nodes[1].client().call(&["JOIN", "node1", &again]),
        Reply::Ok
    );
    let mut full = Node::new(temp.path(), "full", "redb");
    full.start();
    assert_eq!(full.client().call(&["SET", "own", "data"]), Reply::Ok);
    match nodes[0].client().call(&["JOIN", "full", &full.raft_addr()]) {
        Reply::Error(text) => assert!(text.contains("holds data of its own"), "{text}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(full.client().call(&["GET", "own"]), Reply::bulk("data"));
    assert_eq!(nodes[0].client().call(&["SET", "still", "here"]), Reply::Ok);
}

#[test]
fn the_loss_of_the_leader_loses_nothing() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut nodes = cluster(temp.path(), &["redb", "redb", "redb"]);
    let mut client = nodes[0].client();
    for n in 0..100 {
        let key = format!("key{n}");
        assert_eq!(client.call(&["SET", &key, "value"]), Reply::Ok);
    }
    let first = leader(&nodes);
    nodes[first].kill();
    let second = leader(&nodes);
    assert_ne!(first, second);
    let survivor = nodes.iter().position(|node| node.pid().is_some()).unwrap();
    let mut client = nodes[survivor].client();
    assert_eq!(client.call(&["SET", "after", "the loss"]), Reply::Ok);
    for n in 0..100 {
        assert_eq!(
            client.call(&["GET", &format!("key{n}")]),
            Reply::bulk("value")
        );
    }
    nodes[first].start();
    let digests = level_digests(&nodes);
    assert!(
        digests.iter().all(|digest| *digest == digests[0]),
        "{digests:?}"
    );
}

#[test]
fn wait_tells_how_many_other_members_hold_the_write() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut nodes = cluster(temp.path(), &["redb", "sled", "memory"]);
    let first = leader(&nodes);
    // On the leader, and on a follower that asks it.
    for node in [first, (first + 1) % 3] {
        let mut client = nodes[node].client();
        assert_eq!(client.call(&["SET", "a", "1"]), Reply::Ok);
        assert_eq!(client.call(&["WAIT", "2", "20000"]), Reply::Int(2));
    }
    nodes[(first + 2) % 3].kill();
    for node in [first, (first + 1) % 3] {
        let mut client = nodes[node].client();
        assert_eq!(client.call(&["SET", "a", "2"]), Reply::Ok);
        assert_eq!(client.call(&["WAIT", "1", "0"]), Reply::Int(1));
        assert_eq!(client.call(&["WAIT", "2", "100"]), Reply::Int(1));
    }
}

#[test]
fn leadership_moves_by_command_and_reads_and_writes_go_on() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let nodes = cluster(temp.path(), &["redb", "redb", "redb"]);
    let mut client = nodes[0].client();
    let leads = |n: usize| nodes[n].info("raft_role").as_deref() == Some("leader");
    for (n, node) in nodes.iter().enumerate() {
        // Any node passes it on.
        let asked = &nodes[(n + 1) % 3];
        let name = format!("node{n}");
        assert_eq!(
            asked.client().call(&["RAFT.TRANSFER_LEADER", &name]),
            Reply::Ok
        );
        assert!(leads(n));
        assert_eq!(client.call(&["SET", "a", &name]), Reply::Ok);
        assert_eq!(node.client().call(&["GET", "a"]), Reply::bulk(name));
    }
    assert_eq!(nodes[1].client().call(&["CLUSTER", "FAILOVER"]), Reply::Ok);
    assert!(leads(1));
    assert_eq!(
        nodes[1].client().call(&["CLUSTER", "FAILOVER"]),
        Reply::error("ERR You should send CLUSTER FAILOVER to a replica")
    );
    assert_eq!(client.call(&["RAFT.TRANSFER_LEADER"]), Reply::Ok);
    assert!(!leads(1));
    assert_eq!(
        client.call(&["RAFT.TRANSFER_LEADER", "nobody"]),
        Reply::error("ERR invalid target node id")
    );
    let Reply::Array(links) = client.call(&["CLUSTER", "LINKS"]) else {
        panic!("links are a list");
    };
    assert_eq!(links.len(), 2);
}

#[test]
fn members_come_and_go_by_the_commands_of_redisraft() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut nodes = cluster(temp.path(), &["redb", "redb"]);
    let mut third = Node::new(temp.path(), "node2", "redb");
    third.start();
    nodes.push(third);
    let mut client = nodes[0].client();
    let added = client.call(&["RAFT.NODE", "ADD", "0", &nodes[2].raft_addr()]);
    let Reply::Array(fields) = added else {
        panic!("{added:?}");
    };
    let id = nodes[2].info("raft_node_id").unwrap();
    for (field, value) in [
        ("raft_state", "up"),
        ("raft_is_voting", "yes"),
        ("raft_num_nodes", "3"),
        ("raft_num_voting_nodes", "3"),
        ("raft_leader_id", &nodes[0].info("raft_node_id").unwrap()),
    ] {
        assert_eq!(nodes[2].info(field).as_deref(), Some(value), "{field}");
    }
    assert_eq!(fields[0], Reply::bulk(id.clone()));
    assert_eq!(
        fields[1],
        Reply::bulk(nodes[0].info("raft_cluster_id").unwrap())
    );
    assert_eq!(client.call(&["SET", "a", "1"]), Reply::Ok);
    assert_eq!(nodes[2].client().call(&["GET", "a"]), Reply::bulk("1"));
    assert_eq!(client.call(&["RAFT.NODE", "REMOVE", &id]), Reply::Ok);
    assert_eq!(
        client.call(&["RAFT.NODE", "REMOVE", &id]),
        Reply::error("ERR node id does not exist")
    );
    assert!(nodes[2].client().call(&["GET", "a"]).is_error());
}

#[test]
fn local_reads_go_on_without_a_leader_unless_their_age_is_limited() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut nodes = ["node0", "node1", "node2"].map(|name| Node::new(temp.path(), name, "redb"));
    nodes[2] = Node::new(temp.path(), "node2", "redb").with(&["--max-staleness", "1000"]);
    join(&mut nodes);
    assert_eq!(nodes[0].client().call(&["SET", "a", "1"]), Reply::Ok);
    let mut local: Vec<_> = nodes.iter().map(Node::client).collect();
    for client in &mut local {
        assert_eq!(client.call(&["READONLY"]), Reply::Ok);
        until("the write arrives", || {
            client.call(&["GET", "a"]) == Reply::bulk("1")
        });
    }
    // Node 1 without a limit, node 2 with one; neither has a majority.
    nodes[0].kill();
    nodes[1].pause();
    until("node 2 is too old to tell", || {
        local[2].call(&["GET", "a"]).error_prefix() == Some("MASTERDOWN")
    });
    nodes[1].resume();
    until("there is a leader again", || {
        local[2].call(&["GET", "a"]) == Reply::bulk("1")
    });
    nodes[2].kill();
    assert!(nodes[1].client().call(&["GET", "a"]).is_error());
    assert_eq!(local[1].call(&["GET", "a"]), Reply::bulk("1"));
}

#[test]
fn a_command_that_is_sent_again_with_a_token_counts_once_also_after_a_failover() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut nodes = cluster(temp.path(), &["redb", "memory", "sled"]);
    let mut client = nodes[1].client();
    let Reply::Bulk(token) = client.call(&["ONCE.TOKEN"]) else {
        panic!("a token is issued");
    };
    let token = String::from_utf8(token.to_vec()).unwrap();
    let once = |node: &Node, sequence: &str, by: &str| {
        node.client()
            .call(&["ONCE", &token, sequence, "INCRBY", "counter", by])
    };
    // A client whose connection ends before the reply comes sends its command again.
    client
        .send(&["ONCE", &token, "1", "INCRBY", "counter", "5"])
        .unwrap();
    drop(client);
    assert_eq!(once(&nodes[2], "1", "5"), Reply::Int(5));
    let first = leader(&nodes);
    nodes[first].kill();
    let survivor = &nodes[(first + 1) % 3];
    assert_eq!(once(survivor, "1", "5"), Reply::Int(5));
    assert_eq!(once(survivor, "2", "1"), Reply::Int(6));
    nodes[first].start();
    assert_eq!(once(&nodes[first], "2", "1"), Reply::Int(6));
    assert_eq!(
        nodes[first].client().call(&["GET", "counter"]),
        Reply::bulk("6")
    );
    let digests = level_digests(&nodes);
    assert!(
        digests.iter().all(|digest| *digest == digests[0]),
        "{digests:?}"
    );
}

#[test]
fn a_member_without_a_vote_serves_reads_and_counts_for_no_majority() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut nodes = cluster(temp.path(), &["redb", "redb"]);
    nodes.push(Node::new(temp.path(), "replica", "redb"));
    nodes[2].start();
    let addr = nodes[2].raft_addr();
    let mut client = nodes[1].client();
    let join = ["JOIN", "replica", &addr, "NONVOTER"];
    assert_eq!(client.call(&join), Reply::Ok);
    assert_eq!(client.call(&join), Reply::Ok);
    assert_eq!(client.call(&["SET", "a", "1"]), Reply::Ok);
    assert_eq!(nodes[2].client().call(&["GET", "a"]), Reply::bulk("1"));
    assert_eq!(nodes[2].client().call(&["SET", "a", "2"]), Reply::Ok);
    assert_eq!(nodes[2].info("raft_role").as_deref(), Some("learner"));
    assert_eq!(
        client.call(&["RAFT.TRANSFER_LEADER", "replica"]),
        Reply::error("ERR invalid target node id")
    );
    nodes[2].kill();
    nodes[2].start();
    assert_eq!(nodes[2].client().call(&["GET", "a"]), Reply::bulk("2"));
    // With a vote it makes a majority of three together with one other.
    assert_eq!(client.call(&["JOIN", "replica", &addr]), Reply::Ok);
    match client.call(&join) {
        Reply::Error(text) => assert!(text.contains("is a voter already"), "{text}"),
        other => panic!("{other:?}"),
    }
    nodes[0].kill();
    assert_eq!(nodes[2].client().call(&["SET", "a", "3"]), Reply::Ok);
}

#[test]
fn nodes_that_are_told_to_join_are_taken_in_without_a_command() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let first = Node::new(temp.path(), "node0", "redb");
    let addr = first.raft_addr();
    let mut second = Node::new(temp.path(), "node1", "redb").with(&["--join", &addr]);
    // Before there is anyone to ask.
    second.start();
    match second.client().call(&["GET", "a"]) {
        Reply::Error(text) => assert!(text.starts_with("NOCLUSTER"), "{text}"),
        other => panic!("{other:?}"),
    }
    let mut nodes = [first, second];
    nodes[0].start();
    until("the node is taken in", || {
        nodes[0].info("raft_members").as_deref() == Some("2")
    });
    until("it serves", || {
        nodes[1].client().call(&["SET", "a", "1"]) == Reply::Ok
    });
    // Later starts change nothing.
    nodes[1].kill();
    nodes[1].start();
    assert_eq!(nodes[1].client().call(&["GET", "a"]), Reply::bulk("1"));
    assert_eq!(nodes[0].info("raft_members").as_deref(), Some("2"));
}

#[test]
fn a_cluster_is_born_of_the_list_of_its_members() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut nodes: Vec<Node> = ["c", "a", "b"]
        .iter()
        .map(|name| Node::new(temp.path(), name, "redb"))
        .collect();
    let list: Vec<String> = ["c", "a", "b"]
        .iter()
        .zip(&nodes)
        .map(|(name, node)| format!("{name}={}", node.raft_addr()))
        .collect();
    let list = list.join(",");
    nodes = nodes
        .into_iter()
        .map(|node| node.with(&["--initial-members", &list]))
        .collect();
    for node in &mut nodes {
        node.start();
    }
    for node in &nodes {
        until("all are members", || {
            node.info("raft_members").as_deref() == Some("3")
        });
    }
    let cluster = nodes[0].info("raft_cluster_id");
    assert!(
        nodes
            .iter()
            .all(|node| node.info("raft_cluster_id") == cluster)
    );
    assert_eq!(nodes[0].client().call(&["SET", "a", "1"]), Reply::Ok);
    let digests = level_digests(&nodes);
    assert!(digests.iter().all(|digest| *digest == digests[0]));
}

#[test]
fn a_member_that_comes_back_at_other_addresses_is_found_there() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut nodes = cluster(temp.path(), &["redb", "redb", "redb"]);
    for n in [2, 0] {
        // A follower, and the leader.
        let moved = Node::new(temp.path(), &format!("node{n}"), "redb");
        nodes[n].kill();
        (nodes[n].port, nodes[n].raft_port) = (moved.port, moved.raft_port);
        nodes[n].start();
        let raft = format!("raft={}", nodes[n].raft_addr());
        let client = format!("client={}", nodes[n].addr());
        for node in &nodes {
            until("all know where it is", || {
                (0..3).any(|m| {
                    node.info(&format!("raft_member{m}"))
                        .is_some_and(|line| line.contains(&raft) && line.contains(&client))
                })
            });
        }
        assert_eq!(nodes[n].client().call(&["SET", "a", "1"]), Reply::Ok);
    }
    let digests = level_digests(&nodes);
    assert!(digests.iter().all(|digest| *digest == digests[0]));
    // They make a majority where they are now.
    nodes[1].kill();
    assert_eq!(nodes[0].client().call(&["SET", "a", "2"]), Reply::Ok);
    assert_eq!(nodes[2].client().call(&["GET", "a"]), Reply::bulk("2"));
}

#[test]
fn members_find_each_other_where_most_or_all_have_moved_at_once() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut nodes = cluster(temp.path(), &["redb", "redb", "redb"]);
    for moving in [&[0, 1][..], &[0, 1, 2]] {
        assert!(!nodes[0].client().call(&["INCR", "a"]).is_error());
        for node in &mut nodes {
            node.kill();
        }
        for n in moving {
            let moved = Node::new(temp.path(), &format!("node{n}"), "redb");
            (nodes[*n].port, nodes[*n].raft_port) = (moved.port, moved.raft_port);
        }
        // Where nobody is where the others know, they are told of one that all can reach.
        let hint = nodes[0].raft_addr();
        for node in &mut nodes {
            let all = moving.len() == 3;
            node.set_env("KVD_JOIN", all.then_some(&*hint));
            node.spawn();
        }
        until("they lead and follow", || {
            nodes.iter().all(|node| {
                let master = node.info("raft_leader");
                master.is_some_and(|leader| !leader.is_empty())
            })
        });
        let written = nodes[2].client().call(&["INCR", "a"]);
        assert!(matches!(written, Reply::Int(_)), "{written:?}");
        for node in &nodes {
            until("all know where all are", || {
                nodes.iter().all(|moved| {
                    let raft = format!("raft={}", moved.raft_addr());
                    (0..3).any(|m| {
                        let line = node.info(&format!("raft_member{m}"));
                        line.is_some_and(|line| line.contains(&raft))
                    })
                })
            });
        }
        level_digests(&nodes);
    }
    assert_eq!(nodes[1].client().call(&["GET", "a"]), Reply::bulk("4"));
}

/// A leader that trusted a lease would answer from memory: the voter that it counted on has
/// restarted, forgotten the lease, and elected another one.
#[test]
fn a_leader_that_was_paused_answers_no_read_from_before_although_a_voter_restarted() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut nodes = cluster(temp.path(), &["redb", "redb", "redb"]);
    for round in 0..3 {
        let (before, after) = (format!("before{round}"), format!("after{round}"));
        let paused = leader(&nodes);
        let (voter, other) = ((paused + 1) % 3, (paused + 2) % 3);
        let mut reader = nodes[paused].client();
        assert_eq!(reader.call(&["SET", "a", &before]), Reply::Ok);
        nodes[paused].pause();
        nodes[voter].kill();
        nodes[voter].start();
        let mut writer = nodes[other].client();
        until("another leader takes the write", || {
            writer.call(&["SET", "a", &after]) == Reply::Ok
        });
        // It waits in the socket: the old leader meets it first of all when it wakes up.
        reader.send(&["GET", "a"]).unwrap();
        nodes[paused].resume();
        assert_eq!(reader.receive().unwrap(), Reply::bulk(after));
        level_digests(&nodes);
    }
}

#[test]
fn a_member_stays_where_its_join_said_whatever_it_calls_itself() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut first = Node::new(temp.path(), "node0", "redb");
    first.start();
    let mut second = Node::new(temp.path(), "node1", "redb");
    let announced = format!("127.0.0.2:{}", second.raft_port);
    second = second.with(&["--announce-raft-addr", &announced]);
    second.start();
    let addr = second.raft_addr();
    assert_eq!(first.client().call(&["JOIN", "node1", &addr]), Reply::Ok);
    second.kill();
    second.start();
    assert_eq!(second.client().call(&["SET", "a", "1"]), Reply::Ok);
    let line = (0..2)
        .filter_map(|n| first.info(&format!("raft_member{n}")))
        .find(|line| line.contains("name=node1"))
        .unwrap();
    assert!(line.contains(&format!("raft={addr}")), "{line}");
    // Alone, it is where its flags say at each start.
    let other = Node::new(temp.path(), "other", "redb");
    let mut alone = Node::new(temp.path(), "alone", "redb");
    alone.start();
    alone.kill();
    alone.port = other.port;
    alone.start();
    until("it is announced where it is", || {
        alone
            .info("raft_member0")
            .is_some_and(|line| line.contains(&format!("client={}", alone.addr())))
    });
}

#[test]
fn the_phases_of_a_write_are_told_apart() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let nodes = cluster(temp.path(), &["redb", "sled", "memory"]);
    let first = leader(&nodes);
    let phase = |node: &Node, phase: &str| {
        let text = node.info(&format!("raft_phase_{phase}")).unwrap();
        let field = |name: &str| {
            let mut fields = text.split(',').map(|field| field.split_once('=').unwrap());
            let found = fields.find(|(field, _)| *field == name).unwrap();
            found.1.parse::<f64>().unwrap()
        };
        let [average, p50, p99, longest] = ["avg_us", "p50_us", "p99_us", "max_us"].map(field);
        assert!(average <= longest && p50 <= p99, "{phase}: {text}");
        field("count")
    };
    let phases = ["queue", "append", "fsync", "quorum", "apply", "engine"];
    let before = phases.map(|name| phase(&nodes[first], name));
    let mut client = nodes[first].client();
    for n in 0..50 {
        assert_eq!(client.call(&["SET", "a", &n.to_string()]), Reply::Ok);
    }
    for (name, before) in phases.into_iter().zip(before) {
        // The engine gets what is applied later, and many at once.
        if name == "engine" {
            until("the engine has it", || phase(&nodes[first], name) > before);
            continue;
        }
        let since = phase(&nodes[first], name) - before;
        assert!(since >= 50.0, "{name}: {since}");
    }
    // A follower has the phases of a replica.
    let follower = &nodes[(first + 1) % 3];
    for name in ["fsync", "quorum", "apply", "engine"] {
        until(name, || phase(follower, name) > 0.0);
    }
}

/// A cluster of one reads without asking anyone. That ends before another voter could have
/// committed something, and begins again when the last other voter is out.
#[test]
fn a_node_reads_on_its_own_only_while_it_is_the_only_voter() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut nodes = vec![Node::new(temp.path(), "node0", "memory").with(&["--hold", "1000"])];
    nodes.push(Node::new(temp.path(), "node1", "memory"));
    for node in &mut nodes {
        node.start();
    }
    let mut client = nodes[0].client();
    assert_eq!(client.call(&["SET", "key", "value"]), Reply::Ok);
    assert_eq!(client.call(&["GET", "key"]), Reply::bulk("value"));
    let again = nodes[1].raft_addr();
    assert_eq!(client.call(&["JOIN", "node1", &again]), Reply::Ok);
    assert_eq!(client.call(&["GET", "key"]), Reply::bulk("value"));
    nodes[1].pause();
    match client.call(&["GET", "key"]) {
        Reply::Error(text) => assert!(text.starts_with("CLUSTERDOWN"), "{text}"),
        other => panic!("a leader without a majority answered {other:?}"),
    }
    nodes[1].resume();
    until("both are there again", || {
        nodes[0].client().call(&["GET", "key"]) == Reply::bulk("value")
    });
    let mut client = nodes[0].client();
    assert_eq!(client.call(&["LEAVE", "node1"]), Reply::Ok);
    nodes[1].kill();
    assert_eq!(client.call(&["SET", "key", "other"]), Reply::Ok);
    assert_eq!(client.call(&["GET", "key"]), Reply::bulk("other"));
}
