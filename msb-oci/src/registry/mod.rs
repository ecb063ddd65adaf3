//! The registry protocol: manifests and blobs over HTTP.
//!
//! Read: OCI distribution specification, "Pull"; docker's "Token
//! Authentication". What an attacker who runs a registry gets from us:
//! requests to itself, and to public HTTPS hosts that it names; never a
//! connection into the user's network ([`address`]), and no credentials for
//! anybody but itself and the token service it names over HTTPS (as docker
//! does: who logged in to a registry trusts it with the password).

mod address;
mod challenge;
mod credentials;
mod pace;
mod token;
mod transport;

use std::io::Read;
use std::sync::Mutex;
use std::time::Duration;

use ureq::http::header::{AUTHORIZATION, LOCATION, RANGE, WWW_AUTHENTICATE};
use ureq::http::{Response, StatusCode, Uri};
use ureq::{Agent, Body};

use crate::ingest::{Failure, Layer, Source};
use crate::manifest::{ACCEPT, Descriptor, MAX_MANIFEST};
use crate::reference::{is_loopback_host, split_port};
use crate::{Digest, Error, PullOptions, Reference, Result};

use credentials::Login;
use pace::{Paced, is_too_slow};
use transport::{Refused, Transport};

pub(crate) use challenge::parse as parse_challenge;

/// A blob takes one or two; more is a loop.
const MAX_REDIRECTS: u32 = 5;
/// Of an error's text, this much is read and some of it shown.
const MAX_ERROR_BODY: u64 = 16 << 10;
const MAX_ERROR_SHOWN: usize = 300;
/// Attempts for a small document.
const MAX_ATTEMPTS: u32 = 3;

/// One repository of a registry.
pub(crate) struct Registry {
    reference: Reference,
    /// Host and port as the user knows them.
    name: String,
    origin: Origin,
    transport: Transport,
    /// How long a transfer may be slow.
    patience: Duration,
    login: Option<Login>,
    /// The `Authorization` that the registry accepted last.
    authorization: Mutex<Option<String>>,
}

/// What must not change for an `Authorization` header to be sent along.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Origin {
    scheme: String,
    host: String,
    port: u16,
}

impl Origin {
    fn of(uri: &Uri) -> Option<Origin> {
        let scheme = uri.scheme_str()?;
        let authority = uri.authority()?;
        if authority.as_str().contains('@') {
            return None;
        }
        let standard = match scheme {
            "https" => 443,
            "http" => 80,
            _ => return None,
        };
        let host = authority.host().to_ascii_lowercase();
        Some(Origin {
            scheme: scheme.to_owned(),
            host,
            port: authority.port_u16().unwrap_or(standard),
        })
    }

    fn is_plain(&self) -> bool {
        self.scheme == "http"
    }
}

impl Registry {
    pub(crate) fn new(reference: &Reference, options: &PullOptions) -> Result<Registry> {
        let name = reference.registry().to_owned();
        let login = credentials::find(&options.credentials, &name)?;
        let host = reference.registry_host();
        let plain = split_port(host).is_some_and(|(host, _)| is_loopback_host(host));
        let scheme = if plain { "http" } else { "https" };
        let origin = format!("{scheme}://{host}/")
            .parse()
            .ok()
            .and_then(|uri| Origin::of(&uri))
            .ok_or_else(|| Error::Registry {
                registry: name.clone(),
                reason: "its name makes no address".to_owned(),
            })?;
        let transport = Transport::new(&name, plain, &options.timeouts)?;
        Ok(Registry {
            reference: reference.clone(),
            name,
            origin,
            transport,
            patience: options.timeouts.idle,
            login,
            authorization: Mutex::new(None),
        })
    }

    /// Gets the manifest or index that the reference means, with its digest.
    pub(crate) fn manifest(&self) -> Result<(Digest, Vec<u8>)> {
        let path = format!("manifests/{}", self.reference.manifest_selector());
        let (content, claimed) = self.document(&path, ACCEPT, MAX_MANIFEST)?;
        let got = Digest::of(&content);
        // The registry's own word counts only against it.
        match self.reference.digest().or(claimed) {
            Some(expected) if expected != got => Err(Error::WrongDigest {
                what: format!("the manifest of {}", self.reference),
                expected,
                got,
            }),
            _ => Ok((got, content)),
        }
    }

