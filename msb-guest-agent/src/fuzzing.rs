//! Fuzz targets: each panics when a property does not hold.

use bytes::BytesMut;

use crate::endpoint::{GuestEndpoint, HostEndpoint};
use crate::message::{self, AgentMessage, Entry, HostMessage, Request, StreamCommand, StreamEvent};
use crate::record::{self, RecordDecoder, TreeDecoder, TreeItem, TreeRecord};
use crate::wire::{FrameDecoder, Kind, MAX_FRAME};

/// Frames: decoding never panics, encodes back to the same bytes, and does not
/// depend on how the bytes were cut. Messages: decode, encode, decode is equal.
pub fn agent_frames(data: &[u8]) {
    let (mut whole, mut pieces) = (FrameDecoder::new(), FrameDecoder::new());
    let mut encoded = BytesMut::new();
    whole.extend(data);
    let mut frames = Vec::new();
    while let Ok(Some(frame)) = whole.next_frame() {
        assert!(frame.encoded_len() <= MAX_FRAME);
        frame.encode(&mut encoded);
        round_trip_messages(frame.kind, &frame.payload);
        frames.push(frame);
    }
    assert_eq!(encoded[..], data[..encoded.len()]);

    let mut seen = 0;
    for piece in data.chunks(3) {
        pieces.extend(piece);
        while let Ok(Some(frame)) = pieces.next_frame() {
            assert_eq!(frame, frames[seen]);
            seen += 1;
        }
    }
    assert_eq!(seen, frames.len());
}

fn round_trip_messages(kind: Kind, payload: &[u8]) {
    match kind {
        Kind::Control => {
            round_trip::<HostMessage>(payload);
            round_trip::<AgentMessage>(payload);
        }
        Kind::Open => round_trip::<Request>(payload),
        Kind::Event => round_trip::<StreamEvent>(payload),
        Kind::Command => round_trip::<StreamCommand>(payload),
        _ => {}
    }
}

/// Not the bytes but the values are compared: a varint has several encodings.
fn round_trip<T>(payload: &[u8])
where
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
{
    if let Some(value) = message::decode::<T>(payload) {
        let again = message::decode(&message::encode(&value));
        assert_eq!(again.as_ref(), Some(&value));
    }
}

/// Endpoints: a hostile peer on either side causes events or an error that
/// stays, never a panic and never unbounded output.
pub fn agent_endpoint(data: &[u8]) {
    let mut guest = GuestEndpoint::new();
    let mut host = HostEndpoint::new();
    let request = Request::Exec(crate::message::ExecRequest::default());
    for _ in 0..3 {
        host.open(&request).expect("a fresh endpoint has room");
    }
    let sent = host.output().len();
    for piece in data.chunks(37) {
        guest.handle_input(piece);
        drain(|| guest.poll_event().map(|event| event.is_some()));
        host.handle_input(piece);
        drain(|| host.poll_event().map(|event| event.is_some()));
    }
    // Only closing answers are sent unasked: each frame of input is at least
    // as long as its answer, a header and one byte at most.
    assert!(guest.output().len() <= 2 * data.len());
    assert!(host.output().len() - sent <= 2 * data.len());
}

fn drain(mut poll: impl FnMut() -> Result<bool, crate::Error>) {
    loop {
        match poll() {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                assert_eq!(poll(), Err(error), "the first error is final");
                return;
            }
        }
    }
}

/// Trees: decoding never panics, does not depend on how the bytes were cut, and what comes out
/// is names, bounded content and balanced folders. Entries of folders: as all messages.
pub fn agent_tree(data: &[u8]) {
    let whole = read_tree(data, data.len().max(1));
    assert_eq!(read_tree(data, 5), whole);
    let (mut depth, mut out) = (0usize, BytesMut::new());
    for item in &whole.0 {
        match item {
            TreeItem::Record(TreeRecord::Leave) => depth -= 1,
            TreeItem::Record(entry) => {
                depth += usize::from(matches!(entry, TreeRecord::Enter { .. }));
                assert!(depth <= record::MAX_DEPTH);
                out.clear();
                record::put(&mut out, entry);
                let mut again = RecordDecoder::default();
                again.extend(&out);
                assert_eq!(again.next_record().as_ref(), Ok(&Some(entry.clone())));
            }
            TreeItem::Data { .. } => {}
        }
    }
    let mut entries = RecordDecoder::default();
    entries.extend(data);
    while let Ok(Some(entry)) = entries.next_record::<Entry>() {
        assert_eq!(
            message::decode(&message::encode(&entry)).as_ref(),
            Some(&entry)
        );
    }
}

/// What bytes say, with content joined: `step` decides how they are cut.
fn read_tree(data: &[u8], step: usize) -> (Vec<TreeItem>, bool) {
    let mut decoder = TreeDecoder::default();
    let mut items: Vec<TreeItem> = Vec::new();
    for piece in data.chunks(step) {
        decoder.extend(piece);
        while let Ok(Some(item)) = decoder.next_item() {
            match (items.last_mut(), item) {
                (
                    Some(TreeItem::Data { offset, bytes }),
                    TreeItem::Data {
                        offset: next,
                        bytes: more,
                    },
                ) if *offset + bytes.len() as u64 == next => {
                    *bytes = [&bytes[..], &more[..]].concat().into();
                }
                (_, item) => items.push(item),
            }
        }
    }
    (items, decoder.is_complete())
}
