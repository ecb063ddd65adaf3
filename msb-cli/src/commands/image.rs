//! `msb image`: the images of this host.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use msb_sdk::{Home, Image, Images};
use serde_json::{Value, json};

use crate::args::{FormatArg, ImageCommand, ImageLsArgs, ImageRmArgs, JsonArg};
use crate::progress::Display;
use crate::size::human;
use crate::table::{self, age};
use crate::terminal;
use crate::{Failure, report};

/// How much of a digest tells images apart for people.
const SHORT_DIGEST: usize = "sha256:".len() + 12;

/// Lists, shows, removes, saves or loads.
pub(crate) async fn run(command: ImageCommand) -> Result<u8, Failure> {
    let images = Images::open(&Home::from_env()?)?;
    match command {
        ImageCommand::Ls(args) => list(&images.list().await?, &args)?,
        ImageCommand::Rm(args) => return remove(&images, &args).await,
        ImageCommand::Inspect {
            format: JsonArg::Json,
            images: references,
        } => {
            let mut list = Vec::new();
            for reference in &references {
                list.push(describe(&images.get(reference).await?));
            }
            terminal::say(&format!("{:#}", Value::Array(list)))?;
        }
        ImageCommand::Prune { yes, dry_run } => return prune(&images, yes, dry_run).await,
        ImageCommand::Load { quiet, input, file } => {
            load(&images, quiet, input.or(file)).await?;
        }
        ImageCommand::Save {
            output,
            images: references,
        } => save(&images, output, references).await?,
    }
    Ok(0)
}

fn list(images: &[Image], args: &ImageLsArgs) -> Result<(), Failure> {
    match args.format {
        _ if args.quiet => images
            .iter()
            .flat_map(Image::references)
            .try_for_each(|reference| terminal::say(&reference.to_string())),
        FormatArg::Table => table(images),
        FormatArg::Json => json(images),
    }
}

/// Removes what it can, and tells of the others.
async fn remove(images: &Images, args: &ImageRmArgs) -> Result<u8, Failure> {
    let mut code = 0;
    for reference in &args.images {
        let freed = if args.force {
            images.remove_needed(reference).await
        } else {
            images.remove(reference).await
        };
        match freed {
            Ok(_) if args.quiet => {}
            Ok(freed) => terminal::say(&format!("removed {reference}, {} freed", human(freed)))?,
            Err(error) => {
                let failure = error.into();
                report(&failure);
                code = failure.exit_code();
            }
        }
    }
    Ok(code)
}

/// Says what nobody needs, and removes it.
async fn prune(images: &Images, yes: bool, dry_run: bool) -> Result<u8, Failure> {
    let unused = images.unused().await?;
    if unused.images.is_empty() {
        terminal::say("every image is needed by a sandbox, or there is none")?;
        return Ok(0);
    }
    terminal::say("No sandbox needs:")?;
    for image in &unused.images {
        for reference in image.references() {
            terminal::say(&format!("  {reference}"))?;
        }
    }
    terminal::say(&format!("Removing them frees {}.", human(unused.bytes)))?;
    if dry_run {
        return Ok(0);
    }
    if !yes && !terminal::confirmed("to remove them all the same: `msb image prune -y`")? {
        terminal::complain("nothing was removed");
        return Ok(1);
    }
    let (gone, freed) = images.prune().await?;
    terminal::say(&format!(
        "removed {} names, {} freed",
        gone.len(),
        human(freed)
    ))?;
    Ok(0)
}

async fn load(images: &Images, quiet: bool, file: Option<PathBuf>) -> Result<(), Failure> {
    let file = file.filter(|file| file != Path::new("-"));
    let shown = file
        .as_ref()
        .map_or("standard input".into(), |file| file.display().to_string());
    let display = Display::new(&shown, quiet);
    let progress = display.clone();
    let progress = move |event| progress.pull(&event);
    let loaded = match file {
        Some(file) => images.load(&file, progress).await,
        None if terminal::stdin_is_terminal() => {
            return Err(Failure::Usage {
                message: "there is no archive: standard input is a terminal".into(),
                hint: Some("name a file: `msb image load images.tar`".into()),
            });
        }
        None => images.load_from(io::stdin(), progress).await,
    };
    display.finish();
    for image in loaded? {
        for reference in image.references() {
            if !quiet {
                terminal::say(&format!("loaded {reference}"))?;
            }
        }
    }
    Ok(())
}