    /// Gets a manifest or a configuration by its descriptor.
    pub(crate) fn verified(
        &self,
        what: &str,
        kind: &str,
        wanted: &Descriptor,
        limit: u64,
    ) -> Result<Vec<u8>> {
        let expected = wanted.size;
        if expected > limit {
            return Err(Error::TooLarge {
                what: what.to_owned(),
                limit,
                unit: "bytes",
            });
        }
        let accept = if kind == "manifests" { ACCEPT } else { "*/*" };
        let (content, _) = self.document(&format!("{kind}/{}", wanted.digest), accept, limit)?;
        check(what, &content, wanted)?;
        Ok(content)
    }

    /// Gets a small document, trying again where that may help.
    fn document(&self, path: &str, accept: &str, limit: u64) -> Result<(Vec<u8>, Option<Digest>)> {
        let mut attempt = 1;
        loop {
            match self.document_once(path, accept, limit) {
                Err(failure) if failure.transient && attempt < MAX_ATTEMPTS => attempt += 1,
                result => return result.map_err(|failure| failure.error),
            }
        }
    }

    fn document_once(
        &self,
        path: &str,
        accept: &str,
        limit: u64,
    ) -> Result<(Vec<u8>, Option<Digest>), Failure> {
        let mut response = self.get(path, accept, 0)?;
        if response.status() != StatusCode::OK {
            return Err(self.refusal(response));
        }
        let header = response.headers().get("docker-content-digest");
        let claimed = header
            .and_then(|value| value.to_str().ok())
            .and_then(|text| text.parse().ok());
        let mut content = Vec::new();
        let body = Paced::new(response.body_mut().as_reader(), self.patience);
        body.take(limit + 1)
            .read_to_end(&mut content)
            .map_err(|error| self.interrupted(&error))?;
        if content.len() as u64 > limit {
            let what = format!("a document of {}", self.reference);
            return Err(Error::TooLarge {
                what,
                limit,
                unit: "bytes",
            }
            .into());
        }
        Ok((content, claimed))
    }

    /// Sends a GET below `/v2/REPOSITORY/`, answers challenges and follows
    /// redirects. Any final status is returned.
    fn get(&self, path: &str, accept: &str, offset: u64) -> Result<Response<Body>, Failure> {
        let Origin { scheme, .. } = &self.origin;
        let repository = self.reference.repository();
        let url = format!(
            "{scheme}://{}/v2/{repository}/{path}",
            self.reference.registry_host()
        );
        let mut uri: Uri = url
            .parse()
            .map_err(|_| self.broke("its name makes no address"))?;
        let mut left_home = false;
        let mut challenged = false;
        let mut redirects = 0;
        loop {
            let sent = if left_home {
                None
            } else {
                self.current_authorization()
            };
            let agent = if left_home {
                &self.transport.guarded
            } else {
                &self.transport.direct
            };
            let response = self.send(agent, &uri, accept, offset, sent.as_deref())?;
            let status = response.status();
            if status == StatusCode::UNAUTHORIZED && !left_home && !challenged {
                challenged = true;
                if !self.authorize(&response, sent.as_deref())? {
                    return Err(self.refusal(response));
                }
            } else if status.is_redirection() && status != StatusCode::NOT_MODIFIED {
                redirects += 1;
                if redirects > MAX_REDIRECTS {
                    return Err(self.broke("it redirects too often").into());
                }
                uri = self.redirect(&uri, &response)?;
                left_home |= Origin::of(&uri).as_ref() != Some(&self.origin);
            } else {
                return Ok(response);
            }
        }
    }

    fn send(
        &self,
        agent: &Agent,
        uri: &Uri,
        accept: &str,
        offset: u64,
        authorization: Option<&str>,
    ) -> Result<Response<Body>, Failure> {
        let mut request = agent.get(uri).header("Accept", accept);
        if offset > 0 {
            request = request.header(RANGE, format!("bytes={offset}-"));
        }
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        request.call().map_err(|error| self.failed(uri, error))
    }

