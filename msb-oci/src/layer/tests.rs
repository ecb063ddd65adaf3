use super::tar_writer::{Header, Tar};
use super::{Entry, Fault, Indexer, Kind, LayerIndex, Limits, Reason};

fn index(tar: &[u8]) -> Result<LayerIndex, Fault> {
    let mut indexer = Indexer::new(Limits {
        entries: 1000,
        bytes: 1 << 40,
    });
    indexer.push(tar)?;
    indexer.finish()
}

fn refused(tar: Tar) -> Reason {
    index(&tar.finish()).unwrap_err().reason().clone()
}

/// Indexes and hands the only entry to `check`.
fn only(tar: Tar, check: impl FnOnce(Entry<'_>)) {
    let index = index(&tar.finish()).unwrap();
    assert_eq!(index.len(), 1);
    check(index.entries().next().unwrap());
}

#[test]
fn reads_every_plain_type() {
    let mut device = Header::new(b"c", b'3');
    device.octal(329, 8, 5);
    device.octal(337, 8, 1);
    let tar = Tar::new()
        .dir("./")
        .file("./a", b"hello")
        .symlink("s", "/etc/passwd")
        .hard("h", "./a")
        .header(device.clone(), b"")
        .header(Header::new(b"p", b'6'), b"")
        .file("d/.wh.x", b"")
        .file("d/.wh..wh..opq", b"");
    let bytes = tar.finish();
    let index = index(&bytes).unwrap();
    let found: Vec<_> = index
        .entries()
        .map(|entry| (entry.kind(), entry.path(), entry.target()))
        .collect();
    let expected: Vec<(Kind, &[u8], &[u8])> = vec![
        (Kind::Directory, b"", b""),
        (Kind::File, b"a", b""),
        (Kind::Symlink, b"s", b"/etc/passwd"),
        (Kind::HardLink, b"h", b"a"),
        (Kind::CharDevice, b"c", b""),
        (Kind::Fifo, b"p", b""),
        (Kind::Whiteout, b"d/x", b""),
        (Kind::Opaque, b"d", b""),
    ];
    assert_eq!(found, expected);
    let file = index.entries().nth(1).unwrap();
    let extent = file.extents()[0];
    assert_eq!(
        &bytes[extent.tar_offset as usize..][..extent.length as usize],
        b"hello"
    );
    assert_eq!(index.entries().nth(4).unwrap().device(), (5, 1));
    assert_eq!(LayerIndex::decode(&index.encode()).unwrap(), index);
}

#[test]
fn pieces_of_any_size_give_the_same_index() {
    let tar = Tar::new()
        .pax(&[("path", b"long"), ("mtime", b"1.5")])
        .file("x", &[7; 700])
        .dir("d")
        .finish();
    let whole = index(&tar).unwrap();
    for size in [1, 3, 511, 512, 513, 1000] {
        let mut indexer = Indexer::new(Limits::default());
        for piece in tar.chunks(size) {
            indexer.push(piece).unwrap();
        }
        assert_eq!(indexer.finish().unwrap(), whole);
    }
}

#[test]
fn extended_headers_override() {
    let records: [(&str, &[u8]); 5] = [
        ("path", b"p\xff"),
        ("uid", b"3000000"),
        ("size", b"5"),
        ("SCHILY.xattr.user.b", b"\0\n"),
        ("SCHILY.xattr.security.capability", b"c"),
    ];
    only(
        Tar::new()
            .pax(&records)
            .header(Header::new(b"x", b'0'), b"01234"),
        |entry| {
            assert_eq!(
                (entry.path(), entry.uid(), entry.size()),
                (&b"p\xff"[..], 3_000_000, 5)
            );
            let xattrs: Vec<_> = entry
                .xattrs()
                .map(|xattr| (xattr.name, xattr.value))
                .collect();
            assert_eq!(
                xattrs,
                [
                    (&b"security.capability"[..], &b"c"[..]),
                    (b"user.b", b"\0\n")
                ]
            );
        },
    );
}

#[test]
fn gnu_long_names() {
    let long = "n".repeat(200) + "/" + &"m".repeat(200);
    let target = "t".repeat(300);
    let tar = Tar::new()
        .header(
            Header::new(b"././@LongLink", b'K').size(301),
            (target.clone() + "\0").as_bytes(),
        )
        .header(
            Header::new(b"././@LongLink", b'L').size(402),
            (long.clone() + "\0").as_bytes(),
        )
        .header(Header::new(b"short", b'2').link(b"short"), b"");
    only(tar, |entry| {
        assert_eq!(
            (entry.path(), entry.target()),
            (long.as_bytes(), target.as_bytes())
        );
    });
}

#[test]
fn old_gnu_sparse() {
    let mut header = Header::new(b"s", b'S').size(1024);
    header.0[257..265].copy_from_slice(b"ustar  \0");
    for (at, value) in [(386, 512), (398, 512), (410, 4096), (422, 512), (483, 8192)] {
        header.octal(at, 12, value);
    }
    only(Tar::new().header(header, &[1; 1024]), |entry| {
        assert_eq!(entry.size(), 8192);
        let extents: Vec<_> = entry
            .extents()
            .iter()
            .map(|extent| (extent.offset, extent.tar_offset, extent.length))
            .collect();
        assert_eq!(extents, [(512, 512, 512), (4096, 1024, 512)]);
    });
}

#[test]
fn pax_sparse_of_each_version() {
    let versions: [&[(&str, &[u8])]; 2] = [
        &[
            ("GNU.sparse.size", b"8192"),
            ("GNU.sparse.numblocks", b"2"),
            ("GNU.sparse.offset", b"512"),
            ("GNU.sparse.numbytes", b"512"),
            ("GNU.sparse.offset", b"4096"),
            ("GNU.sparse.numbytes", b"512"),
        ],
        &[
            ("GNU.sparse.size", b"8192"),
            ("GNU.sparse.map", b"512,512,4096,512"),
            ("GNU.sparse.name", b"real"),
        ],
    ];
    for records in versions {
        only(Tar::new().pax(records).file("s", &[1; 1024]), |entry| {
            assert_eq!((entry.size(), entry.extents().len()), (8192, 2));
        });
    }
    let mut data = b"2\n512\n512\n4096\n512\n".to_vec();
    data.resize(512 + 1024, 0);
    let records: [(&str, &[u8]); 4] = [
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"real"),
        ("GNU.sparse.realsize", b"8192"),
    ];
    only(Tar::new().pax(&records).file("s", &data), |entry| {
        assert_eq!(
            (entry.path(), entry.size(), entry.extents().len()),
            (&b"real"[..], 8192, 2)
        );
        assert_eq!(entry.extents()[0].tar_offset % 512, 0);
    });
}

