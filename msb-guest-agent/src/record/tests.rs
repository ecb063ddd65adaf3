use proptest::prelude::*;

use super::*;

fn metadata(size: u64) -> Metadata {
    Metadata {
        kind: FileKind::File,
        permissions: 0o644,
        uid: 0,
        gid: 0,
        size,
        modified: 0,
        modified_nanos: 0,
        links: 1,
    }
}

fn enter(name: &str) -> TreeRecord {
    TreeRecord::Enter {
        name: name.into(),
        metadata: metadata(0),
    }
}

fn file(name: &str, size: u64) -> TreeRecord {
    TreeRecord::File {
        name: name.into(),
        metadata: metadata(size),
        id: None,
    }
}

/// Puts the records and says what comes of them.
fn read(records: &[TreeRecord]) -> Result<bool, InvalidRecord> {
    let mut out = BytesMut::new();
    for record in records {
        put(&mut out, record);
        if let TreeRecord::Data { len, .. } = record {
            out.extend_from_slice(&vec![7; *len as usize]);
        }
    }
    let mut decoder = TreeDecoder::default();
    decoder.extend(&out);
    while decoder.next_item()?.is_some() {}
    Ok(decoder.is_complete())
}

#[test]
fn a_tree_comes_out_as_it_went_in_however_it_is_cut() {
    let mut out = BytesMut::new();
    for record in [enter("a"), file("b", 9)] {
        put(&mut out, &record);
    }
    put(&mut out, &TreeRecord::Data { offset: 2, len: 3 });
    out.extend_from_slice(b"xyz");
    put(&mut out, &TreeRecord::Leave);
    for step in 1..=out.len() {
        let mut decoder = TreeDecoder::default();
        let (mut records, mut content) = (0, [0; 9]);
        for piece in out.chunks(step) {
            decoder.extend(piece);
            while let Some(item) = decoder.next_item().unwrap() {
                match item {
                    TreeItem::Record(_) => records += 1,
                    TreeItem::Data { offset, bytes } => {
                        content[offset as usize..][..bytes.len()].copy_from_slice(&bytes);
                    }
                }
            }
        }
        assert_eq!((records, &content), (3, b"\0\0xyz\0\0\0\0"));
        assert!(decoder.is_complete());
    }
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    let long = "n".repeat(256);
    for name in ["", ".", "..", "a/b", "/", "/etc", "a\0", &long] {
        assert!(read(&[enter(name)]).is_err(), "{name:?}");
        assert!(read(&[enter("a"), file(name, 0)]).is_err(), "{name:?}");
        let link = TreeRecord::Link {
            name: name.into(),
            id: 0,
        };
        assert!(read(&[enter("a"), link]).is_err(), "{name:?}");
    }
    assert!(read(&[file("...", 0)]).unwrap());
    assert!(read(&[file("line\nbreak", 0)]).unwrap());
}

#[test]
fn content_stays_in_its_file_and_in_order() {
    let data = |offset, len| TreeRecord::Data { offset, len };
    assert!(read(&[file("f", 10), data(0, 4), data(6, 4)]).unwrap());
    for records in [
        vec![data(0, 1)],
        vec![enter("d"), data(0, 1)],
        vec![file("f", 10), data(8, 3)],
        vec![file("f", 10), data(4, 4), data(0, 4)],
        vec![file("f", u64::MAX), data(u64::MAX, 2)],
        vec![file("f", 10), data(0, 0)],
        vec![file("f", u64::MAX), data(0, MAX_PIECE + 1)],
    ] {
        assert!(read(&records).is_err(), "{records:?}");
    }
}

#[test]
fn a_tree_has_one_root_and_its_end() {
    assert_eq!(read(&[]), Ok(false));
    assert_eq!(read(&[enter("a")]), Ok(false));
    assert_eq!(read(&[enter("a"), TreeRecord::Leave]), Ok(true));
    assert!(read(&[TreeRecord::Leave]).is_err());
    assert!(read(&[file("a", 0), file("b", 0)]).is_err());
    assert!(read(&[enter("a"), TreeRecord::Leave, enter("b")]).is_err());
    let deep: Vec<_> = (0..MAX_DEPTH).map(|_| enter("d")).collect();
    assert_eq!(read(&deep), Ok(false));
    assert!(read(&[deep, vec![enter("d")]].concat()).is_err());
}

#[test]
fn the_longest_record_fits_and_a_longer_one_is_refused_by_its_length() {
    let symlink = |len| TreeRecord::Symlink {
        name: "n".repeat(255).into(),
        metadata: metadata(u64::MAX),
        target: "t".repeat(len).into(),
    };
    assert_eq!(read(&[symlink(message::MAX_PATH - 1)]), Ok(true));
    assert!(read(&[symlink(message::MAX_PATH)]).is_err());
    let mut decoder = RecordDecoder::default();
    decoder.extend(&(MAX_RECORD as u32 + 1).to_le_bytes());
    assert!(decoder.next_record::<TreeRecord>().is_err());
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_a_tree_or_an_error(
        bytes in prop::collection::vec(any::<u8>(), 0..300)
    ) {
        crate::fuzzing::agent_tree(&bytes);
    }
}
