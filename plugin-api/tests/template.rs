//! The template of `kvd plugin new` is compiled with the workspace, under its lints and its format.

#[expect(unreachable_pub, reason = "in its own crate this is the root")]
#[path = "../template/src/lib.rs"]
mod template;

use kvd_plugin_api::{Backend as _, Mark, Op, OpenContext, Options};

#[test]
fn the_templates_engine_opens_and_holds_what_is_written() {
    let options = Options::parse(template::Engine::OPTIONS, []).unwrap();
    let dir = std::path::Path::new(".");
    let options = &options;
    let engine = template::Engine::open(&OpenContext { dir, options }).unwrap();
    let mark = Mark {
        index: 1,
        data: Vec::new(),
    };
    engine.write(&[Op::Put(b"key", b"value")], &mark).unwrap();
    let mut found = Vec::new();
    assert!(
        engine
            .get(b"key", &mut |value| found = value.to_vec())
            .unwrap()
    );
    assert_eq!(
        (found.as_slice(), engine.mark().unwrap()),
        (&b"value"[..], mark)
    );
}
