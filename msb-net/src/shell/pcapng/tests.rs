use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::*;

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A reader that knows nothing of the writer: type and body of each block, whose
/// two lengths must agree.
fn blocks(mut file: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let word = |bytes: &[u8]| u32::from_ne_bytes(bytes[..4].try_into().unwrap());
    let mut blocks = Vec::new();
    while !file.is_empty() {
        let (kind, length) = (word(file), word(&file[4..]) as usize);
        assert_eq!(length % 4, 0, "blocks are padded");
        let (block, rest) = file.split_at(length);
        assert_eq!(word(&block[length - 4..]) as usize, length);
        blocks.push((kind, block[8..length - 4].to_vec()));
        file = rest;
    }
    blocks
}

fn captured(frames: &[(u64, Vec<u8>, bool)], limit: u64) -> Vec<u8> {
    let sink = Sink::default();
    let mut capture = Capture::new(Box::new(sink.clone()), limit);
    for (nanos, frame, from_guest) in frames {
        let at = SystemTime::UNIX_EPOCH + Duration::from_nanos(*nanos);
        capture.frame(at, frame, *from_guest);
    }
    drop(capture);
    let bytes = sink.0.lock().unwrap();
    bytes.clone()
}

/// The counts of the statistics block at the end.
fn counts(blocks: &[(u32, Vec<u8>)]) -> (u64, u64) {
    let (kind, body) = blocks.last().expect("there is a block");
    assert_eq!(*kind, 5);
    let count = |at: usize| u64::from_ne_bytes(body[at..at + 8].try_into().unwrap());
    (count(16), count(28))
}

#[test]
fn the_file_begins_as_the_format_says() {
    let file = captured(&[(1, vec![0; 60], true)], 10_000);
    let blocks = blocks(&file);
    let kinds: Vec<u32> = blocks.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, [0x0a0d_0d0a, 1, 6, 5]);
    assert_eq!(blocks[0].1[..4], 0x1a2b_3c4d_u32.to_ne_bytes());
    assert_eq!(blocks[0].1[4..8], [1u16.to_ne_bytes(), [0, 0]].concat());
    assert_eq!(blocks[1].1[..2], 1u16.to_ne_bytes(), "Ethernet");
    assert_eq!(
        blocks[1].1[8..13],
        [&9u16.to_ne_bytes()[..], &1u16.to_ne_bytes(), &[9]].concat()
    );
}

#[test]
fn a_full_capture_ends_between_frames_and_says_what_is_missing() {
    let frames: Vec<_> = (0..100).map(|n| (n, vec![n as u8; 1000], true)).collect();
    for limit in [0, 100, 5000, 5001, 6000] {
        let file = captured(&frames, limit);
        assert!(
            file.len() as u64 <= limit + 100,
            "{} of {limit}",
            file.len()
        );
        let blocks = blocks(&file);
        let kept = blocks.iter().filter(|(kind, _)| *kind == 6).count() as u64;
        assert_eq!(counts(&blocks), (100, 100 - kept), "{limit}");
    }
}

#[test]
fn a_writer_that_fails_ends_the_capture_and_nothing_else() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::WriteZero.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Err(io::ErrorKind::WriteZero.into())
        }
    }
    let mut capture = Capture::new(Box::new(Full), u64::MAX);
    for _ in 0..100 {
        capture.frame(SystemTime::UNIX_EPOCH, &[0; 1000], true);
    }
    capture.flush();
    assert!(capture.broken);
}

#[test]
fn a_capture_of_nothing_is_one() {
    let blocks = blocks(&captured(&[], 10_000));
    assert_eq!((blocks.len(), counts(&blocks)), (3, (0, 0)));
}

#[test]
fn the_file_is_its_owners_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("capture");
    for old in [None, Some("what was there before")] {
        if let Some(old) = old {
            std::fs::write(&path, old).unwrap();
            std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        }
        drop(Capture::create(&path, 10_000).unwrap());
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(blocks(&std::fs::read(&path).unwrap()).len(), 3);
    }
    let nowhere = [folder.path().into(), path.join("below"), "/dev/null".into()];
    for wrong in nowhere {
        let error = Capture::create(&wrong, 10_000).unwrap_err().to_string();
        assert!(error.contains(&*wrong.display().to_string()), "{error}");
    }
}

proptest! {
    #[test]
    fn what_was_written_can_be_read(frames in prop::collection::vec(
        (any::<u64>().prop_map(|nanos| nanos >> 1), prop::collection::vec(any::<u8>(), 0..100), any::<bool>()),
        1..20,
    )) {
        let file = captured(&frames, u64::MAX);
        let blocks = blocks(&file);
        prop_assert_eq!(counts(&blocks), (frames.len() as u64, 0));
        let packets: Vec<_> = blocks.iter().filter(|(kind, _)| *kind == 6).collect();
        prop_assert_eq!(packets.len(), frames.len());
        for ((_, body), (nanos, frame, from_guest)) in packets.iter().zip(&frames) {
            let word = |at: usize| u32::from_ne_bytes(body[at..at + 4].try_into().unwrap());
            prop_assert_eq!(u64::from(word(4)) << 32 | u64::from(word(8)), *nanos);
            prop_assert_eq!((word(12) as usize, word(16) as usize), (frame.len(), frame.len()));
            prop_assert_eq!(&body[20..20 + frame.len()], &frame[..]);
            let options = 20 + frame.len().next_multiple_of(4);
            prop_assert_eq!(word(options + 4), if *from_guest { 1 } else { 2 });
            prop_assert_eq!(body.len(), options + 12);
        }
    }
}
