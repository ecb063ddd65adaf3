//! What the user typed, as typed. Plans are made in `commands`.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

mod exec;
mod host;
mod image;
mod life;
mod snapshot;
mod watch;

pub(crate) use self::exec::{BoundsArgs, TerminalArgs};
pub(crate) use self::host::{
    CompletionArgs, CompletionCommand, DoctorArgs, InstallArgs, SelfArgs, SelfCommand,
    UninstallArgs,
};
pub(crate) use self::image::{ImageArgs, ImageCommand, ImageLsArgs, ImageRmArgs, PullArgs};
pub(crate) use self::life::{
    AttachArgs, CpArgs, CreateArgs, ExecArgs, InspectArgs, ListArgs, LogsArgs, LsArgs, NamesArgs,
    PsArgs, ReplaceArgs, RestartArgs, RmArgs, ShellArgs, StartArgs, StopArgs,
};
pub(crate) use self::snapshot::{ForkArgs, SnapshotArgs, SnapshotCommand};
pub(crate) use self::watch::{EventKindArg, EventsArgs, MetricsArgs, TopArgs};
use crate::size::parse_mebibytes;

/// Run container images in microVMs: no server, no daemon, no root.
#[derive(Debug, Parser)]
#[command(
    name = "msb",
    bin_name = "msb",
    version,
    propagate_version = true,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "\
Examples:
  msb run python:3.12 -- python3 -c \"print('hello')\"
  msb run --name app -d -p 8080:80 nginx
  msb shell app
  msb image --tree"
)]
pub(crate) struct Args {
    /// Print all commands with their options; after a command, those of that one
    // Seen to before anything is parsed: a command would ask for its arguments.
    #[arg(long)]
    tree: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a program from an image in a new microVM
    ///
    /// Without CMD the image's own entrypoint and command run. The guest reaches
    /// public addresses, and neither this host nor its networks, unless the
    /// network flags say otherwise.
    Run(Box<RunArgs>),
    /// Make a sandbox and start it in the background
    Create(Box<CreateArgs>),
    /// Run a program in a sandbox that runs
    Exec(ExecArgs),
    /// Copy files and folders into a sandbox that runs, or out of it
    #[command(visible_alias = "copy")]
    Cp(CpArgs),
    /// Open a shell in a sandbox that runs
    #[command(visible_alias = "sh")]
    Shell(ShellArgs),
    /// Come back to a program that was let go of with the detach keys
    Attach(AttachArgs),
    /// Start sandboxes that are stopped; their files are as they were left
    Start(StartArgs),
    /// Stop sandboxes in order
    Stop(StopArgs),
    /// Stop sandboxes in order and start them again
    Restart(RestartArgs),
    /// Stop sandboxes at once
    #[command(after_help = "\
Example:
  msb kill app")]
    Kill(NamesArgs),
    /// Hold sandboxes: nothing in them runs, and they keep their memory
    #[command(after_help = "\
Example:
  msb pause app")]
    Pause(NamesArgs),
    /// Let sandboxes go on that were paused
    #[command(after_help = "\
Example:
  msb resume app")]
    Resume(NamesArgs),
    /// Make sandboxes that go on from where one is
    Fork(ForkArgs),
    /// Save sandboxes while they run, and list or remove what was saved
    Snapshot(SnapshotArgs),
    /// Remove sandboxes and their files
    #[command(visible_alias = "remove")]
    Rm(RmArgs),
    /// List sandboxes
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    /// List sandboxes that run, or those that are named
    #[command(visible_alias = "status")]
    Ps(PsArgs),
    /// Tell everything about sandboxes, as JSON
    Inspect(InspectArgs),
    /// Print what the program of a detached sandbox wrote
    Logs(LogsArgs),
    /// Tell what sandboxes use: processor, memory, disk, network
    Metrics(MetricsArgs),
    /// Tell what happens to sandboxes and in them, as it happens
    Events(EventsArgs),
    /// List the processes of a sandbox
    Top(TopArgs),
    /// Fetch an image from a registry, or import it from an archive
    Pull(PullArgs),
    /// List, show, remove, save and load images
    Image(ImageArgs),
    /// The same as `msb image ls`
    #[command(hide = true)]
    Images(ImageLsArgs),
    /// The same as `msb image rm`
    #[command(hide = true)]
    Rmi(ImageRmArgs),
    /// Check what a network policy does, without a sandbox
    Policy(PolicyArgs),
    /// Say what works on this host, what does not, and why
    Doctor(DoctorArgs),
    /// Make a command that opens a sandbox
    Install(Box<InstallArgs>),
    /// Remove commands that `msb install` made
    Uninstall(UninstallArgs),
    /// Print the JSON Schema of sandbox files
    #[command(after_help = "\
Example:
  msb schema > sandbox.schema.json")]
    Schema,
    /// Print what a shell needs to complete commands, or write manual pages
    Completion(CompletionArgs),
    /// Things about msb itself
    #[command(name = "self")]
    Own(SelfArgs),
}