#[test]
fn refuses_hostile_sparse_maps() {
    for map in [
        "0,512,256,512",
        "0,4096",
        "512,512",
        "0,99999999",
        "1,1023",
        "0,1024,8192,1",
        "0",
        "x,y",
        "0,512,600,512",
    ] {
        let records: [(&str, &[u8]); 2] = [
            ("GNU.sparse.size", b"8192"),
            ("GNU.sparse.map", map.as_bytes()),
        ];
        let reason = refused(Tar::new().pax(&records).file("s", &[1; 1024]));
        assert!(
            matches!(reason, Reason::BadSparseMap { .. }),
            "{map}: {reason}"
        );
    }
}

#[test]
fn names_the_entry_of_a_hostile_name() {
    for (name, reason) in [
        ("/etc/passwd", Reason::AbsoluteName),
        ("../x", Reason::ParentComponent),
        ("a/../../x", Reason::ParentComponent),
        (".wh...", Reason::BadWhiteout),
    ] {
        let fault = index(&Tar::new().file("ok", b"").file(name, b"").finish()).unwrap_err();
        assert_eq!(
            (fault.entry().unwrap().as_str(), fault.reason()),
            (name, &reason)
        );
    }
    assert_eq!(refused(Tar::new().file("", b"")), Reason::EmptyName);
    assert_eq!(
        refused(Tar::new().file("./", b"")),
        Reason::RootNotDirectory
    );
    assert_eq!(
        refused(Tar::new().pax(&[("path", b"a\0b")]).file("x", b"")),
        Reason::NulByte
    );
}

#[test]
fn refuses_links_to_outside() {
    for target in ["../x", "a/../../x", "/../x"] {
        assert!(
            matches!(
                refused(Tar::new().hard("h", target)),
                Reason::LinkOutside { .. }
            ),
            "{target}"
        );
    }
    assert_eq!(refused(Tar::new().hard("h", "")), Reason::BadTarget);
    assert_eq!(refused(Tar::new().hard("h", "/")), Reason::BadTarget);
    assert_eq!(refused(Tar::new().symlink("h", "")), Reason::BadTarget);
}

/// As some builders write them.
#[test]
fn absolute_targets_of_hard_links_begin_at_the_root() {
    only(Tar::new().hard("h", "//usr/bin/perl"), |entry| {
        assert_eq!(entry.target(), b"usr/bin/perl");
    });
}

#[test]
fn a_flaw_in_an_extended_header_is_that_of_the_entry_after_it() {
    for record in [
        ("uid", &b"4294967296"[..]),
        ("size", b"-1"),
        ("path", b"a\0b"),
        ("SCHILY.xattr.user.a", &[b'a'; 70_000]),
    ] {
        let tar = Tar::new().file("good", b"").pax(&[record]).file("bad", b"");
        let fault = index(&tar.finish()).unwrap_err();
        assert_eq!(fault.entry().as_deref(), Some("bad"), "{fault}");
        let unfinished = Tar::new().file("good", b"").pax(&[record]);
        let fault = index(&unfinished.bytes).unwrap_err();
        assert_eq!(fault.entry(), None, "{fault}");
    }
    let header = Header::new(b"pax", b'x').size(1 << 30);
    let fault = index(&Tar::new().file("good", b"").header(header, b"").finish()).unwrap_err();
    assert_eq!(fault.entry(), None, "{fault}");
}

