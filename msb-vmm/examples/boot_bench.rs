//! Measures how long a guest takes to answer, booted and started from a template.
//!
//! ```text
//! MSB_GUEST=target/guest cargo run --release -p msb-vmm --example boot_bench -- [ROUNDS] [MIB]
//! ```

use std::error::Error;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use msb_vmm::{Engine, EngineKind, EngineOptions, Machine, MemorySize, PortName, Vm};

/// The agent protocol's frame "I speak version 1".
const HELLO: [u8; 11] = [7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1];

/// "Let go of the disks."
const PREPARE: [u8; 10] = [6, 0, 0, 0, 1, 0, 0, 0, 0, 1];

fn main() -> Result<(), Box<dyn Error>> {
    msb_vmm::runner_hook();
    let mut arguments = std::env::args().skip(1);
    let rounds: usize = arguments.next().map_or(Ok(20), |text| text.parse())?;
    let mib: u64 = arguments.next().map_or(Ok(512), |text| text.parse())?;
    let guest = PathBuf::from(std::env::var_os("MSB_GUEST").unwrap_or("target/guest".into()));
    let machine = Machine {
        memory: MemorySize::from_mib(mib)?,
        ports: vec![PortName::try_from("msb.agent")?],
        ..Machine::new(guest.join("vmlinux"), guest.join("initramfs.cpio"))
    };
    let engine = Engine::choose(EngineOptions::default())?;
    println!(
        "{} engine, {} guests of {mib} MiB; {}",
        engine.kind(),
        engine.isolation(),
        engine.kvm()
    );

    let folder = std::env::temp_dir().join(format!("msb-boot-bench-{}", std::process::id()));
    let outcome = measure(&engine, &machine, &folder, rounds);
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    outcome
}

fn measure(
    engine: &Engine,
    machine: &Machine,
    folder: &std::path::Path,
    rounds: usize,
) -> Result<(), Box<dyn Error>> {
    let mut cold = Table::default();
    for _ in 0..rounds.div_ceil(4) {
        cold.add(|| engine.boot(machine))?;
    }
    cold.print("cold boot");

    if engine.kind() == EngineKind::Krun {
        println!("no templates on this engine");
        return Ok(());
    }
    let templates = engine.templates(folder)?;
    let start = Instant::now();
    let mut steps = Vec::new();
    let ready = |mut port: &UnixStream| -> std::io::Result<()> {
        ask(&mut port, &HELLO)?;
        ask(&mut port, &PREPARE)
    };
    templates.ensure(machine, |step| steps.push((step, start.elapsed())), ready)?;
    println!("template made in {:.1?}: {steps:.1?}", start.elapsed());

    let mut warm = Table::default();
    for _ in 0..rounds {
        warm.add(|| {
            let template =
                templates.ensure(machine, |_| (), |_| Err::<(), _>("the template is gone"))?;
            template.start(machine)
        })?;
    }
    warm.print("from the template");
    Ok(())
}

/// Times from the request: until the machine was started, until its guest answered.
#[derive(Default)]
struct Table(Vec<[Duration; 2]>);

impl Table {
    fn add(
        &mut self,
        start: impl FnOnce() -> Result<Vm, msb_vmm::Error>,
    ) -> Result<(), Box<dyn Error>> {
        let begin = Instant::now();
        let mut vm = start()?;
        let started = begin.elapsed();
        let mut port = vm.take_port("msb.agent").ok_or("no port")?;
        ask(&mut port, &HELLO)?;
        self.0.push([started, begin.elapsed()]);
        vm.kill()?;
        vm.wait()?;
        Ok(())
    }

    fn print(&mut self, name: &str) {
        for (column, what) in ["machine runs", "guest answers"].into_iter().enumerate() {
            self.0.sort_by_key(|row| row[column]);
            let at =
                |part: usize| self.0[(self.0.len() - 1) * part / 10][column].as_secs_f64() * 1e3;
            println!(
                "{name}, {what}: median {:.1} ms, p90 {:.1} ms, least {:.1} ms",
                at(5),
                at(9),
                at(0)
            );
        }
    }
}

/// Sends a message and reads the answer.
fn ask(port: &mut (impl Read + Write), message: &[u8]) -> std::io::Result<()> {
    port.write_all(message)?;
    let mut length = [0; 4];
    port.read_exact(&mut length)?;
    let mut answer = vec![0; u32::from_le_bytes(length).min(1 << 16) as usize];
    port.read_exact(&mut answer)
}
