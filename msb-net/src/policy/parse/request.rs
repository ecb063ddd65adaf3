//! Rules and expectations about HTTP requests.

use super::{Word, Words, excerpt, set_behind_at};
use crate::http::path::PathPattern;
use crate::policy::decide::SOME_PUBLIC;
use crate::policy::{Flow, Pattern, Requests, Subject, Target};
use crate::{Error, Name};

/// The most methods of a rule.
const MAX_METHODS: usize = 32;

fn is_method(text: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_uppercase() || byte == b'-';
    !text.is_empty() && text.bytes().all(good)
}

/// Reads methods, if any, and a host with or without a path.
pub(super) fn requests(words: &mut Words<'_>) -> Result<(Requests, Target), Error> {
    let mut requests = Requests::default();
    if let Some(word) = words.peek()
        && word.text.split(',').all(is_method)
    {
        words.next();
        requests.methods = word.text.split(',').map(str::to_owned).collect();
        if requests.methods.len() > MAX_METHODS {
            let message = format!("a rule has at most {MAX_METHODS} methods");
            return Err(words.error(word, message));
        }
    } else if words.peek().is_some_and(|word| word.text == "*") {
        words.next();
    }
    let suffix = words.take("suffix");
    let named = suffix || words.take("domain");
    let Some(word) = words.next() else {
        return match named {
            true => Err(words.unexpected(None, "a domain name", &[])),
            false => Ok((requests, Target::Any)),
        };
    };
    let (host, path) = split(word, words)?;
    requests.path = path;
    if host == "any" && !named {
        return Ok((requests, Target::Any));
    }
    let name = name(host, word, words)?;
    let pattern = match suffix {
        true => Pattern::Suffix(name),
        false => Pattern::Domain(name),
    };
    let at = set_behind_at(words)?;
    Ok((requests, Target::Names { pattern, at }))
}

fn split<'a>(word: Word<'a>, words: &Words<'_>) -> Result<(&'a str, Option<PathPattern>), Error> {
    let Some(at) = word.text.find('/') else {
        return Ok((word.text, None));
    };
    let (host, path) = word.text.split_at(at);
    match path.parse() {
        Ok(path) => Ok((host, Some(path))),
        Err(error) => {
            let message = format!("{:?} is no pattern of paths: {error}", excerpt(path));
            Err(words.error(word, message))
        }
    }
}

fn name(text: &str, word: Word<'_>, words: &Words<'_>) -> Result<Name, Error> {
    if !text.contains('.') {
        let message = "an `http` rule is about `any` host or a domain name";
        return Err(words.error(word, message.into()));
    }
    Name::new(text).map_err(|error| words.error(word, error.to_string()))
}

/// Reads a request that is expected to pass or not: method, host and path.
pub(super) fn subject(words: &mut Words<'_>) -> Result<Subject, Error> {
    let word = words.next();
    let Some(method) = word.filter(|word| is_method(word.text)) else {
        return Err(words.unexpected(word, "a method", &["GET", "POST"]));
    };
    let Some(word) = words.next() else {
        return Err(words.unexpected(None, "a host and a path", &[]));
    };
    let at = word.text.find('/').unwrap_or(word.text.len());
    let (host, path) = word.text.split_at(at);
    let host = name(host, word, words)?;
    let mut flow = Flow::tcp(SOME_PUBLIC, 443);
    if words.take("at") {
        flow.address = words.address()?;
    }
    Ok(Subject::Request {
        flow,
        host,
        method: method.text.into(),
        path: if path.is_empty() { "/" } else { path }.into(),
    })
}