/// Arguments of `msb run`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit codes: the program's own; 124 its --timeout was up, 125 msb failed, 126 not executable, 127 not found,
128+N ended by signal N.

Examples:
  msb run python:3.12 -- python3 -c \"print('hello')\"
  msb run debian -- bash
  echo data | msb run busybox -- wc -c
  msb run -m 1G -c 2 -e MODE=test -w /app myimage
  msb run --name app -d -p 8080:80 nginx
  msb run -f sandbox.yaml -m 2G -- make test
  msb run --net none --net-rule \"allow tcp 443 api.github.com\" --net-log - debian -- bash")]
pub(crate) struct RunArgs {
    /// Name of the sandbox, which is kept when it ends unless --rm is given
    #[arg(short = 'n', long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Leave it running in the background, and print its name
    #[arg(short = 'd', long, conflicts_with_all = ["interactive", "tty", "no_tty", "net_log", "timeout", "ulimit"])]
    pub(crate) detach: bool,
    /// Remove the sandbox when it ends
    #[arg(long)]
    pub(crate) rm: bool,
    #[command(flatten)]
    pub(crate) replace: ReplaceArgs,
    #[command(flatten)]
    pub(crate) terminal: TerminalArgs,
    #[command(flatten)]
    pub(crate) bounds: BoundsArgs,
    #[command(flatten)]
    pub(crate) sandbox: SandboxArgs,
    /// Go on from a snapshot instead of starting from an image; its settings are those of what was saved
    #[arg(long, value_name = "SNAPSHOT", conflicts_with_all = [
        "cpus", "memory", "workdir", "user", "disk", "pull", "min_isolation", "engine", "rm",
        "net", "no_net", "net_rule", "policy", "block_domain", "dns", "upload", "download", "opens", "pcap",
        "tls_intercept", "tls_passthrough", "tls_ca", "file", "replace", "replace_with_timeout",
    ])]
    pub(crate) from_snapshot: Option<String>,
    /// Image instead of the one that the file names
    #[arg(long = "image", value_name = "IMAGE", requires = "file")]
    pub(crate) other_image: Option<String>,
    /// Image reference, such as python:3.12 or localhost:5000/app@sha256:…; left out with --file
    #[arg(required_unless_present_any = ["from_snapshot", "file"])]
    pub(crate) image: Option<String>,
    /// Program and arguments to run instead of the image's own
    #[arg(trailing_var_arg = true, value_name = "CMD")]
    pub(crate) command: Vec<std::ffi::OsString>,
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
}

