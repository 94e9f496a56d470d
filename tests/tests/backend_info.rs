//! What INFO shows of the storage engine.

use kvd::resp::Reply;
use kvd_tests::{Node, alone, until};

/// A number in a line such as `calls=3,usec=17`.
fn part(line: &str, name: &str) -> f64 {
    let mut parts = line.split(',').filter_map(|part| part.split_once('='));
    let value = parts.find(|(of, _)| *of == name);
    value
        .and_then(|(_, value)| value.parse().ok())
        .unwrap_or_else(|| panic!("no {name} in {line}"))
}

#[test]
fn info_says_what_the_engine_is_how_it_was_set_up_and_what_its_calls_cost() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let flags = ["--backend-opt", "cache_size=8MiB"];
    let mut node = Node::new(temp.path(), "node0", "redb").with(&flags);
    node.start();
    let mut client = node.client();
    for n in 0..100 {
        let key = format!("key:{n}");
        assert_eq!(client.call(&["SET", &key, "x"]), Reply::Ok);
        assert_eq!(client.call(&["GET", &key]), Reply::bulk("x"));
    }
    let line = |name: &str| {
        node.info(name)
            .unwrap_or_else(|| panic!("INFO has no {name}"))
    };
    assert_eq!(line("backend_name"), "redb");
    assert_eq!(line("backend_interface"), "1");
    assert_eq!(line("backend_option_cache_size"), "8MiB");
    assert!(line("backend_file").ends_with("libkvd_redb.so"));
    assert!(line("backend_capabilities").contains("view"));
    // The engine gets writes a moment after their answers.
    until("the engine has got a write", || {
        part(&line("backend_call_write"), "calls") >= 1.0
    });
    for call in ["get", "view", "write"] {
        let cost = line(&format!("backend_call_{call}"));
        assert!(part(&cost, "calls") >= 1.0, "{call}: {cost}");
        assert!(part(&cost, "usec_per_call") > 0.0, "{call}: {cost}");
        assert!(part(&cost, "max_usec") > 0.0, "{call}: {cost}");
    }
    assert_eq!(part(&line("backend_call_replace"), "calls"), 0.0);
    // What was written gets durable by itself, and what is durable is behind no more then.
    let applied: u64 = line("backend_applied_index").parse().unwrap();
    until("the engine has synced", || {
        line("backend_durable_index").parse::<u64>().unwrap() >= applied
            && line("backend_durable_behind") == "0"
    });
    assert!(part(&line("backend_call_sync"), "calls") >= 1.0);
    let changes: u64 = line("backend_changes_written").parse().unwrap();
    assert!(changes >= 100, "{changes}");
}