#[test]
fn refuses_bad_numbers() {
    for (at, field) in [
        (108, "uid"),
        (116, "gid"),
        (124, "size"),
        (136, "mtime"),
        (100, "mode"),
    ] {
        let mut header = Header::new(b"x", b'0');
        header.0[at] = b'z';
        assert_eq!(
            refused(Tar::new().header(header, b"")),
            Reason::BadNumber { field }
        );
    }
    let mut negative = Header::new(b"x", b'0');
    negative.0[124..136].fill(0xff);
    assert_eq!(
        refused(Tar::new().header(negative, b"")),
        Reason::BadNumber { field: "size" }
    );
    let mut huge = Header::new(b"x", b'0');
    huge.0[124..136].copy_from_slice(&[
        0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
    ]);
    assert!(matches!(
        refused(Tar::new().header(huge, b"")),
        Reason::LimitExceeded { .. }
    ));
    let mut device = Header::new(b"x", b'3');
    device.octal(329, 8, 4096);
    assert_eq!(
        refused(Tar::new().header(device, b"")),
        Reason::BadNumber {
            field: "device major"
        }
    );
}

#[test]
fn refuses_damage() {
    let tar = Tar::new().file("a", &[1; 700]).finish();
    for cut in [1, 511, 513, 1000, 1535] {
        assert_eq!(
            index(&tar[..cut]).unwrap_err().reason(),
            &Reason::Truncated,
            "{cut}"
        );
    }
    // At the boundary of a header, with half an end mark, and with padding.
    for end in [0, 1536, 2048] {
        assert!(index(&tar[..end]).is_ok(), "{end}");
    }
    let padded = [&tar[..], &[0; 10240]].concat();
    assert!(index(&padded).is_ok());
    let trailing = [&tar[..], b"x"].concat();
    assert_eq!(
        index(&trailing).unwrap_err().reason(),
        &Reason::TrailingData { offset: 2560 }
    );
    let lone = [&[0; 512][..], &tar].concat();
    assert_eq!(
        index(&lone).unwrap_err().reason(),
        &Reason::TrailingData { offset: 512 }
    );
    let mut flipped = tar;
    flipped[3] ^= 1;
    assert_eq!(
        index(&flipped).unwrap_err().reason(),
        &Reason::BadHeader { offset: 0 }
    );
    let dangling = Tar::new().pax(&[("path", b"x")]).bytes;
    assert_eq!(index(&dangling).unwrap_err().reason(), &Reason::Truncated);
}

#[test]
fn keeps_limits() {
    let many = (0..1001).fold(Tar::new(), |tar, number| {
        tar.file(&format!("f{number}"), b"")
    });
    assert!(matches!(
        refused(many),
        Reason::LimitExceeded {
            what: "entries in a layer",
            ..
        }
    ));
    let huge = Tar::new().header(Header::new(b"x", b'x').size((1 << 20) + 1), b"");
    assert!(matches!(
        refused(huge),
        Reason::LimitExceeded {
            what: "bytes in an extended header",
            ..
        }
    ));
    let mut indexer = Indexer::new(Limits {
        entries: 10,
        bytes: 1 << 20,
    });
    let claim = Header::new(b"big", b'0').size(1 << 21).checksummed();
    let fault = indexer.push(&claim.0).unwrap_err();
    assert_eq!(fault.entry().as_deref(), Some("big"));
    assert_eq!(indexer.push(&[0; 512]), Err(fault.clone()));
    assert_eq!(indexer.finish(), Err(fault));
}

#[test]
fn unsupported_types_are_refused() {
    for flag in [b'M', b'D', b'N', b'Z', b'8'] {
        assert_eq!(
            refused(Tar::new().header(Header::new(b"x", flag), b"")),
            Reason::UnsupportedType {
                kind: char::from(flag)
            }
        );
    }
}

#[test]
fn a_damaged_index_is_noticed() {
    let index = index(&Tar::new().file("a", b"x").symlink("b", "a").finish()).unwrap();
    let encoded = index.encode();
    for at in 0..encoded.len() {
        let mut damaged = encoded.clone();
        damaged[at] ^= 0x10;
        assert!(LayerIndex::decode(&damaged).is_err(), "{at}");
    }
    assert!(LayerIndex::decode(&encoded[..encoded.len() - 1]).is_err());
    assert!(LayerIndex::decode(b"").is_err());
}

#[test]
fn faults_are_printable() {
    let fault = Fault::new(b"a\x1b[1m\xff\"", Reason::Duplicate);
    assert_eq!(
        fault.to_string(),
        "entry \"a\\u{1b}[1m\\xff\\\"\": duplicate entry"
    );
}
