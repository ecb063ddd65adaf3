//! How long until an image can be run, from a registry on this machine to an
//! empty home, and how much memory it takes.
//!
//! The peer is what other tools do for the same: `skopeo copy` into an OCI
//! layout and `umoci unpack` of it, of the same image, from the same registry,
//! in turn with ours. Where umoci does not know zstd, skopeo must convert the
//! layers; ours is then held against the peer's time for gzip, which is less.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use msb_benches::conditions::Conditions;
use msb_benches::large_image;
use msb_benches::program::{self, Cost};
use msb_benches::registry::{Compression, Registry};
use msb_benches::report::{self, Row, Unit};

/// Our time is to be at most this part of the peers'.
const RATIO: f64 = 0.3;

/// What the system that this one is measured by takes for such an image.
const LARGE_SECONDS: f64 = 4.7;
const LARGE_MIB: f64 = 250.0;

fn main() -> Result<()> {
    let conditions = Conditions::look()?;
    program::require(&[
        "docker-registry",
        "setpriv",
        "skopeo",
        "umoci",
        "time",
        "sync",
    ])?;
    let msb = conditions.msb()?;
    let scratch = conditions.scratch()?;
    let large = large_layout(&conditions)?;
    let images = [
        (
            "busybox",
            conditions.image("busybox")?,
            conditions.rounds(1, 7),
        ),
        (
            "python",
            conditions.image("python")?,
            conditions.rounds(1, 3),
        ),
        ("large", large.clone(), conditions.rounds(1, 3)),
    ];
    let registry = Registry::start(&conditions.kept("registry"), scratch.path())?;
    for (name, layout, _) in &images {
        serve(&conditions, &registry, name, layout, scratch.path())?;
    }
    let bench = Bench {
        msb,
        registry,
        scratch: scratch.path().to_owned(),
        rootless: !is_root(scratch.path())?,
    };

    let mut rows = Vec::new();
    for (name, _, rounds) in &images {
        println!("measuring {name} …");
        rows.extend(bench.image(name, *rounds)?);
    }
    println!("\n{}", report::table(&rows));
    report::write(&conditions.kept("image.json"), &conditions.json(), &rows)
}

struct Bench {
    msb: PathBuf,
    registry: Registry,
    scratch: PathBuf,
    rootless: bool,
}

/// What the peers took for an image.
struct Peers {
    skopeo: Cost,
    umoci: Cost,
}

impl Peers {
    fn wall(&self) -> Duration {
        self.skopeo.wall + self.umoci.wall
    }
}

