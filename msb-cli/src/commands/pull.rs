//! `msb pull`.

use msb_sdk::{Home, Images, PullPolicy};

use crate::Failure;
use crate::args::PullArgs;
use crate::progress::Display;
use crate::terminal;

/// Fetches or imports one image.
pub(crate) async fn run(args: PullArgs) -> Result<u8, Failure> {
    let images = Images::open(&Home::from_env()?)?;
    let display = Display::new(&args.image, args.quiet);
    let shown = display.clone();
    let image = match &args.from {
        Some(path) => {
            images
                .import(path, &args.image, move |event| shown.pull(&event))
                .await
        }
        None => {
            images
                .pull(&args.image, PullPolicy::Always, move |event| {
                    shown.pull(&event);
                })
                .await
        }
    };
    display.finish();
    let image = image?;
    if !args.quiet {
        terminal::say(&image.digest().to_string())?;
    }
    Ok(0)
}
