//! The template that a sandbox starts from.
//!
//! The first template of a kind of machine is a guest that booted. Where the upper of the
//! root is guest memory, the sandbox starts from a variant of it that has the image's root
//! mounted and the files read that a first program needs: under emulation everything that
//! a guest does for the first time is expensive.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use msb_guest_agent::message::{ByteString, RootSpec, Upper};
use msb_guest_agent::setup;
use msb_oci::Image;
use msb_vmm::{Machine, Step, Template, Templates};

use super::network::template_spec;
use super::start::{AGENT_TIMEOUT, Failure, vmm};

/// What the first programs of most images read, whatever they are: the shell, the
/// loaders and C libraries of Debian's kin, Fedora's kin and Alpine.
const USUAL: [&str; 7] = [
    "/bin/sh",
    "/lib64/ld-linux-x86-64.so.2",
    "/lib/x86_64-linux-gnu/libc.so.6",
    "/lib64/libc.so.6",
    "/lib/ld-musl-x86_64.so.1",
    "/etc/passwd",
    "/etc/group",
];

/// How many folders of an image's `PATH` are looked into: more is not a search path but an
/// attempt to have many long names made of two long texts.
const MAX_FOLDERS: usize = 16;

/// The longest name of a file, with its folders: the guest's kernel takes none longer.
const MAX_NAME: usize = 4095;

/// Finds the template for a sandbox, or makes it.
pub(super) fn ensure(
    templates: &Templates,
    machine: &Machine,
    image: &Image,
    root: &RootSpec,
    progress: &mut dyn FnMut(Step),
) -> Result<Template, Failure> {
    if let Upper::Disk(_) = root.upper {
        return base(templates, machine, progress);
    }
    let read_ahead = read_ahead(image);
    let variant = variant(image, root, &read_ahead).map_err(Failure::io)?;
    if let Some(template) = templates.find_variant(machine, &variant).map_err(vmm)? {
        return Ok(template);
    }
    let base = base(templates, machine, progress)?;
    let mount = |mut agent: &UnixStream| -> Result<(), msb_guest_agent::Error> {
        bound(agent)?;
        setup::hello(&mut agent)?;
        setup::mount_root(&mut agent, root.clone(), read_ahead.clone())
    };
    // It takes a fraction of a second: nothing to tell of.
    templates
        .ensure_variant(&base, machine, &variant, |_| (), mount)
        .map_err(vmm)
}

fn base(
    templates: &Templates,
    machine: &Machine,
    progress: &mut dyn FnMut(Step),
) -> Result<Template, Failure> {
    let boot = |mut agent: &UnixStream| -> Result<(), msb_guest_agent::Error> {
        bound(agent)?;
        setup::hello(&mut agent)?;
        setup::prepare(&mut agent, Some(template_spec()))
    };
    templates.ensure(machine, progress, boot).map_err(vmm)
}

/// A guest that hangs is given up.
fn bound(agent: &UnixStream) -> Result<(), msb_guest_agent::Error> {
    let limit: Option<Duration> = Some(AGENT_TIMEOUT);
    agent
        .set_read_timeout(limit)
        .map_err(|error| msb_guest_agent::Error::LinkIo {
            during: "setting a time limit",
            kind: error.kind(),
        })
}

/// Names everything that the variant depends on. A root disk that was made again may be
/// laid out differently, although the image is the same.
fn variant(image: &Image, root: &RootSpec, read_ahead: &[ByteString]) -> io::Result<String> {
    let disk = fs::metadata(image.root_disk())?;
    let disk = (disk.dev(), disk.ino(), disk.ctime(), disk.ctime_nsec());
    let digest = image.digest();
    Ok(format!("{digest} {disk:?} {root:?} {read_ahead:?}"))
}

/// The files worth having in memory: the image's own program in the places where it can
/// be, and the usual ones.
fn read_ahead(image: &Image) -> Vec<ByteString> {
    let config = image.config();
    let program = config.entrypoint.first().or(config.cmd.first());
    let path = config
        .env
        .iter()
        .find_map(|entry| entry.strip_prefix("PATH="));
    let path = path.unwrap_or("/usr/local/bin:/usr/bin:/bin");
    let mut files = program.map_or_else(Vec::new, |program| places(program, path));
    files.extend(USUAL.map(str::to_owned));
    files.into_iter().map(ByteString::from).collect()
}

/// Where a program can be. Both texts are the image's, and may be megabytes long.
fn places(program: &str, path: &str) -> Vec<String> {
    let fits = |folder: &str| folder.len() + 1 + program.len() <= MAX_NAME;
    if program.contains('/') {
        return Some(program.to_owned())
            .filter(|_| fits(""))
            .into_iter()
            .collect();
    }
    path.split(':')
        .take(MAX_FOLDERS)
        .filter(|folder| fits(folder))
        .map(|folder| format!("{folder}/{program}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_looked_for_in_the_path() {
        assert_eq!(places("/bin/a", "/x:/y"), ["/bin/a"]);
        assert_eq!(places("a", "/x:/y"), ["/x/a", "/y/a"]);
    }

    /// An image's configuration may be 8 MiB, which as the product of its halves is more
    /// memory than there is.
    #[test]
    fn an_image_cannot_have_long_lists_of_long_names_made() {
        let long = "a".repeat(4000);
        let made = places(&long, &":".repeat(4 << 20));
        assert_eq!(made.len(), MAX_FOLDERS);
        let too_long = "a".repeat(4 << 20);
        for program in [too_long.clone(), format!("/{too_long}")] {
            assert_eq!(places(&program, "/bin:"), [""; 0]);
        }
        assert_eq!(places("a", &too_long), [""; 0]);
    }
}