/// What a new sandbox is like, but for its network.
#[derive(Debug, clap::Args)]
pub(crate) struct SandboxArgs {
    /// Take settings from this file (YAML); other flags go ahead of it. `msb schema` has its keys
    #[arg(short = 'f', long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// Virtual CPUs; 1 unless said
    #[arg(short = 'c', long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    pub(crate) cpus: Option<u8>,
    /// Memory, with unit; 512M unless said
    #[arg(short = 'm', long, value_name = "SIZE", value_parser = parse_mebibytes)]
    pub(crate) memory: Option<u32>,
    /// Set an environment variable; KEY alone takes the value from here
    #[arg(short = 'e', long, value_name = "KEY=VALUE")]
    pub(crate) env: Vec<String>,
    /// Working folder in the guest
    #[arg(short = 'w', long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// User in the guest: a name or id, optionally with :GROUP
    #[arg(short = 'u', long, value_name = "USER")]
    pub(crate) user: Option<String>,
    /// Keep what the guest writes on a disk of this size instead of in its memory
    #[arg(long, value_name = "SIZE", value_parser = parse_mebibytes)]
    pub(crate) disk: Option<u32>,
    /// When to ask the registry
    #[arg(long, value_name = "WHEN", default_value = "missing")]
    pub(crate) pull: PullArg,
    /// Refuse to start with weaker isolation than this
    #[arg(long, value_name = "LEVEL")]
    pub(crate) min_isolation: Option<IsolationArg>,
    /// Engine to run on, instead of the best that this host can run
    #[arg(long, value_name = "ENGINE")]
    pub(crate) engine: Option<EngineArg>,
    /// Print nothing but the program's output and errors
    #[arg(short = 'q', long)]
    pub(crate) quiet: bool,
}

/// The network flags of `msb run`.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Network")]
pub(crate) struct NetworkArgs {
    /// What the guest may reach where no rule says otherwise; public-only unless said
    #[arg(long, value_name = "PRESET")]
    pub(crate) net: Option<NetArg>,
    /// The same as --net none
    #[arg(long, alias = "no-network", conflicts_with_all = ["net", "policy"])]
    pub(crate) no_net: bool,
    /// Add a rule, such as "deny tcp 25" or "allow tcp 80,443 suffix debian.org"
    ///
    /// May be given several times; the first rule that matches decides. The
    /// destination is "any", an address, a block (10.0.0.0/8), a group (public,
    /// private, loopback, link-local, metadata, multicast, host), a name, or
    /// "suffix" and a name.
    #[arg(long, value_name = "RULE")]
    pub(crate) net_rule: Vec<String>,
    /// Take preset, rules and blocked names from a file; --net-rule comes ahead of it
    #[arg(long, value_name = "FILE", conflicts_with = "net")]
    pub(crate) policy: Option<PathBuf>,
    /// Deny a name and all names below it, ahead of every rule
    #[arg(long, value_name = "SUFFIX")]
    pub(crate) block_domain: Vec<String>,
    /// Ask this server for names instead of the host's; ADDRESS or ADDRESS:PORT
    #[arg(long, value_name = "ADDRESS", value_parser = parse_resolver)]
    pub(crate) dns: Vec<SocketAddr>,
    /// Offer a port of the guest on this host: HOST:GUEST or BIND:HOST:GUEST, with /udp for UDP
    ///
    /// Only this host reaches it, unless BIND is another address, such as 0.0.0.0. Ports may
    /// be ranges (8000-8009:9000-9009); as HOST, 0 is any free port.
    #[arg(
        short = 'p',
        long = "publish",
        visible_alias = "port",
        value_name = "PORTS"
    )]
    pub(crate) publish: Vec<String>,
    /// Let programs use a secret that the guest does not have: NAME=SOURCE@HOST[,HOST…]
    ///
    /// The variable NAME of the guest holds a placeholder, which becomes the value in requests
    /// to the hosts and nowhere else. SOURCE is env:VARIABLE, file:PATH, cmd:COMMAND or stdin;
    /// a HOST with a dot in front stands for all names below it, too. Options may follow:
    /// header=NAME, method=NAME, path=PATH, prefix=TEXT, in=query, in=body, http=allow,
    /// elsewhere=block.
    #[arg(long, value_name = "SECRET")]
    pub(crate) secret: Vec<String>,
    /// Take all TLS connections apart, not only those that secrets and rules need
    #[arg(long, value_name = "WHICH")]
    pub(crate) tls_intercept: Option<TlsInterceptArg>,
    /// Leave TLS connections to this host alone; with a dot in front also to those below it
    #[arg(long, value_name = "HOST")]
    pub(crate) tls_passthrough: Vec<String>,
    /// Verify servers with the authorities of this PEM file, too
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_ca: Vec<PathBuf>,
    /// The most the guest may send each second, such as 2M
    #[arg(long, value_name = "SIZE", value_parser = crate::size::parse_bytes)]
    pub(crate) upload: Option<u64>,
    /// The most the guest may receive each second
    #[arg(long, value_name = "SIZE", value_parser = crate::size::parse_bytes)]
    pub(crate) download: Option<u64>,
    /// The most connections and datagram flows that may be opened each second
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) opens: Option<u32>,
    /// Write what the network decides to FILE, or to standard error if FILE is "-"
    #[arg(long, value_name = "FILE")]
    pub(crate) net_log: Option<PathBuf>,
    /// Write every frame of the guest's link to FILE, for Wireshark and its kin (pcapng)
    #[arg(long, value_name = "FILE")]
    pub(crate) pcap: Option<PathBuf>,
    /// Write the network's log as lines of JSON
    #[arg(long, requires = "net_log")]
    pub(crate) json: bool,
}

