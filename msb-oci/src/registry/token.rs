//! The answer to a challenge: Basic credentials, or a token from the realm.

use std::io::Read;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use ureq::http::header::AUTHORIZATION;
use ureq::http::{StatusCode, Uri};

use super::challenge::Challenge;
use super::credentials::Login;
use super::pace::Paced;
use super::{Origin, Registry};
use crate::Error;
use crate::ingest::Failure;

/// Tokens of large organisations take some tens of kilobytes.
const MAX_TOKEN: u64 = 1 << 20;

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
}

/// Makes the `Authorization` header that the challenge asks for; `None` if we
/// have nothing to show.
pub(super) fn answer(
    registry: &Registry,
    challenge: &Challenge,
) -> Result<Option<String>, Failure> {
    match (challenge, &registry.login) {
        (Challenge::Basic, Some(Login::Password { user, password })) => {
            Ok(Some(basic(user, password)))
        }
        (Challenge::Basic, _) => Ok(None),
        (Challenge::Bearer { realm, service }, _) => {
            bearer(registry, realm, service.as_deref()).map(Some)
        }
    }
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

fn bearer(registry: &Registry, realm: &str, service: Option<&str>) -> Result<String, Failure> {
    // The registry does not get to ask for more than we need.
    let scope = format!("repository:{}:pull", registry.reference.repository());
    let mut query = format!("scope={}", encode(&scope));
    if let Some(service) = service {
        query.push_str(&format!("&service={}", encode(service)));
    }
    let uri = realm_uri(registry, realm)?;
    let origin = Origin::of(&uri);
    let agent = if origin.as_ref() == Some(&registry.origin) {
        &registry.transport.direct
    } else {
        &registry.transport.guarded
    };
    let sent = match &registry.login {
        Some(Login::IdentityToken(token)) => {
            let form = format!(
                "grant_type=refresh_token&client_id=msb&refresh_token={}&{query}",
                encode(token)
            );
            let form_type = "application/x-www-form-urlencoded";
            agent
                .post(&uri)
                .header("Content-Type", form_type)
                .send(form)
        }
        login => {
            let separator = if uri.query().is_some() { '&' } else { '?' };
            let mut request = agent.get(format!("{uri}{separator}{query}"));
            if let Some(Login::Password { user, password }) = login {
                request = request.header(AUTHORIZATION, basic(user, password));
            }
            request.call()
        }
    };
    let mut response = sent.map_err(|error| registry.failed(&uri, error))?;
    match response.status() {
        StatusCode::OK => {}
        // A token service has no images: 404 there is a broken realm.
        StatusCode::NOT_FOUND => {
            return Err(registry.broke("its token service does not exist").into());
        }
        _ => return Err(registry.refusal(response)),
    }
    let mut json = Vec::new();
    let body = Paced::new(response.body_mut().as_reader(), registry.patience);
    body.take(MAX_TOKEN)
        .read_to_end(&mut json)
        .map_err(|error| registry.interrupted(&error))?;
    let answer: Option<Answer> = serde_json::from_slice(&json).ok();
    let token = answer.and_then(|answer| answer.token.or(answer.access_token));
    let sound =
        |token: &String| !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
    match token.filter(sound) {
        Some(token) => Ok(format!("Bearer {token}")),
        None => Err(registry.broke("its token service gives no token").into()),
    }
}

/// The realm, if it is fit to be told credentials: HTTPS, or plain HTTP if
/// that is what the registry speaks, too. The transport sees to it that plain
/// HTTP stays on this machine.
fn realm_uri(registry: &Registry, realm: &str) -> Result<Uri, Error> {
    let uri: Option<Uri> = realm.parse().ok();
    match uri.and_then(|uri| Origin::of(&uri).map(|origin| (uri, origin))) {
        Some((uri, origin)) if !origin.is_plain() || registry.origin.is_plain() => Ok(uri),
        Some(_) => Err(registry.broke("its token service is not HTTPS")),
        None => Err(registry.broke("its token service has no valid address")),
    }
}

/// Percent-encodes all but the unreserved characters of RFC 3986.
fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