async fn save(
    images: &Images,
    output: Option<PathBuf>,
    references: Vec<String>,
) -> Result<(), Failure> {
    let Some(path) = output.filter(|path| path != Path::new("-")) else {
        if terminal::stdout_is_terminal() {
            return Err(Failure::Usage {
                message: "an archive is not for a terminal".into(),
                hint: Some("name a file: `msb image save -o images.tar IMAGE`".into()),
            });
        }
        return Ok(images.save(references, io::stdout()).await?);
    };
    // Under its name there is only ever a whole archive.
    let failed = |source: &io::Error| Failure::Usage {
        message: format!("cannot write {}: {source}", path.display()),
        hint: (source.kind() == io::ErrorKind::NotFound)
            .then(|| "make the folder first, or name a file in another one".into()),
    };
    if fs::metadata(&path).is_ok_and(|found| !found.is_file()) {
        // A pipe or a device, which is not to be replaced.
        let file = File::options().write(true).open(&path);
        return Ok(images
            .save(references, file.map_err(|error| failed(&error))?)
            .await?);
    }
    let unfinished = unfinished(&path);
    let file = File::create(&unfinished).map_err(|error| failed(&error))?;
    let written = async {
        images.save(references, file).await?;
        fs::rename(&unfinished, &path).map_err(|error| failed(&error))
    };
    let written = written.await;
    if written.is_err() {
        let _ = fs::remove_file(&unfinished);
    }
    written
}

/// The name of a file until it is whole.
fn unfinished(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.part", std::process::id()));
    path.with_file_name(name)
}

/// All that is known of an image. Keys are added, never renamed.
fn describe(image: &Image) -> Value {
    let config = image.config();
    let layers: Vec<_> = image
        .layers()
        .iter()
        .zip(image.layer_sizes())
        .map(|(layer, size)| json!({"digest": layer.to_string(), "size": size}))
        .collect();
    json!({
        "references": image.references().iter().map(ToString::to_string).collect::<Vec<_>>(),
        "digest": image.digest().to_string(),
        "config_digest": image.config_digest().to_string(),
        "platform": config.platform().to_string(),
        "created": config.created,
        "pulled": seconds(image.pulled()),
        "size": image.size(),
        "layers": layers,
        "config": {
            "entrypoint": config.entrypoint,
            "cmd": config.cmd,
            "env": config.env,
            "user": config.user,
            "workdir": config.workdir,
            "shell": config.shell,
            "exposed_ports": config.exposed_ports,
            "volumes": config.volumes,
            "stop_signal": config.stop_signal,
            "labels": config.labels,
        },
    })
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}

fn table(images: &[Image]) -> Result<(), Failure> {
    let mut rows = vec![vec![
        "REFERENCE".to_owned(),
        "DIGEST".into(),
        "SIZE".into(),
        "PULLED".into(),
    ]];
    for image in images {
        let digest = image.digest().to_string();
        for reference in image.references() {
            rows.push(vec![
                reference.to_string(),
                digest[..SHORT_DIGEST.min(digest.len())].to_owned(),
                human(image.size()),
                age(image.pulled()),
            ]);
        }
    }
    table::print(&rows, &[2])
}

fn json(images: &[Image]) -> Result<(), Failure> {
    let list: Vec<_> = images
        .iter()
        .map(|image| {
            json!({
                "references": image.references().iter().map(ToString::to_string).collect::<Vec<_>>(),
                "digest": image.digest().to_string(),
                "size": image.size(),
                "pulled": seconds(image.pulled()),
                "layers": image.layers().iter().map(ToString::to_string).collect::<Vec<_>>(),
            })
        })
        .collect();
    terminal::say(&serde_json::Value::Array(list).to_string())
}
