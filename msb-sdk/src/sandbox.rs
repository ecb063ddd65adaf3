//! A running sandbox.

use std::ffi::OsString;
use std::time::Duration;

use msb_guest_agent::message::Trouble;
use msb_oci::Image;
use tokio::sync::oneshot;

use crate::builder::SandboxBuilder;
use crate::control::{Ready, ToSupervisor};
use crate::error::Error;
use crate::exec::{ExecHandle, ExecOptions, Output};
use crate::fs::Fs;
use crate::home::Home;
use crate::link::{Ask, Link};
use crate::network::NetworkEvents;
use crate::port::{PortRequest, PublishedPort};
use crate::session::{Listed, Session, SessionId, SessionInfo};
use crate::spec::SandboxSpec;
use crate::trouble::explain;

/// How long programs have to end themselves when a sandbox is stopped: as long
/// as container tools give them.
pub(crate) const STOP_GRACE: Duration = Duration::from_secs(10);

/// So long after the grace an orderly end is given up: longer than what the supervisor
/// allows for flushing disks.
pub(crate) const STOP_LIMIT: Duration = Duration::from_secs(15);

/// A guest that runs. One from [`SandboxBuilder::create`] is owned by this process: it ends
/// when this is dropped, or when the process ends in whatever way, and in order if it is
/// [kept](SandboxBuilder::keep). Others are only talked to.
///
/// ```no_run
/// # async fn demo() -> Result<(), Box<dyn std::error::Error>> {
/// use msb_sdk::Sandbox;
///
/// let sandbox = Sandbox::builder("demo").image("python:3.12").create().await?;
/// let output = sandbox.exec("python3", ["-c", "print(6 * 7)"]).await?;
/// assert_eq!(output.stdout()?, "42\n");
/// sandbox.stop_and_wait().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Sandbox {
    pub(crate) home: Home,
    pub(crate) spec: SandboxSpec,
    pub(crate) image: Image,
    pub(crate) link: Link,
    pub(crate) report: StartReport,
    /// Whether it ends at once when its connection does.
    pub(crate) fleeting: bool,
}

impl Sandbox {
    /// Describes a sandbox; see [`SandboxBuilder`].
    pub fn builder(name: impl Into<String>) -> SandboxBuilder {
        SandboxBuilder::new(name.into())
    }

    /// What it was made from.
    #[must_use]
    pub fn spec(&self) -> &SandboxSpec {
        &self.spec
    }

    /// The image of its root.
    #[must_use]
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// Where its state lies.
    #[must_use]
    pub fn home(&self) -> &Home {
        &self.home
    }

    /// How it was started.
    #[must_use]
    pub fn report(&self) -> &StartReport {
        &self.report
    }

    /// Runs a program, waits for its end and collects its output. There is no
    /// shell in between.
    ///
    /// # Errors
    /// [`Error::Exec`] when the program does not start, and those of [`ExecHandle::output`].
    pub async fn exec<A: Into<OsString>>(
        &self,
        program: impl Into<OsString>,
        args: impl IntoIterator<Item = A>,
    ) -> Result<Output, Error> {
        self.exec_with(ExecOptions::new(program, args))
            .await?
            .output()
            .await
    }

    /// Runs a script in the image's shell: the one that it names, else `/bin/sh`.
    ///
    /// # Errors
    /// As [`Sandbox::exec`].
    pub async fn shell(&self, script: impl Into<OsString>) -> Result<Output, Error> {
        self.shell_stream(script).await?.output().await
    }

    /// Starts a script in the image's shell and returns a handle to it.
    ///
    /// # Errors
    /// As [`Sandbox::exec_with`].
    pub async fn shell_stream(&self, script: impl Into<OsString>) -> Result<ExecHandle, Error> {
        self.exec_with(self.shell_options(script)).await
    }