impl Bench {
    /// All rows about one image.
    fn image(&self, name: &str, rounds: usize) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        let mut peers_gzip = f64::NAN;
        for compression in [Compression::Gzip, Compression::Zstd] {
            let kind = format!("{name}, {}", compression.name());
            let large = name == "large";
            let mut ours = Row::new(format!("{kind}: msb pull"), Unit::Seconds);
            let mut memory = Row::new(format!("{kind}: msb pull, peak memory"), Unit::Mib);
            if large {
                ours = ours.at_most(LARGE_SECONDS);
                memory = memory.at_most(LARGE_MIB);
            }
            let convert = compression == Compression::Zstd;
            let how = if convert { " (converting)" } else { "" };
            let mut skopeo = Row::new(format!("{kind}: skopeo copy{how}"), Unit::Seconds);
            let mut umoci = Row::new(format!("{kind}: umoci unpack"), Unit::Seconds);
            let mut both = Row::new(format!("{kind}: both"), Unit::Seconds);
            let mut their_memory = Row::new(format!("{kind}: either, peak memory"), Unit::Mib);
            for _ in 0..rounds {
                let cost = self.pull(name, compression)?;
                ours.push_time(cost.wall);
                memory.push(cost.peak_mib);
                let peers = self.peers(name, compression)?;
                skopeo.push_time(peers.skopeo.wall);
                umoci.push_time(peers.umoci.wall);
                both.push_time(peers.wall());
                their_memory.push(peers.skopeo.peak_mib.max(peers.umoci.peak_mib));
            }
            if !convert {
                peers_gzip = both.median();
            }
            let mut ratio =
                Row::new(format!("{kind}: msb / both, of gzip"), Unit::Ratio).at_most(RATIO);
            ratio.push(ours.median() / peers_gzip);
            rows.extend([ours, memory, skopeo, umoci, both, their_memory, ratio]);
        }
        Ok(rows)
    }

    /// `msb pull` into an empty home: afterwards the image can be run.
    fn pull(&self, name: &str, compression: Compression) -> Result<Cost> {
        let home = self.scratch.join("home");
        let mut command = Command::new(&self.msb);
        command
            .args(["pull", "--quiet"])
            .arg(self.registry.reference(name, compression))
            .env("MSB_HOME", &home);
        let cost = program::measure(&command, &self.scratch)?;
        self.clear(&home)?;
        Ok(cost)
    }

    fn peers(&self, name: &str, compression: Compression) -> Result<Peers> {
        let layout = self.scratch.join("layout");
        let bundle = self.scratch.join("bundle");
        let mut copy = Command::new("skopeo");
        copy.args([
            "copy",
            "--quiet",
            "--insecure-policy",
            "--src-tls-verify=false",
        ]);
        if compression == Compression::Zstd {
            copy.args(["--dest-compress", "--dest-compress-format=gzip"]);
        }
        let reference = self.registry.reference(name, compression);
        copy.arg(format!("docker://{reference}"));
        copy.arg(format!("oci:{}:latest", layout.display()));
        let skopeo = program::measure(&copy, &self.scratch)?;

        let mut unpack = Command::new("umoci");
        unpack.arg("unpack");
        if self.rootless {
            unpack.arg("--rootless");
        }
        unpack
            .arg("--image")
            .arg(format!("{}:latest", layout.display()));
        unpack.arg(&bundle);
        let umoci = program::measure(&unpack, &self.scratch)?;
        self.clear(&layout)?;
        self.clear(&bundle)?;
        Ok(Peers { skopeo, umoci })
    }

    /// Removes what a measurement has left, and lets the disk come to rest.
    fn clear(&self, dir: &Path) -> Result<()> {
        fs::remove_dir_all(dir)?;
        program::settle()
    }
}

/// Makes the large image where there is none of this version.
fn large_layout(conditions: &Conditions) -> Result<PathBuf> {
    let layout = conditions.kept("large");
    let stamp = layout.join("version");
    let version = large_image::VERSION.to_string();
    if fs::read_to_string(&stamp).is_ok_and(|found| found == version) {
        return Ok(layout);
    }
    println!("making the large image …");
    if layout.exists() {
        fs::remove_dir_all(&layout)?;
    }
    large_image::make(&layout)?;
    fs::write(stamp, version)?;
    Ok(layout)
}

/// Pushes an image, both ways compressed, unless the registry has it from an
/// earlier run.
fn serve(
    conditions: &Conditions,
    registry: &Registry,
    name: &str,
    layout: &Path,
    scratch: &Path,
) -> Result<()> {
    let stamp = conditions.kept(&format!("registry/{name}"));
    let index = fs::read_to_string(layout.join("index.json"))?;
    if fs::read_to_string(&stamp).is_ok_and(|found| found == index) {
        return Ok(());
    }
    for compression in [Compression::Gzip, Compression::Zstd] {
        println!("pushing {name}, {} …", compression.name());
        registry.push(layout, name, compression, scratch)?;
    }
    fs::write(stamp, index)?;
    program::settle()
}

/// Whether files made here belong to root, who may give them away as umoci does.
fn is_root(folder: &Path) -> Result<bool> {
    use std::os::unix::fs::MetadataExt;
    Ok(fs::metadata(folder)?.uid() == 0)
}
