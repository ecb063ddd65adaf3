use super::Tree;
use crate::layer::tar_writer::{Header, Tar};
use crate::layer::{Indexer, Kind, LayerIndex, Limits, Reason};

fn index(tar: Tar) -> LayerIndex {
    let mut indexer = Indexer::new(Limits::default());
    indexer.push(&tar.finish()).unwrap();
    indexer.finish().unwrap()
}

/// The merged paths, directories with a slash, joined by spaces.
fn merged(layers: Vec<Tar>) -> String {
    let indexes: Vec<LayerIndex> = layers.into_iter().map(index).collect();
    let tree = Tree::merge(&indexes).unwrap();
    let paths = tree.walk().skip(1).map(|(path, node)| {
        let slash = if node.kind() == Kind::Directory {
            "/"
        } else {
            ""
        };
        format!("{}{slash}", String::from_utf8_lossy(&path))
    });
    paths.collect::<Vec<_>>().join(" ")
}

fn refused(layers: Vec<Tar>) -> (usize, String, Reason) {
    let indexes: Vec<LayerIndex> = layers.into_iter().map(index).collect();
    let refusal = Tree::merge(&indexes).unwrap_err();
    (
        refusal.layer,
        refusal.fault.entry().unwrap(),
        refusal.fault.reason().clone(),
    )
}

fn tar() -> Tar {
    Tar::new()
}

#[test]
fn whiteouts_hide_lower_layers_only() {
    let lower = || {
        tar()
            .dir("a")
            .file("a/1", b"")
            .file("a/2", b"")
            .file("b", b"")
    };
    assert_eq!(
        merged(vec![lower(), tar().file("a/.wh.1", b"")]),
        "a/ a/2 b"
    );
    assert_eq!(merged(vec![lower(), tar().file(".wh.a", b"")]), "b");
    assert_eq!(
        merged(vec![lower(), tar().file("a/3", b"").file(".wh.a", b"")]),
        "a/ a/3 b"
    );
    assert_eq!(
        merged(vec![lower(), tar().file("b", b"x").file(".wh.b", b"")]),
        "a/ a/1 a/2 b"
    );
    assert_eq!(
        merged(vec![
            lower(),
            tar().file(".wh.none", b"").file("n/.wh.x", b"")
        ]),
        "a/ a/1 a/2 b"
    );
    assert_eq!(
        merged(vec![lower(), tar().file("b/.wh.x", b"")]),
        "a/ a/1 a/2 b"
    );
}

#[test]
fn opaque_hides_content_in_any_order() {
    let lower = || tar().dir("a").dir("a/b").file("a/b/1", b"");
    let opaque = |tar: Tar| tar.file("a/.wh..wh..opq", b"");
    assert_eq!(
        merged(vec![lower(), opaque(tar()).file("a/x", b"")]),
        "a/ a/x"
    );
    assert_eq!(
        merged(vec![lower(), opaque(tar().file("a/x", b""))]),
        "a/ a/x"
    );
    assert_eq!(
        merged(vec![
            lower(),
            tar().file(".wh..wh..opq", b"").file("z", b"")
        ]),
        "z"
    );
}

#[test]
fn types_replace_each_other() {
    let lower = || {
        tar()
            .dir("d")
            .file("d/1", b"")
            .file("f", b"")
            .symlink("l", "d")
    };
    let upper = tar().file("d", b"").dir("f").file("f/1", b"").dir("l");
    assert_eq!(merged(vec![lower(), upper]), "d f/ f/1 l/");
}

#[test]
fn directories_take_attributes_and_keep_content() {
    let mut private = Header::new(b"d", b'5');
    private.octal(100, 8, 0o700);
    let indexes = [
        index(tar().dir("d").file("d/1", b"")),
        index(tar().header(private, b"")),
        index(tar().file("i/x", b"")),
    ];
    let tree = Tree::merge(&indexes).unwrap();
    let modes: Vec<_> = tree
        .walk()
        .map(|(path, node)| (path, node.mode()))
        .collect();
    assert_eq!(modes[1], (b"d".to_vec(), 0o700));
    assert_eq!(modes[2].0, b"d/1");
    assert_eq!(modes[3], (b"i".to_vec(), 0o755));
}

