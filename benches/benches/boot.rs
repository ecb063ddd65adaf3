//! How long until a guest answers, and until a program has run in one.
//!
//! The supervisor of the sandboxes made here is this program itself, as in any
//! program that embeds the SDK. `QEMU alone` is the peer: the same virtual
//! machine monitor started and ended without a guest, in the same run.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use msb_benches::conditions::Conditions;
use msb_benches::report::{self, Row, Unit};
use msb_benches::{floor, instructions, program};
use msb_guest_agent::setup;
use msb_sdk::{Home, Images, Sandbox};
use msb_vmm::{Engine, EngineOptions, Isolation, Machine, MemorySize, PortName, Vm};
use tempfile::TempDir;

const AGENT_PORT: &str = "msb.agent";

/// Guest memory of all measurements, the product's default.
const MEMORY_MIB: u64 = 512;

/// How the image is called in the bench's own store.
const IMAGE: &str = "bench/busybox:latest";

/// Goals under emulation and with virtualization hardware differ.
struct Goals {
    cold: f64,
    template: f64,
    first_exec: f64,
    run: f64,
    exec: f64,
}

const EMULATED: Goals = Goals {
    cold: 350.0,
    template: 60.0,
    first_exec: 150.0,
    run: 250.0,
    exec: 10.0,
};

/// The design sets no others for hardware; what holds emulated must hold here.
const HARDWARE: Goals = Goals {
    cold: 100.0,
    ..EMULATED
};

/// Goal for the cost of confining a VMM, in milliseconds.
const CONFINEMENT: f64 = 5.0;

/// Goal for a cold boot, in millions of guest instructions.
const INSTRUCTIONS: f64 = 50.0;

fn main() -> Result<()> {
    msb_sdk::supervisor_hook();
    let conditions = Conditions::look()?;
    program::require(&["qemu-system-x86_64"])?;
    let bench = Bench::prepare(&conditions)?;
    println!(
        "engine {}, isolation {}; {}",
        bench.engine.kind(),
        bench.engine.isolation(),
        bench.engine.kvm()
    );

    let mut rows = confinement(conditions.rounds(10, 200))?;
    rows.extend(bench.machines(conditions.rounds(3, 30))?);
    rows.extend(bench.sandboxes(conditions.rounds(3, 30), conditions.rounds(10, 300))?);
    rows.push(bench.runs(&conditions.msb()?, conditions.rounds(3, 30))?);
    rows.push(bench.instructions(conditions.rounds(1, 5))?);

    println!("\n{}", report::table(&rows));
    let mut described = conditions.json();
    described["engine"] = bench.engine.kind().to_string().into();
    described["isolation"] = bench.engine.isolation().to_string().into();
    report::write(&conditions.kept("boot.json"), &described, &rows)
}

/// What confining a VMM costs: a process that does nothing, with and without.
fn confinement(rounds: usize) -> Result<Vec<Row>> {
    let mut plain = Row::new("a process: start and end", Unit::Ms);
    let mut confined = Row::new("  the same, confined as a VMM is", Unit::Ms);
    let mut cost = Row::new("  cost of confinement", Unit::Ms).at_most(CONFINEMENT);
    for _ in 0..rounds {
        let begin = Instant::now();
        let mut command = Command::new("/bin/true");
        ensure!(command.env_clear().status()?.success(), "/bin/true failed");
        let alone = begin.elapsed();
        plain.push_time(alone);
        let begin = Instant::now();
        msb_vmm::examine_confinement()?;
        let all = begin.elapsed();
        confined.push_time(all);
        cost.push_time(all.saturating_sub(alone));
    }
    Ok(vec![plain, confined, cost])
}

/// What all measurements need.
struct Bench {
    engine: Engine,
    goals: &'static Goals,
    guest: PathBuf,
    layout: PathBuf,
    scratch: TempDir,
}

impl Bench {
    fn prepare(conditions: &Conditions) -> Result<Self> {
        let engine = Engine::choose(EngineOptions::default())?;
        let goals = match engine.isolation() {
            Isolation::Hardware => &HARDWARE,
            _ => &EMULATED,
        };
        Ok(Self {
            goals,
            engine,
            guest: conditions.guest()?,
            layout: conditions.image("busybox")?,
            scratch: conditions.scratch()?,
        })
    }

