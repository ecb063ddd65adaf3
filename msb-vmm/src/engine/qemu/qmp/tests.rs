use proptest::prelude::*;
use serde_json::json;

use super::*;

fn messages(bytes: &[u8], chunk: usize) -> Result<Vec<Message>, String> {
    let mut lines = Lines::default();
    let mut found = Vec::new();
    for piece in bytes.chunks(chunk.max(1)) {
        lines.push(piece);
        while let Some(message) = lines.next_message().map_err(|error| error.to_string())? {
            found.push(message);
        }
    }
    Ok(found)
}

fn reply(id: Option<u64>, outcome: Result<Value, &str>) -> Message {
    let outcome = outcome.map_err(str::to_owned);
    Message::Reply { id, outcome }
}

#[test]
fn the_four_forms_are_told_apart() {
    let text = concat!(
        "{\"QMP\": {\"version\": {}, \"capabilities\": [\"oob\"]}}\r\n",
        "{\"return\": {}, \"id\": 7}\r\n\r\n",
        "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\n",
        "{\"timestamp\": {}, \"event\": \"RESUME\"}\n",
        "{\"event\": \"MIGRATION\", \"data\": {\"status\": \"completed\"}}\n",
        "{\"return\": 1",
    );
    let expected = vec![
        Message::Greeting,
        reply(Some(7), Ok(json!({}))),
        reply(None, Err("no")),
        Message::Event {
            name: "RESUME".into(),
            data: Value::Null,
        },
        Message::Event {
            name: "MIGRATION".into(),
            data: json!({"status": "completed"}),
        },
    ];
    for chunk in [1, 2, 7, 4096] {
        assert_eq!(messages(text.as_bytes(), chunk).unwrap(), expected);
    }
}

#[test]
fn other_forms_are_refused() {
    for text in [
        "[]",
        "1",
        "{}",
        "{\"event\": 1}",
        "{",
        "nonsense",
        "{\"a\": \u{1}}",
    ] {
        assert!(
            matches!(parse(text.as_bytes()), Err(ControlError::Malformed { .. })),
            "{text}"
        );
    }
    assert!(matches!(
        parse(&b"[".repeat(10_000)),
        Err(ControlError::Malformed { .. })
    ));
}

#[test]
fn a_line_without_end_is_refused() {
    let mut lines = Lines::default();
    lines.push(&vec![b' '; MAX_MESSAGE + 1]);
    assert!(matches!(
        lines.next_message(),
        Err(ControlError::TooLong { .. })
    ));
}

#[test]
fn a_refusal_is_cut() {
    let text = json!({ "error": { "desc": "x".repeat(10_000) } }).to_string();
    assert_eq!(
        parse(text.as_bytes()).unwrap(),
        reply(None, Err(&"x".repeat(512)))
    );
}

#[test]
fn replies_come_in_order_and_events_between_them_are_skipped() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let mut connection =
        Connection::new(ours, Instant::now() + std::time::Duration::from_secs(60)).unwrap();
    theirs
        .write_all(b"{\"QMP\":{}}\n{\"return\":1,\"id\":0}\n{\"event\":\"STOP\"}\n{\"return\":2,\"id\":1}\n{\"error\":{\"desc\":\"why\"}}\n")
        .unwrap();
    assert_eq!(connection.execute("one", &Value::Null).unwrap(), json!(1));
    assert_eq!(
        connection.execute("two", &json!({"a": 1})).unwrap(),
        json!(2)
    );
    let refused = connection.execute("three", &Value::Null).unwrap_err();
    assert_eq!(refused.to_string(), "three was refused: why");
    drop(theirs);
    assert!(matches!(
        connection.reply("four"),
        Err(ControlError::Closed {
            waiting_for: "four"
        })
    ));
}

/// Also not when it comes after the command that follows was said.
#[test]
fn the_reply_to_a_command_that_was_given_up_is_nobodys() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let mut connection = Connection::new(ours, Instant::now()).unwrap();
    let late = connection.execute("stop", &Value::Null).unwrap_err();
    assert!(matches!(late, ControlError::TimedOut { .. }));
    connection.renew(Instant::now() + std::time::Duration::from_secs(60));
    connection.send("cont", &Value::Null).unwrap();
    theirs
        .write_all(
            b"{\"error\":{\"desc\":\"late\"},\"id\":0}\n{\"return\":5}\n{\"return\":1,\"id\":1}\n",
        )
        .unwrap();
    assert_eq!(connection.reply("cont").unwrap(), json!(1));
}

#[test]
fn nothing_waits_past_the_deadline() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let mut connection = Connection::new(ours, Instant::now()).unwrap();
    assert!(matches!(
        connection.reply("x"),
        Err(ControlError::TimedOut { .. })
    ));
}

proptest! {
    #[test]
    fn any_bytes_in_any_pieces_give_the_same(bytes: Vec<u8>, chunk in 1usize..9) {
        let whole = messages(&bytes, bytes.len());
        let pieces = messages(&bytes, chunk);
        prop_assert_eq!(whole, pieces);
    }

    #[test]
    fn replies_survive_the_trip(text: String, chunk in 1usize..9) {
        let line = format!("{}\n", json!({ "return": text }));
        prop_assert_eq!(messages(line.as_bytes(), chunk), Ok(vec![reply(None, Ok(json!(text)))]));
    }
}