#[test]
fn hard_links_reach_into_lower_layers() {
    let indexes = [
        index(tar().file("a", b"1").hard("b", "a")),
        index(tar().hard("c", "b").file("a", b"2")),
        index(tar().hard("d", "c").file(".wh.c", b"")),
    ];
    let tree = Tree::merge(&indexes).unwrap();
    let ids: Vec<_> = tree
        .walk()
        .skip(1)
        .map(|(path, node)| (path, node.id()))
        .collect();
    assert_eq!(
        ids.iter()
            .map(|(path, _)| path.as_slice())
            .collect::<Vec<_>>(),
        [b"a", b"b", b"d"]
    );
    assert_ne!(ids[0].1, ids[1].1);
    assert_eq!(ids[1].1, ids[2].1);
}

#[test]
fn paths_run_through_lower_symlinks() {
    let lower = || {
        tar()
            .dir("usr")
            .dir("usr/lib")
            .file("usr/lib/x", b"")
            .symlink("lib", "usr/lib")
            .symlink("abs", "/usr")
    };
    assert_eq!(
        merged(vec![
            lower(),
            tar()
                .file("lib/y", b"")
                .file("abs/z", b"")
                .file("lib/.wh.x", b"")
        ]),
        "abs lib usr/ usr/lib/ usr/lib/y usr/z"
    );
    assert_eq!(
        merged(vec![
            tar().dir("b").symlink("a", "b/../b"),
            tar().file("a/x", b"")
        ]),
        "a b/ b/x"
    );
}

#[test]
fn symlink_tricks_are_refused() {
    let trick = refused(vec![tar().symlink("e", "/etc").file("e/passwd", b"")]);
    assert_eq!(
        trick,
        (
            0,
            "e/passwd".to_owned(),
            Reason::SymlinkTrick {
                link: "e".to_owned()
            }
        )
    );
    let escape = refused(vec![tar().symlink("e", "../../etc").file("e/passwd", b"")]);
    assert_eq!(
        escape.2,
        Reason::SymlinkEscape {
            link: "e".to_owned()
        }
    );
    let lower = refused(vec![
        tar().dir("d").symlink("d/e", "../.."),
        tar().file("d/e/x", b""),
    ]);
    assert_eq!(
        (lower.0, lower.2),
        (
            1,
            Reason::SymlinkEscape {
                link: "d/e".to_owned()
            }
        )
    );
    let looped = refused(vec![
        tar().symlink("a", "b").symlink("b", "a").file("a/x", b""),
    ]);
    assert_eq!(looped.2, Reason::SymlinkLoop);
    let whiteout = refused(vec![tar().symlink("e", "/etc").file("e/.wh.passwd", b"")]);
    assert_eq!(
        whiteout.2,
        Reason::SymlinkTrick {
            link: "e".to_owned()
        }
    );
    let linked = refused(vec![tar().symlink("e", "/etc").hard("h", "e/passwd")]);
    assert_eq!(
        linked.2,
        Reason::SymlinkTrick {
            link: "e".to_owned()
        }
    );
    // A hard link to the symlink is one, too.
    let relinked = refused(vec![
        tar().symlink("e", "/etc").hard("h", "e").file("h/x", b""),
    ]);
    assert_eq!(
        relinked.2,
        Reason::SymlinkTrick {
            link: "e".to_owned()
        }
    );
}

