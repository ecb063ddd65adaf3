//! Runs a Python script in a microVM and prints what it prints.

use std::error::Error;

use msb_sdk::blocking::Sandbox;
use msb_sdk::{NetworkPolicy, Patch};

fn main() -> Result<(), Box<dyn Error>> {
    // First thing: a sandbox's supervisor is this program, started again.
    msb_sdk::supervisor_hook();

    let mut args = std::env::args().skip(1);
    let (Some(image), Some(script)) = (args.next(), args.next()) else {
        return Err("usage: embed IMAGE SCRIPT".into());
    };
    let sandbox = Sandbox::builder(format!("embed-{}", std::process::id()))
        .image(image)
        .network(NetworkPolicy::none())
        .patch(Patch::text("/app/script.py", script))
        .workdir("/app")
        .create()?;
    let output = sandbox.exec("python3", ["script.py"])?;
    print!("{}", output.stdout()?);
    eprint!("{}", output.stderr()?);
    for entry in sandbox.fs().list("/app")? {
        eprintln!("left behind: {}", entry.name.display());
    }
    sandbox.stop_and_wait()?;
    Ok(())
}