    /// The command line of a script in the image's shell, to be given more options.
    #[must_use]
    pub fn shell_options(&self, script: impl Into<OsString>) -> ExecOptions {
        let named = self.image.config().shell.iter().map(OsString::from);
        let mut words: Vec<OsString> = named.collect();
        if words.is_empty() {
            words = ["/bin/sh", "-c"].map(OsString::from).into();
        }
        words.push(script.into());
        let program = words.remove(0);
        ExecOptions::new(program, words)
    }

    /// The sandbox's files.
    #[must_use]
    pub fn fs(&self) -> Fs {
        Fs::new(self.link.clone())
    }

    /// The programs that were [let go of](ExecHandle::detach) and not come back to.
    ///
    /// # Errors
    /// [`Error::Gone`] when the sandbox has ended.
    pub async fn sessions(&self) -> Result<Vec<SessionInfo>, Error> {
        let (reply, answer) = oneshot::channel();
        self.link.ask(Ask::Sessions { reply });
        match answer.await {
            Ok(Ok(Session::List(listed))) => {
                Ok(listed.into_iter().map(Listed::into_info).collect())
            }
            Ok(Ok(_)) => Err(Error::gone("its supervisor said something else")),
            Ok(Err(failure)) => Err(failure.into()),
            Err(_) => Err(self.link.gone().await),
        }
    }

    /// Comes back to a program that was [let go of](ExecHandle::detach): what was kept of its
    /// output comes first. Dropping the handle kills the program, as that of any other.
    ///
    /// # Errors
    /// [`Error::Machine`] when there is none of this number, [`Error::Gone`] when the sandbox
    /// has ended.
    pub async fn attach(&self, id: SessionId) -> Result<ExecHandle, Error> {
        ExecHandle::attach(&self.link, id).await
    }

    /// Says what ran out or broke in it, in words that name what to do about it.
    #[must_use]
    pub fn explain(&self, trouble: &Trouble) -> String {
        explain(trouble, &self.spec, &self.home.sandboxes())
    }

    /// Starts a program and returns a handle to it.
    ///
    /// # Errors
    /// [`Error::Exec`] when the program does not start, [`Error::Gone`] when
    /// the sandbox has ended.
    pub async fn exec_with(&self, options: ExecOptions) -> Result<ExecHandle, Error> {
        ExecHandle::start(&self.link, options).await
    }

    /// Offers ports of the guest on this host from now on: `[BIND:]HOST:GUEST[/udp]`, as in
    /// [`SandboxBuilder::publish`]. Returns where the host listens for each of them.
    ///
    /// ```no_run
    /// # async fn demo(sandbox: msb_sdk::Sandbox) -> Result<(), msb_sdk::Error> {
    /// let ports = sandbox.publish("0:80").await?;
    /// println!("the guest's port 80 is at {}", ports[0].host);
    /// sandbox.unpublish(&ports[0]).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::PortTaken`] and [`Error::Port`] when the host cannot listen there; none of a
    /// range is offered then. [`Error::Network`] when the text makes no sense.
    pub async fn publish(&self, ports: impl AsRef<str>) -> Result<Vec<PublishedPort>, Error> {
        let ports: msb_net::publish::Publish = ports.as_ref().parse()?;
        let ports = ports.to_string();
        self.link.ports(PortRequest::Publish { ports }).await
    }

    /// Offers a port no longer: it is free again when this returns. Connections that are
    /// open go on.
    ///
    /// # Errors
    /// [`Error::NotPublished`] when it is not offered.
    pub async fn unpublish(&self, port: &PublishedPort) -> Result<(), Error> {
        let request = PortRequest::Unpublish { port: *port };
        self.link.ports(request).await.map(drop)
    }

    /// The ports that are published now.
    ///
    /// # Errors
    /// [`Error::Gone`] when the sandbox has ended.
    pub async fn ports(&self) -> Result<Vec<PublishedPort>, Error> {
        self.link.ports(PortRequest::List).await
    }

