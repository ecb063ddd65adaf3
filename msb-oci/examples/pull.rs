//! Pulls an image and unpacks it into a directory:
//!
//! ```text
//! cargo run -p msb-oci --example pull -- [--store DIR] REF [DEST]
//! ```

use std::path::PathBuf;
use std::process::ExitCode;

use msb_oci::{Credentials, PullEvent, PullOptions, PullPolicy, Reference, Store, unpack};

const HELP: &str = "\
Pulls a container image from its registry and unpacks it into a directory.

Usage: pull [--store DIR] [--always] REF [DEST]

  REF            image reference, such as localhost:5000/python:3.11
  DEST           directory to unpack to; without it the image is only pulled
  --store DIR    keep the image in a store there (default: a temporary one)
  --always       ask the registry even if the store has the image

Credentials are taken from $DOCKER_CONFIG/config.json or ~/.docker/config.json.
Exit status: 0 done, 1 refused or failed, 2 wrong usage.";

struct Arguments {
    reference: String,
    destination: Option<PathBuf>,
    store: Option<PathBuf>,
    policy: PullPolicy,
}

fn arguments() -> Option<Arguments> {
    let mut positional = Vec::new();
    let mut store = None;
    let mut policy = PullPolicy::Missing;
    let mut words = std::env::args_os().skip(1);
    while let Some(word) = words.next() {
        match word.to_str() {
            Some("--store") => store = Some(PathBuf::from(words.next()?)),
            Some("--always") => policy = PullPolicy::Always,
            Some(option) if option.starts_with('-') => return None,
            _ => positional.push(word),
        }
    }
    let mut positional = positional.into_iter();
    let reference = positional.next()?.into_string().ok()?;
    let destination = positional.next().map(PathBuf::from);
    positional.next().is_none().then_some(Arguments {
        reference,
        destination,
        store,
        policy,
    })
}

fn docker_config() -> Option<PathBuf> {
    let directory = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".docker"));
    directory
        .or_else(home)
        .map(|directory| directory.join("config.json"))
}

fn main() -> ExitCode {
    let Some(arguments) = arguments() else {
        eprintln!("{HELP}");
        return ExitCode::from(2);
    };
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            if let Some(hint) = error
                .downcast_ref::<msb_oci::Error>()
                .and_then(msb_oci::Error::hint)
            {
                eprintln!("hint: {hint}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let reference: Reference = arguments.reference.parse()?;
    let mut temporary = None;
    let store = match &arguments.store {
        Some(directory) => Store::open(directory)?,
        None => Store::open(temporary.insert(tempfile::tempdir()?).path())?,
    };
    let credentials = docker_config().map_or(Credentials::Anonymous, Credentials::DockerConfig);
    let options = PullOptions {
        credentials,
        policy: arguments.policy,
        ..PullOptions::default()
    };
    let image = store.pull(&reference, &options, &|event| match event {
        PullEvent::LayerProgress { .. } => {}
        event => eprintln!("{event:?}"),
    })?;
    println!("{} {} bytes", image.digest(), image.size());
    if let Some(destination) = &arguments.destination {
        let _lease = image.lease()?;
        let summary = unpack::unpack(destination, &image.unpack_sources()?)?;
        println!("{summary:?}");
    }
    Ok(())
}
