//! Describing a sandbox, and waiting until it is there.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::sandbox::Sandbox;
use super::wait;
use crate::error::Error;
use crate::{
    EngineKind, Home, Isolation, NetworkLimits, NetworkPolicy, Patch, Progress, PullPolicy,
    SandboxSpec, Secret,
};

/// Describes a sandbox; see [`SandboxBuilder`](crate::SandboxBuilder), from which it can also
/// be made.
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until create is called"]
pub struct SandboxBuilder {
    inner: crate::SandboxBuilder,
}

impl From<crate::SandboxBuilder> for SandboxBuilder {
    fn from(inner: crate::SandboxBuilder) -> Self {
        Self { inner }
    }
}

impl SandboxBuilder {
    super::settings! {
        SandboxBuilder:
        image(reference: impl Into<String>);
        cpus(count: u8);
        memory_mib(mib: u32);
        disk_mib(mib: u32);
        env(key: impl Into<String>, value: impl Into<String>);
        workdir(path: impl Into<String>);
        user(user: impl Into<String>);
        network(policy: NetworkPolicy);
        network_limits(limits: NetworkLimits);
        resolver(server: SocketAddr);
        secret(secret: Secret);
        tls_passthrough(host: impl Into<String>);
        tls_authority(file: impl Into<PathBuf>);
        port(host: u16, guest: u16);
        publish(ports: impl Into<String>);
        patch(patch: Patch);
        script(name: impl Into<String>, text: impl Into<String>);
        pull(policy: PullPolicy);
        min_isolation(level: Isolation);
        engine(engine: EngineKind);
        home(home: Home);
        capture(file: impl Into<PathBuf>);
        keep(keep: bool);
        on_progress(callback: impl Fn(Progress) + Send + Sync + 'static);
    }

    /// See [`SandboxBuilder::tls_intercept_all`](crate::SandboxBuilder::tls_intercept_all).
    pub fn tls_intercept_all(self) -> Self {
        self.inner.tls_intercept_all().into()
    }

    /// See [`SandboxBuilder::command`](crate::SandboxBuilder::command).
    pub fn command<W: Into<String>>(self, words: impl IntoIterator<Item = W>) -> Self {
        self.inner.command(words).into()
    }

    /// What has been described so far.
    #[must_use]
    pub fn spec(&self) -> &SandboxSpec {
        self.inner.spec()
    }

    /// As [`SandboxBuilder::create`], of a sandbox that lives on.
    ///
    /// # Errors
    /// As [`SandboxBuilder::create_detached`](crate::SandboxBuilder::create_detached).
    pub fn create_detached(self) -> Result<Sandbox, Error> {
        wait(self.inner.create_detached()).map(Sandbox::from)
    }

    /// Fetches the image if need be, starts the sandbox, and returns when programs can be run
    /// in it.
    ///
    /// # Errors
    /// As [`SandboxBuilder::create`](crate::SandboxBuilder::create).
    pub fn create(self) -> Result<Sandbox, Error> {
        wait(self.inner.create()).map(Sandbox::from)
    }
}
