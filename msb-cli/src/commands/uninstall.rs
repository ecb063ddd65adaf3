//! `msb uninstall`.

use msb_sdk::Home;

use crate::args::UninstallArgs;
use crate::{Failure, installed, terminal};

/// Removes commands and prints their names.
pub(crate) fn run(args: &UninstallArgs) -> Result<u8, Failure> {
    let home = Home::from_env()?;
    for name in &args.names {
        if installed::remove(&home, name)?.is_none() {
            terminal::complain(&format!(
                "the script of {name} was not there, or is not msb's"
            ));
        }
        terminal::say(name)?;
    }
    Ok(0)
}
