//! Commands on an engine in memory, from arguments to replies.

use divan::{Bencher, black_box};
use kvd::command::{self, Call};
use kvd::keyspace::{Limits, Txn, View};

use super::keyspace::{filled, some_keys};

#[divan::bench(args = ["GET", "STRLEN", "EXISTS", "TTL"])]
fn read(bencher: Bencher<'_, '_>, name: &str) {
    let (engine, keys) = (filled(), some_keys());
    let view = View::new(&engine, 2, 2).expect("memory");
    let mut turn = keys.iter().cycle();
    bencher.bench_local(|| {
        let args = [
            name.as_bytes(),
            turn.next().expect("it goes round").as_bytes(),
        ];
        let args = black_box(&args[..]);
        let spec = command::lookup(args).expect("a command");
        command::run_read(spec, &Call::new(args, 0), &view).expect("memory")
    });
}

#[divan::bench(args = [&["SET", "3"][..], &["SET", "3", "EX", "100"], &["INCR"], &["DEL"]])]
fn write(bencher: Bencher<'_, '_>, words: &[&str]) {
    let (engine, keys) = (filled(), some_keys());
    let mut txn = Txn::new(&engine, 2, 2, 0, Limits::default()).expect("memory");
    let mut turn = keys.iter().cycle();
    bencher.bench_local(|| {
        let key = turn.next().expect("it goes round").as_bytes();
        let mut args = vec![words[0].as_bytes(), key];
        args.extend(words[1..].iter().map(|word| word.as_bytes()));
        let args = black_box(&args[..]);
        let spec = command::lookup(args).expect("a command");
        command::run_write(spec, &Call::new(args, 0), &mut txn).expect("memory")
    });
}
