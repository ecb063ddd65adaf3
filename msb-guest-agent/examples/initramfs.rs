//! Packs an agent into the archive a guest's kernel starts it from:
//! `initramfs AGENT OUT`.

use std::fs;

fn main() -> std::io::Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(agent), Some(out)) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: initramfs AGENT OUT");
        std::process::exit(2);
    };
    let agent = fs::read(agent)?;
    msb_guest_agent::initramfs::write(&agent, fs::File::create(out)?)
}
