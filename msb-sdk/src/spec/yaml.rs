//! YAML as a tree of nodes that know where they stand.
//!
//! What YAML has beyond JSON and its ways to write text is refused: anchors, aliases (with which
//! a short file becomes a long one), tags, several documents, keys that are no text.

use std::collections::HashSet;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle};

/// The deepest nesting: a description has five levels.
const MAX_DEPTH: usize = 16;

/// The most nodes: a thousand patches have ten thousand.
const MAX_NODES: usize = 100_000;

/// Line and column, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) line: usize,
    pub(super) column: usize,
}

impl From<Marker> for Place {
    fn from(marker: Marker) -> Self {
        Self {
            line: marker.line().max(1),
            column: marker.col() + 1,
        }
    }
}

/// A value in a file.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) at: Place,
    pub(super) value: Value,
}

#[derive(Debug)]
pub(super) enum Value {
    /// Text as it is meant, and whether it was written without quotes.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<Node>),
    /// Keys are scalars.
    Map(Vec<(Node, Node)>),
}

/// What is wrong, and where.
#[derive(Debug)]
pub(super) struct Malformed {
    pub(super) at: Place,
    pub(super) message: String,
}

/// A list or map that is not complete.
struct Open {
    at: Place,
    kind: OpenKind,
}

enum OpenKind {
    List(Vec<Node>),
    Map {
        entries: Vec<(Node, Node)>,
        seen: HashSet<String>,
        key: Option<Node>,
    },
}

/// Reads the one document of a text; `None` if there is nothing in it.
pub(super) fn parse(text: &str) -> Result<Option<Node>, Malformed> {
    let mut stack: Vec<Open> = Vec::new();
    let mut root = None;
    let mut nodes = 0;
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| Malformed {
            at: (*error.marker()).into(),
            message: format!("this is no YAML: {}", error.info()),
        })?;
        let at = Place::from(span.start);
        let refuse = |message: &str| {
            let message = message.to_owned();
            Err(Malformed { at, message })
        };
        if let Event::Scalar(_, _, anchor, tag) = &event
            && (*anchor != 0 || tag.is_some())
        {
            return refuse("anchors and tags are not read");
        }
        let node = match event {
            Event::Alias(_) => return refuse("aliases are not read"),
            Event::SequenceStart(anchor, tag) | Event::MappingStart(anchor, tag)
                if anchor != 0 || tag.is_some() =>
            {
                return refuse("anchors and tags are not read");
            }
            Event::SequenceStart(..) => {
                stack.push(Open {
                    at,
                    kind: OpenKind::List(Vec::new()),
                });
                None
            }
            Event::MappingStart(..) => {
                let (entries, seen, key) = (Vec::new(), HashSet::new(), None);
                stack.push(Open {
                    at,
                    kind: OpenKind::Map { entries, seen, key },
                });
                None
            }
            Event::Scalar(text, style, ..) => Some(Node {
                at,
                value: Value::Scalar {
                    text: text.into_owned(),
                    plain: style == ScalarStyle::Plain,
                },
            }),
            Event::SequenceEnd | Event::MappingEnd => stack.pop().map(Open::close),
            Event::DocumentStart(_) if root.is_some() => {
                return refuse("a file describes one sandbox");
            }
            _ => None,
        };
        if stack.len() > MAX_DEPTH {
            return refuse("this is nested too deeply");
        }
        let Some(node) = node else {
            continue;
        };
        nodes += 1;
        if nodes > MAX_NODES {
            return refuse("the file has too many values");
        }
        match stack.last_mut() {
            Some(open) => open.add(node)?,
            None => root = Some(node),
        }
    }
    // A file of comments only is an empty value.
    Ok(root.filter(|node: &Node| !node.is_null()))
}

impl Open {
    fn add(&mut self, node: Node) -> Result<(), Malformed> {
        match &mut self.kind {
            OpenKind::List(items) => items.push(node),
            OpenKind::Map { entries, seen, key } => match key.take() {
                Some(key) => entries.push((key, node)),
                None => {
                    let (at, message) = match &node.value {
                        Value::Scalar { text, .. } if seen.insert(text.clone()) => {
                            *key = Some(node);
                            return Ok(());
                        }
                        // What it is may be a secret's value, in the wrong place.
                        Value::Scalar { .. } => (node.at, "the key is there twice"),
                        _ => (node.at, "a key must be a word"),
                    };
                    let message = message.to_owned();
                    return Err(Malformed { at, message });
                }
            },
        }
        Ok(())
    }

    fn close(self) -> Node {
        let value = match self.kind {
            OpenKind::List(items) => Value::List(items),
            OpenKind::Map { entries, .. } => Value::Map(entries),
        };
        Node { at: self.at, value }
    }
}

impl Node {
    /// Whether a place lies in what belongs to one of the keys here.
    pub(super) fn holds(&self, name: &str, place: Place) -> bool {
        let Value::Map(entries) = &self.value else {
            return false;
        };
        let before = entries.iter().rfind(|(key, _)| key.at <= place);
        before.is_some_and(
            |(key, _)| matches!(&key.value, Value::Scalar { text, .. } if text == name),
        )
    }

    /// Whether nothing stands there, or what YAML has for nothing.
    pub(super) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true }
            if matches!(text.as_str(), "" | "~" | "null"))
    }
}