    /// Where a redirect leads, if it may.
    fn redirect(&self, from: &Uri, response: &Response<Body>) -> Result<Uri> {
        let location = response
            .headers()
            .get(LOCATION)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let refused = |reason: &str| Error::Redirect {
            registry: self.name.clone(),
            target: printable(location.split(['?', '#']).next().unwrap_or_default()),
            reason: reason.to_owned(),
        };
        let absolute =
            if let (Some(rest), Some(scheme)) = (location.strip_prefix("//"), from.scheme_str()) {
                format!("{scheme}://{rest}")
            } else if location.starts_with('/') {
                let authority = from.authority().map_or("", |authority| authority.as_str());
                format!(
                    "{}://{authority}{location}",
                    from.scheme_str().unwrap_or("https")
                )
            } else {
                location.to_owned()
            };
        let target: Uri = absolute
            .parse()
            .map_err(|_| refused("that is no address"))?;
        let origin = Origin::of(&target).ok_or_else(|| refused("that is no HTTP address"))?;
        if origin.is_plain() && from.scheme_str() == Some("https") {
            return Err(refused("it would leave HTTPS"));
        }
        Ok(target)
    }

    fn current_authorization(&self) -> Option<String> {
        self.authorization
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }

    /// Answers a challenge; false if there is nothing better to send than
    /// what was refused.
    fn authorize(&self, response: &Response<Body>, refused: Option<&str>) -> Result<bool, Failure> {
        let mut current = self
            .authorization
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if current.as_deref() != refused {
            return Ok(true); // another thread has been given a new one meanwhile
        }
        let headers = response.headers().get_all(WWW_AUTHENTICATE);
        let mut challenges = headers
            .iter()
            .filter_map(|value| challenge::parse(value.to_str().ok()?));
        let answer = match challenges.next() {
            Some(challenge) => token::answer(self, &challenge)?,
            None => None,
        };
        let useful = answer.is_some() && answer.as_deref() != refused;
        *current = answer;
        Ok(useful)
    }

    /// Turns a final status that is not success into an error.
    fn refusal(&self, response: Response<Body>) -> Failure {
        let status = response.status();
        let message = message(response, self.patience);
        let registry = self.name.clone();
        let reference = self.reference.to_string();
        let error = match status {
            StatusCode::NOT_FOUND => Error::UnknownImage {
                registry,
                reference,
                message,
            },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Error::Denied {
                registry,
                reference,
                message,
                authenticated: self.login.is_some(),
            },
            _ => {
                let message = if message.is_empty() {
                    String::new()
                } else {
                    format!(": {message}")
                };
                Error::Registry {
                    registry,
                    reason: format!("it answers {status}{message}"),
                }
            }
        };
        let transient = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
        Failure { error, transient }
    }

    fn broke(&self, reason: &str) -> Error {
        Error::Registry {
            registry: self.name.clone(),
            reason: reason.to_owned(),
        }
    }

    fn interrupted(&self, cause: &std::io::Error) -> Failure {
        let error = Error::Registry {
            registry: self.name.clone(),
            reason: format!("the transfer broke off: {cause}"),
        };
        // Whoever is as slow as that once is so again.
        let transient = !is_too_slow(cause);
        Failure { error, transient }
    }