    /// The virtual machine alone: without a guest, booted, from a template.
    /// One of each in turn, so that a busy moment strikes all.
    fn machines(&self, rounds: usize) -> Result<Vec<Row>> {
        let machine = Machine {
            memory: MemorySize::from_mib(MEMORY_MIB)?,
            ports: vec![PortName::try_from(AGENT_PORT)?],
            ..Machine::new(
                self.guest.join("vmlinux"),
                self.guest.join("initramfs.cpio"),
            )
        };
        let templates = self
            .engine
            .templates(self.scratch.path().join("templates"))?;
        let ready = |mut agent: &std::os::unix::net::UnixStream| {
            setup::hello(&mut agent)?;
            setup::prepare(&mut agent, None)
        };
        templates.ensure(&machine, |_| (), ready)?;

        let mut floor = Row::new("QEMU alone: start and end, no guest", Unit::Ms);
        let mut cold =
            Row::new("cold boot to the agent's answer", Unit::Ms).at_most(self.goals.cold);
        let mut warm =
            Row::new("template start to the agent's answer", Unit::Ms).at_most(self.goals.template);
        let mut ratio = Row::new("  template start / cold boot", Unit::Ratio);
        let mut above = Row::new("  template start / QEMU alone", Unit::Ratio);
        for _ in 0..rounds {
            floor.push_time(floor::qemu_alone(&self.engine, MEMORY_MIB)?);
            cold.push_time(answered(|| self.engine.boot(&machine))?);
            warm.push_time(answered(|| {
                templates
                    .find(&machine)?
                    .ok_or(msb_vmm::Error::NoPort)?
                    .start(&machine)
            })?);
        }
        ratio.push(warm.median() / cold.median());
        above.push(warm.median() / floor.median());
        Ok(vec![floor, cold, warm, ratio, above])
    }

    /// Sandboxes by way of the SDK.
    fn sandboxes(&self, rounds: usize, execs: usize) -> Result<Vec<Row>> {
        let home = self.home()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            Images::open(&home)?
                .import(&self.layout, IMAGE, |_| ())
                .await?;
            // The first makes the template.
            create(&home).await?.kill().await?;
            let mut first = Row::new("create → first exec's result (SDK)", Unit::Ms)
                .at_most(self.goals.first_exec);
            let mut created = Row::new("  create", Unit::Ms);
            let mut agent = Row::new("  of it: template start to answer", Unit::Ms)
                .at_most(self.goals.template);
            let mut configured = Row::new("  of it: configuring the guest", Unit::Ms);
            for _ in 0..rounds {
                let begin = Instant::now();
                let sandbox = create(&home).await?;
                created.push_time(begin.elapsed());
                exec_true(&sandbox).await?;
                first.push_time(begin.elapsed());
                agent.push_time(sandbox.report().agent);
                configured.push_time(sandbox.report().configured);
                sandbox.kill().await?;
            }
            let mut exec = Row::new("exec of /bin/true in a running sandbox", Unit::Ms)
                .at_most(self.goals.exec);
            let sandbox = create(&home).await?;
            for _ in 0..execs {
                let begin = Instant::now();
                exec_true(&sandbox).await?;
                exec.push_time(begin.elapsed());
            }
            sandbox.kill().await?;
            Ok(vec![first, created, agent, configured, exec])
        })
    }

    /// The command as a user types it, image and template being there.
    fn runs(&self, msb: &Path, rounds: usize) -> Result<Row> {
        let home = self.home()?;
        let mut row = Row::new("msb run IMAGE -- /bin/true", Unit::Ms).at_most(self.goals.run);
        for round in 0..=rounds {
            let mut command = Command::new(msb);
            command
                .args(["run", "--pull=never", IMAGE, "--", "/bin/true"])
                .env("MSB_HOME", home.path())
                .env("MSB_GUEST", &self.guest);
            let begin = Instant::now();
            program::check(&mut command)?;
            // The first reads the program from the disk.
            if round > 0 {
                row.push_time(begin.elapsed());
            }
        }
        Ok(row)
    }

    fn instructions(&self, rounds: usize) -> Result<Row> {
        let mut row =
            Row::new("guest instructions of a cold boot", Unit::Millions).at_most(INSTRUCTIONS);
        for _ in 0..rounds {
            let count = instructions::until_answer(
                &self.guest.join("vmlinux"),
                &self.guest.join("initramfs.cpio"),
                1,
                u32::try_from(MEMORY_MIB)?,
                self.scratch.path(),
            )?;
            row.push(count as f64 / 1e6);
        }
        Ok(row)
    }

    /// A home of the bench's own, which knows the guest bundle also where
    /// `MSB_GUEST` is not set.
    fn home(&self) -> Result<Home> {
        let path = self.scratch.path().join("home");
        fs::create_dir_all(&path)?;
        let guest = path.join("guest");
        if !guest.exists() {
            symlink(&self.guest, &guest)?;
        }
        Ok(Home::at(path)?)
    }
}

/// Starts a machine and returns the time until its agent has answered.
fn answered(start: impl FnOnce() -> Result<Vm, msb_vmm::Error>) -> Result<std::time::Duration> {
    let begin = Instant::now();
    let mut vm = start()?;
    let mut agent = vm.take_port(AGENT_PORT).context("no agent port")?;
    setup::hello(&mut agent)?;
    let time = begin.elapsed();
    vm.kill()?;
    vm.wait()?;
    Ok(time)
}

async fn create(home: &Home) -> Result<Sandbox> {
    let builder = Sandbox::builder("bench").image(IMAGE).home(home.clone());
    Ok(builder.create().await?)
}

async fn exec_true(sandbox: &Sandbox) -> Result<()> {
    let no_args: [&str; 0] = [];
    let output = sandbox.exec("/bin/true", no_args).await?;
    if output.status().shell_code() != 0 {
        bail!("/bin/true ended with {:?}", output.status());
    }
    Ok(())
}