/// Reads a resolver's address; without a port it is that of the domain name system.
fn parse_resolver(text: &str) -> Result<SocketAddr, String> {
    let address = text.parse::<IpAddr>();
    let address = address.map(|address| SocketAddr::new(address, 53));
    address.or_else(|_| text.parse()).map_err(|_| {
        "it must be an IP address, optionally with a port (192.0.2.1:53, [2001:db8::1]:53)".into()
    })
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum NetArg {
    /// Public addresses; not this host, not private networks, not cloud metadata
    PublicOnly,
    /// Everything
    AllowAll,
    /// Nothing
    None,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum TlsInterceptArg {
    /// Those to every host
    All,
}

/// Arguments of `msb policy`.
#[derive(Debug, clap::Args)]
pub(crate) struct PolicyArgs {
    #[command(subcommand)]
    pub(crate) command: PolicyCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Run the "expect" lines of a policy file; exit code 1 when one does not hold
    #[command(after_help = "\
Example:
  msb policy check FILE")]
    Check {
        /// Policy file
        file: PathBuf,
    },
    /// Say which rule decides about a flow or a query, and why no earlier one does
    #[command(after_help = "\
Subjects:
  [in] tcp|udp PORT DESTINATION [at IP] [sni NAME|no-sni]
  icmp DESTINATION
  dns NAME

Example:
  msb policy explain FILE tcp 443 api.github.com")]
    Explain {
        /// Policy file
        file: PathBuf,
        /// Flow or query, as in an "expect" line
        #[arg(required = true, value_name = "SUBJECT")]
        subject: Vec<String>,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum PullArg {
    /// Only when the image is not here
    Missing,
    /// Always look for a newer one
    Always,
    /// Never
    Never,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum IsolationArg {
    /// A hypervisor on virtualization hardware
    Hardware,
    /// A processor emulated in software will do
    Emulated,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum EngineArg {
    /// libkrun; needs virtualization hardware
    Krun,
    /// QEMU, with or without it
    Qemu,
}

/// How everything about something is told.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum JsonArg {
    /// An array for programs, with indented lines for people
    Json,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum FormatArg {
    /// Columns for people
    Table,
    /// One JSON array for programs
    Json,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_definitions_hold_together() {
        super::Args::command().debug_assert();
    }

    #[test]
    fn every_command_has_an_example() {
        fn look(command: &mut clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            let leaf = command.get_subcommands().next().is_none();
            let help = command.render_long_help().to_string();
            assert!(!leaf || help.contains("\nExample"), "{path}:\n{help}");
            let inner = command.get_subcommands_mut();
            for inner in inner.filter(|inner| inner.get_name() != "help") {
                look(inner, &path);
            }
        }
        look(&mut super::Args::command(), "");
    }

    #[test]
    fn help_says_what_the_guest_reaches() {
        let mut command = super::Args::command();
        let help = command
            .find_subcommand_mut("run")
            .expect("run")
            .render_long_help()
            .to_string();
        let words = help.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(
            words.contains("The guest reaches public addresses"),
            "{help}"
        );
        assert!(words.contains("--net-rule"), "{help}");
    }
}
