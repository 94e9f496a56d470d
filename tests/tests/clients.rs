//! redis-rs with its defaults; the clients of other languages are in `tests/clients/run`.

use kvd_tests::{Node, alone};
use redis::Commands as _;

#[test]
fn redis_rs_works_with_its_defaults() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let mut node = Node::new(temp.path(), "node0", "redb");
    node.start();
    for protocol in ["", "?protocol=resp3"] {
        let url = format!("redis://{}/{protocol}", node.addr());
        let mut client = redis::Client::open(url).unwrap().get_connection().unwrap();
        let _: () = client.set("rs", 1).unwrap();
        assert_eq!(client.get::<_, i64>("rs").unwrap(), 1);
        assert_eq!(client.incr::<_, _, i64>("rs", 1).unwrap(), 2);
        assert!(client.expire::<_, bool>("rs", 100).unwrap());
        let mut pipeline = redis::pipe();
        for n in 0..100 {
            pipeline.set(format!("rs:{n}"), n).ignore();
        }
        let _: () = pipeline.query(&mut client).unwrap();
        let keys: std::collections::BTreeSet<String> = client
            .scan_match("rs:*")
            .unwrap()
            .map(Result::unwrap)
            .collect();
        assert_eq!(keys.len(), 100);
        let (set, incremented): (String, i64) = redis::pipe()
            .atomic()
            .set("rs", 2)
            .incr("rs", 1)
            .query(&mut client)
            .unwrap();
        assert_eq!((set.as_str(), incremented), ("OK", 3));
    }
}
