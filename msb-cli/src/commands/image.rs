//! `msb image ls` and `msb image rm`.

use std::time::SystemTime;

use msb_sdk::{Home, Image, Images};
use serde_json::json;

use crate::Failure;
use crate::args::{FormatArg, ImageArgs, ImageCommand};
use crate::size::human;
use crate::table::{self, age};
use crate::terminal;

/// How much of a digest tells images apart for people.
const SHORT_DIGEST: usize = "sha256:".len() + 12;

/// Lists or removes.
pub(crate) async fn run(args: ImageArgs) -> Result<u8, Failure> {
    let images = Images::open(&Home::from_env()?)?;
    match args.command {
        ImageCommand::Ls {
            format: FormatArg::Table,
        } => table(&images.list().await?)?,
        ImageCommand::Ls {
            format: FormatArg::Json,
        } => json(&images.list().await?)?,
        ImageCommand::Rm {
            force,
            images: references,
        } => {
            for reference in &references {
                let freed = if force {
                    images.remove_needed(reference).await?
                } else {
                    images.remove(reference).await?
                };
                terminal::say(&format!("removed {reference}, {} freed", human(freed)))?;
            }
        }
    }
    Ok(0)
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
                "pulled": image.pulled().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs()),
                "layers": image.layers().iter().map(ToString::to_string).collect::<Vec<_>>(),
            })
        })
        .collect();
    terminal::say(&serde_json::Value::Array(list).to_string())
}