#[test]
fn bad_links_and_parents_are_refused() {
    assert!(matches!(
        refused(vec![tar().hard("h", "none")]).2,
        Reason::LinkMissing { .. }
    ));
    assert!(matches!(
        refused(vec![tar().hard("h", "later").file("later", b"")]).2,
        Reason::LinkMissing { .. }
    ));
    assert!(matches!(
        refused(vec![tar().dir("d").hard("h", "d")]).2,
        Reason::LinkToDirectory { .. }
    ));
    assert!(matches!(
        refused(vec![tar().hard("h", ".")]).2,
        Reason::LinkToDirectory { .. }
    ));
    assert!(matches!(
        refused(vec![tar().hard("h", "h")]).2,
        Reason::LinkMissing { .. }
    ));
    assert!(matches!(
        refused(vec![tar().file("f", b"").file("f/x", b"")]).2,
        Reason::ParentNotDirectory { .. }
    ));
    assert!(matches!(
        refused(vec![tar().file("f", b""), tar().file("f/x", b"")]).2,
        Reason::ParentNotDirectory { .. }
    ));
}

#[test]
fn duplicates_are_refused() {
    let twice: [Tar; 7] = [
        tar().file("a", b"").file("./a", b""),
        tar().file("a", b"").dir("a"),
        tar().dir("a").file("a", b""),
        tar().file("a/b", b"").file("a", b""),
        tar().file("a", b"").file("b", b"").hard("b", "a"),
        tar().symlink("a", "b").symlink("a", "c"),
        tar()
            .dir("u")
            .symlink("l", "u")
            .file("l/x", b"")
            .file("u/x", b""),
    ];
    for layer in twice {
        assert_eq!(refused(vec![layer]).2, Reason::Duplicate);
    }
    let hard = vec![tar().file("a", b""), tar().hard("b", "a").file("b", b"")];
    assert_eq!(refused(hard).2, Reason::Duplicate);
    let replaced = vec![
        tar().dir("a").dir("a/b"),
        tar().file("a/b/c", b"").file("a", b""),
    ];
    assert_eq!(refused(replaced).2, Reason::Duplicate);
    assert_eq!(
        merged(vec![tar().dir("a").dir("a").file("a/x", b"")]),
        "a/ a/x"
    );
    let mut other = Header::new(b"a", b'5');
    other.octal(100, 8, 0o700);
    assert_eq!(
        refused(vec![tar().dir("a").header(other, b"")]).2,
        Reason::Duplicate
    );
}

#[test]
fn depth_grows_no_further_through_symlinks() {
    let deep = "d/".repeat(1000) + "d";
    let lower = tar()
        .pax(&[("path", deep.as_bytes())])
        .dir("x")
        .pax(&[("linkpath", deep.as_bytes())])
        .symlink("s", "x");
    let upper = tar().file(&("s/".to_owned() + &"e/".repeat(30)), b"");
    assert_eq!(refused(vec![lower, upper]).2, Reason::TooDeep);
}

#[test]
fn symlinks_do_not_multiply_into_steps() {
    let target = format!("{}d", "d/../".repeat(600));
    let mut layer = tar().dir("d");
    for name in ["one", "two"] {
        layer = layer
            .pax(&[("linkpath", target.as_bytes())])
            .symlink(name, "d");
    }
    // Two ways by turns, so that no path is that of the neighbour before.
    for number in 0..20 {
        let way = if number % 2 == 0 { "one" } else { "two" };
        layer = layer.file(&format!("{way}/{number}"), b"");
    }
    let (_, _, reason) = refused(vec![layer]);
    assert!(matches!(reason, Reason::LimitExceeded { .. }), "{reason:?}");
}

#[test]
fn long_names_do_not_multiply_into_directories() {
    let deep = |number: usize| format!("{number}/{}f", "a/".repeat(1000));
    let mut layer = tar();
    for number in 0..5 {
        layer = layer
            .pax(&[("path", deep(number).as_bytes())])
            .file("f", b"");
    }
    let (_, _, reason) = refused(vec![layer]);
    assert!(matches!(reason, Reason::LimitExceeded { .. }), "{reason:?}");
}