    /// What the network decides and does, since the sandbox's start. As much as a few
    /// thousand events wait until this is called; if there were more, an event says how many
    /// are missing.
    #[must_use]
    pub fn network_events(&self) -> NetworkEvents {
        let (watcher, events) = NetworkEvents::new();
        self.link.ask(Ask::WatchNetwork(watcher));
        events
    }

    /// The image's own command line: its entrypoint, then its command.
    ///
    /// # Errors
    /// [`Error::NoCommand`] when the image has neither.
    pub fn image_command(&self) -> Result<ExecOptions, Error> {
        let config = self.image.config();
        let mut words = config.entrypoint.iter().chain(&config.cmd);
        match words.next() {
            Some(program) => Ok(ExecOptions::new(program, words)),
            None => Err(Error::NoCommand {
                image: self.spec.image.clone(),
            }),
        }
    }

    /// Shuts the guest down in order: programs are asked to end and have ten
    /// seconds for it, disks are flushed. Returns when nothing is left of it.
    ///
    /// # Errors
    /// [`Error::Gone`] when it ended in another way first.
    pub async fn stop_and_wait(self) -> Result<(), Error> {
        self.stop_within(STOP_GRACE).await
    }

    /// As [`Sandbox::stop_and_wait`]; programs have `grace` to end themselves.
    ///
    /// # Errors
    /// As [`Sandbox::stop_and_wait`].
    pub async fn stop_within(self, grace: Duration) -> Result<(), Error> {
        stop(&self.link, grace, self.fleeting).await
    }

    /// Ends the guest at once. Returns when nothing is left of it.
    ///
    /// # Errors
    /// As [`Sandbox::stop_and_wait`].
    pub async fn kill(self) -> Result<(), Error> {
        kill(&self.link, self.fleeting).await
    }

    /// Waits until the sandbox ends by itself; says why it did.
    pub async fn wait(&self) -> String {
        self.link.ended().await.reason
    }
}

/// Ends a sandbox in order; see [`Sandbox::stop_within`].
pub(crate) async fn stop(link: &Link, grace: Duration, fleeting: bool) -> Result<(), Error> {
    let grace_ms = u32::try_from(grace.as_millis()).unwrap_or(u32::MAX);
    link.ask(Ask::Supervisor(ToSupervisor::Stop { grace_ms }));
    // A guest that hangs may keep even the request from arriving.
    let _ = tokio::time::timeout(grace + STOP_LIMIT, link.ended()).await;
    kill(link, fleeting).await
}

/// Ends a sandbox at once; see [`Sandbox::kill`].
pub(crate) async fn kill(link: &Link, fleeting: bool) -> Result<(), Error> {
    link.ask(if fleeting {
        Ask::HangUp
    } else {
        Ask::Supervisor(ToSupervisor::Kill)
    });
    let end = link.ended().await;
    if end.asked {
        Ok(())
    } else {
        Err(Error::gone(end.reason))
    }
}

/// How a sandbox was started: by what, and how long the parts took.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StartReport {
    /// The program that runs the machine, such as `qemu`.
    pub engine: String,
    /// What separates the guest from the host.
    pub isolation: msb_vmm::Isolation,
    /// Process id of the machine's monitor.
    pub vmm_pid: u32,
    /// From starting the monitor to the agent's first answer.
    pub agent: Duration,
    /// From there to a guest that is configured.
    pub configured: Duration,
    /// The ports that were published at the start; [`Sandbox::ports`] tells which are now.
    pub ports: Vec<PublishedPort>,
}

impl From<Ready> for StartReport {
    fn from(ready: Ready) -> Self {
        let isolation = if ready.hardware {
            msb_vmm::Isolation::Hardware
        } else {
            msb_vmm::Isolation::Emulated
        };
        Self {
            engine: ready.engine,
            isolation,
            vmm_pid: ready.vmm_pid,
            agent: ready.agent,
            configured: ready.configured,
            ports: ready.ports,
        }
    }
}