    /// Turns a request that got no answer into an error.
    fn failed(&self, uri: &Uri, error: ureq::Error) -> Failure {
        let target = Origin::of(uri).map_or_else(String::new, |origin| {
            format!("{}:{}", origin.host, origin.port)
        });
        let at_home = Origin::of(uri).as_ref() == Some(&self.origin);
        let peer = if at_home {
            self.name.clone()
        } else {
            format!("{} (which sends us to {target})", self.name)
        };
        let unreachable = |reason: String| Error::Unreachable {
            registry: peer.clone(),
            reason,
        };
        match error {
            ureq::Error::Other(other) if other.is::<Refused>() => {
                let reason = other.to_string();
                Error::Redirect {
                    registry: self.name.clone(),
                    target,
                    reason,
                }
                .into()
            }
            ureq::Error::Rustls(error) => Error::Tls {
                registry: peer,
                reason: error.to_string(),
            }
            .into(),
            ureq::Error::Tls(reason) => Error::Tls {
                registry: peer,
                reason: reason.to_owned(),
            }
            .into(),
            ureq::Error::HostNotFound => unreachable("no such host".to_owned()).into(),
            ureq::Error::Io(error) => {
                use std::io::ErrorKind::{ConnectionRefused, InvalidData};
                match error.kind() {
                    ConnectionRefused => {
                        unreachable(format!("connection refused at {target}")).into()
                    }
                    InvalidData => Error::Tls {
                        registry: peer,
                        reason: error.to_string(),
                    }
                    .into(),
                    _ => Failure {
                        error: unreachable(error.to_string()),
                        transient: true,
                    },
                }
            }
            error @ ureq::Error::Timeout(_) => Failure {
                error: unreachable(error.to_string()),
                transient: true,
            },
            error => {
                let error = Error::Registry {
                    registry: peer,
                    reason: error.to_string(),
                };
                Failure {
                    error,
                    transient: true,
                }
            }
        }
    }
}

impl Source for Registry {
    fn open(&self, layer: &Layer, offset: u64) -> Result<Box<dyn Read + Send + '_>, Failure> {
        let Some(digest) = layer.digest else {
            return Err(self.broke("a layer has no digest").into());
        };
        let response = self.get(&format!("blobs/{digest}"), "*/*", offset)?;
        let status = response.status();
        let skip = match status {
            StatusCode::PARTIAL_CONTENT if offset > 0 && starts_at(&response, offset) => 0,
            // It does not resume: what we have is read again and dropped.
            StatusCode::OK => offset,
            StatusCode::PARTIAL_CONTENT => {
                return Err(self.broke("it answers with another range").into());
            }
            StatusCode::NOT_FOUND => {
                return Err(self
                    .broke(&format!("it does not have {}", layer.name()))
                    .into());
            }
            _ => return Err(self.refusal(response)),
        };
        let mut body = Paced::new(response.into_body().into_reader(), self.patience);
        let skipped = std::io::copy(&mut body.by_ref().take(skip), &mut std::io::sink());
        skipped.map_err(|error| self.interrupted(&error))?;
        Ok(Box::new(body))
    }

    fn broken(&self, _layer: &Layer, error: std::io::Error) -> Failure {
        self.interrupted(&error)
    }
}

/// Whether a partial answer begins where it was asked to.
fn starts_at(response: &Response<Body>, offset: u64) -> bool {
    let header = response
        .headers()
        .get("content-range")
        .and_then(|value| value.to_str().ok());
    header.is_some_and(|range| range.starts_with(&format!("bytes {offset}-")))
}

/// Checks content against its descriptor.
pub(crate) fn check(what: &str, content: &[u8], wanted: &Descriptor) -> Result<()> {
    let (expected, got) = (wanted.size, content.len() as u64);
    if expected != got {
        return Err(Error::WrongSize {
            what: what.to_owned(),
            expected,
            got,
        });
    }
    let (expected, got) = (wanted.digest, Digest::of(content));
    if expected != got {
        return Err(Error::WrongDigest {
            what: what.to_owned(),
            expected,
            got,
        });
    }
    Ok(())
}

/// What the registry says about a failure, fit for a terminal.
fn message(mut response: Response<Body>, patience: Duration) -> String {
    #[derive(serde::Deserialize)]
    struct Errors {
        errors: Vec<Item>,
    }
    #[derive(serde::Deserialize)]
    struct Item {
        #[serde(default)]
        message: String,
    }
    let mut text = Vec::new();
    let _ = Paced::new(response.body_mut().as_reader(), patience)
        .take(MAX_ERROR_BODY)
        .read_to_end(&mut text);
    let errors: Option<Errors> = serde_json::from_slice(&text).ok();
    printable(
        &errors
            .and_then(|errors| errors.errors.into_iter().next())
            .map_or_else(String::new, |item| item.message),
    )
}

fn printable(text: &str) -> String {
    text.chars()
        .filter(|character| !character.is_control())
        .take(MAX_ERROR_SHOWN)
        .collect()
}
