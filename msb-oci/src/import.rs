//! Images from files: OCI layouts (directory or tar) and `docker save`.
//!
//! An archive is not unpacked: its tar is indexed like a layer's, with the
//! same refusals, and blobs are read from where they lie.
//!
//! Read: OCI image specification "image-layout.md"; docker's image
//! specification v1.2, "Combined Image JSON + Filesystem Changeset Format".

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use serde::Deserialize;

use crate::fetch::{Plan, described};
use crate::ingest::{Failure, Layer, Source, expanded_limit};
use crate::layer::{Extent, Indexer, Kind, Limits as LayerLimits};
use crate::manifest::{self, Document, MAX_CONFIG, MAX_MANIFEST};
use crate::registry::check;
use crate::store::Layout;
use crate::{Digest, Error, PullOptions, Reference, Result, decompress, pull};

/// Most names of images in one archive.
const MAX_NAMES: usize = 256;
/// Links from one file of an archive to another, one after the other.
const MAX_LINKS: usize = 8;
/// Read at a time while an archive is indexed.
const CHUNK: usize = 256 << 10;

/// An opened archive.
pub(crate) struct Archive {
    path: PathBuf,
    content: Content,
}

enum Content {
    Directory(OwnedFd),
    Tar {
        file: File,
        members: HashMap<String, Member>,
    },
}

enum Member {
    File {
        size: u64,
        extents: Vec<Extent>,
    },
    /// Another member; a symlink's target is resolved already.
    Link(String),
}

/// What an archive calls its images.
#[derive(Default)]
pub(crate) struct Names {
    pub(crate) whole: Vec<Reference>,
    /// Images that have none, and the tag that may stand in its place.
    pub(crate) nameless: Vec<(Digest, Option<String>)>,
}

/// One entry of `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl Archive {
    pub(crate) fn open(layout: &Layout, path: &Path, options: &PullOptions) -> Result<Archive> {
        let failed = |source| Error::store("read", path, source);
        let metadata = std::fs::metadata(path).map_err(failed)?;
        let content = if metadata.is_dir() {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let directory =
                openat(CWD, path, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
            Content::Directory(directory)
        } else {
            let file = File::open(path).map_err(failed)?;
            index_tar(layout, path, file, options)?
        };
        Ok(Archive {
            path: path.to_owned(),
            content,
        })
    }

    /// The names that the archive gives its images: of each all.
    pub(crate) fn names(&self, options: &PullOptions) -> Result<Names> {
        let (mut names, mut nameless) = (Vec::new(), Vec::new());
        if let Some(json) = self.document("index.json", MAX_MANIFEST)? {
            let of = self.path.display().to_string();
            if let Document::Index(variants) = manifest::parse(&of, &json, options.limits.layers)? {
                let whole = |variant: &manifest::Variant| {
                    let name = variant.name.as_ref();
                    name.is_some_and(|name| name.contains(['/', ':']))
                };
                let (named, others): (Vec<_>, Vec<_>) = variants.into_iter().partition(whole);
                let known: HashSet<_> = named.iter().map(|one| one.descriptor.digest).collect();
                let others = others
                    .into_iter()
                    .map(|one| (one.descriptor.digest, one.name));
                nameless.extend(others.filter(|(digest, _)| !known.contains(digest)));
                names.extend(named.into_iter().filter_map(|variant| variant.name));
            }
        } else if let Some(json) = self.document("manifest.json", MAX_MANIFEST)? {
            for image in self.docker_images(&json)? {
                let tags = image.repo_tags.unwrap_or_default();
                if tags.is_empty() {
                    let config = self.document(&image.config, MAX_CONFIG)?;
                    nameless.extend(config.map(|config| (Digest::of(&config), None)));
                }
                names.extend(tags);
                if names.len().max(nameless.len()) > MAX_NAMES {
                    break;
                }
            }
        }
        let names: BTreeSet<String> = names.into_iter().collect();
        if names.len().max(nameless.len()) > MAX_NAMES {
            return Err(self.no_archive(format!("it holds more than {MAX_NAMES} names of images")));
        }
        let whole = names.iter().map(|name| name.parse());
        Ok(Names {
            whole: whole.collect::<Result<_>>()?,
            nameless,
        })
    }

    fn docker_images(&self, json: &[u8]) -> Result<Vec<DockerImage>> {
        serde_json::from_slice(json)
            .map_err(|error| self.no_archive(format!("its manifest.json: {error}")))
    }

    /// Reads the documents of the one image that is wanted.
    pub(crate) fn plan(
        self: &Arc<Self>,
        reference: Option<&Reference>,
        options: &PullOptions,
    ) -> Result<(Plan, Opened, Reference)> {
        if let Some(json) = self.document("index.json", MAX_MANIFEST)? {
            return self.plan_oci(&json, reference, options);
        }
        match self.document("manifest.json", MAX_MANIFEST)? {
            Some(json) => self.plan_docker(&json, reference, options),
            None => Err(self.no_archive("it has neither index.json nor manifest.json".to_owned())),
        }
    }

    fn plan_oci(
        self: &Arc<Self>,
        json: &[u8],
        wanted: Option<&Reference>,
        options: &PullOptions,
    ) -> Result<(Plan, Opened, Reference)> {
        let name = self.path.display().to_string();
        let Document::Index(mut variants) = manifest::parse(&name, json, options.limits.layers)?
        else {
            return Err(self.no_archive("its index.json is no index".to_owned()));
        };
        if let Some(wanted) = wanted {
            keep_named(&mut variants, wanted);
        }
        let named = named_images(&variants);
        if named > 1 {
            return Err(self.no_archive(format!("it holds {named} images; say which by its name")));
        }
        let variant = manifest::choose(&name, &variants, &options.platform)?;
        let own_name = variant
            .name
            .as_deref()
            .filter(|name| name.contains(['/', ':']));
        let reference = self.reference(wanted, own_name)?;
        let get =
            |what: &str, wanted: &manifest::Descriptor| self.verified(what, wanted, MAX_MANIFEST);
        let content = get("the manifest", &variant.descriptor)?;
        let (digest, content, manifest) =
            pull::resolve(&name, variant.descriptor.digest, content, options, get)?;
        let config = self.verified("the configuration", &manifest.config, MAX_CONFIG)?;
        let plan = Plan::new(
            &name,
            (digest, content),
            (manifest.config.digest, config),
            &described(&manifest.layers),
            options,
        )?;
        let names = manifest
            .layers
            .iter()
            .map(|layer| blob_name(layer.digest))
            .collect();
        Ok((
            plan,
            Opened {
                archive: Arc::clone(self),
                names,
            },
            reference,
        ))
    }

    fn plan_docker(
        self: &Arc<Self>,
        json: &[u8],
        wanted: Option<&Reference>,
        options: &PullOptions,
    ) -> Result<(Plan, Opened, Reference)> {
        let images = self.docker_images(json)?;
        let is_wanted = |image: &&DockerImage| {
            let mut tags = image
                .repo_tags
                .iter()
                .flatten()
                .filter_map(|tag| tag.parse::<Reference>().ok());
            tags.any(|tag| Some(&tag) == wanted)
        };
        let lone = if let [image] = images.as_slice() {
            Some(image)
        } else {
            None
        };
        let Some(image) = images.iter().find(is_wanted).or(lone) else {
            return Err(self.no_archive(format!(
                "it holds {} images; say which by its name",
                images.len()
            )));
        };
        let tag = image.repo_tags.iter().flatten().next();
        let reference = self.reference(wanted, tag.map(String::as_str))?;
        let Some(config) = self.document(&image.config, MAX_CONFIG)? else {
            return Err(self.no_archive("the configuration is missing".to_owned()));
        };
        let config_digest = Digest::of(&config);
        let mut layers = Vec::new();
        for name in &image.layers {
            let size = self
                .content
                .open(name)
                .map_err(|error| self.unreadable(name, error))?
                .1;
            layers.push((None, size));
        }
        // The archive has no manifest of the registry's kind: this stands for
        // one, the same for the same configuration.
        let stand_in =
            format!("{{\"schemaVersion\":2,\"dockerArchiveConfig\":\"{config_digest}\"}}");
        let plan = Plan::new(
            &reference.to_string(),
            (Digest::of(stand_in.as_bytes()), stand_in.into_bytes()),
            (config_digest, config),
            &layers,
            options,
        )?;
        let names = image.layers.clone();
        Ok((
            plan,
            Opened {
                archive: Arc::clone(self),
                names,
            },
            reference,
        ))
    }

    fn reference(&self, wanted: Option<&Reference>, own: Option<&str>) -> Result<Reference> {
        match (wanted, own) {
            (Some(reference), _) => Ok(reference.clone()),
            (None, Some(own)) => own.parse(),
            (None, None) => Err(self
                .no_archive("it does not say what the image is called; give it a name".to_owned())),
        }
    }

    /// A small file of the archive; `None` if there is none.
    fn document(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let (reader, size) = match self.content.open(name) {
            Ok(opened) => opened,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.unreadable(name, error)),
        };
        if size > limit {
            return Err(Error::TooLarge {
                what: format!("{name} in {}", self.path.display()),
                limit,
                unit: "bytes",
            });
        }
        let mut content = Vec::new();
        reader
            .take(limit)
            .read_to_end(&mut content)
            .map_err(|error| self.unreadable(name, error))?;
        Ok(Some(content))
    }

    fn verified(&self, what: &str, wanted: &manifest::Descriptor, limit: u64) -> Result<Vec<u8>> {
        let name = blob_name(wanted.digest);
        let Some(content) = self.document(&name, limit)? else {
            return Err(self.no_archive(format!("{name} is missing")));
        };
        check(what, &content, wanted)?;
        Ok(content)
    }

    fn no_archive(&self, reason: String) -> Error {
        Error::NotAnArchive {
            path: self.path.clone(),
            reason,
        }
    }

    fn unreadable(&self, name: &str, source: io::Error) -> Error {
        Error::store("read", &self.path.join(name), source)
    }
}

/// Of several images keeps those that are called what is wanted: by the whole
/// reference, else by its tag. If none is, all stay.
fn keep_named(variants: &mut Vec<manifest::Variant>, wanted: &Reference) {
    let whole =
        |name: &str| name.contains(['/', ':']) && name.parse().ok().as_ref() == Some(wanted);
    let tag = |name: &str| wanted.tag() == Some(name);
    for is_it in [&whole as &dyn Fn(&str) -> bool, &tag] {
        let named = |variant: &manifest::Variant| variant.name.as_deref().is_some_and(is_it);
        if variants.iter().any(named) {
            variants.retain(named);
            return;
        }
    }
}

/// How many images have names of their own: one image may have several names,
/// and one name several platforms.
fn named_images(variants: &[manifest::Variant]) -> usize {
    let named = || variants.iter().filter(|variant| variant.name.is_some());
    let names: HashSet<_> = named().map(|variant| &variant.name).collect();
    let digests: HashSet<_> = named().map(|variant| variant.descriptor.digest).collect();
    names.len().min(digests.len())
}

fn blob_name(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// An archive as the source of one image's layers.
pub(crate) struct Opened {
    archive: Arc<Archive>,
    names: Vec<String>,
}

impl Source for Opened {
    fn open(&self, layer: &Layer, offset: u64) -> Result<Box<dyn Read + Send + '_>, Failure> {
        let name = self.names.get(layer.number).map_or("", String::as_str);
        let failed = |error| self.archive.unreadable(name, error);
        let (mut reader, _) = self.archive.content.open(name).map_err(failed)?;
        io::copy(&mut reader.by_ref().take(offset), &mut io::sink()).map_err(failed)?;
        Ok(reader)
    }

    fn broken(&self, layer: &Layer, error: io::Error) -> Failure {
        let name = self.names.get(layer.number).map_or("", String::as_str);
        self.archive.unreadable(name, error).into()
    }

    fn resumes(&self) -> bool {
        false
    }
}

impl Content {
    /// Opens a file of the archive, and tells its size.
    fn open(&self, name: &str) -> io::Result<(Box<dyn Read + Send + '_>, u64)> {
        match self {
            Content::Directory(directory) => {
                // Not blocking on a fifo, and no way out of the directory.
                let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
                let resolve =
                    ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
                let file = File::from(openat2(directory, name, flags, Mode::empty(), resolve)?);
                let metadata = file.metadata()?;
                if !metadata.is_file() {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidInput,
                        "it is not a regular file",
                    ));
                }
                Ok((Box::new(file), metadata.len()))
            }
            Content::Tar { file, members } => {
                let mut name = name.to_owned();
                for _ in 0..MAX_LINKS {
                    match members.get(&name) {
                        Some(Member::File { size, extents }) => {
                            let reader = Extents {
                                file,
                                extents,
                                position: 0,
                            };
                            return Ok((Box::new(reader), *size));
                        }
                        Some(Member::Link(target)) => name.clone_from(target),
                        None => break,
                    }
                }
                Err(io::ErrorKind::NotFound.into())
            }
        }
    }
}

/// A file inside an uncompressed tar.
struct Extents<'a> {
    file: &'a File,
    extents: &'a [Extent],
    /// Within the first of the extents that are left.
    position: u64,
}

impl Read for Extents<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(extent) = self.extents.first() {
            let left = extent.length - self.position;
            if left > 0 {
                let length = usize::try_from(left)
                    .unwrap_or(usize::MAX)
                    .min(buffer.len());
                let read = self
                    .file
                    .read_at(&mut buffer[..length], extent.tar_offset + self.position)?;
                self.position += read as u64;
                return Ok(read);
            }
            self.extents = &self.extents[1..];
            self.position = 0;
        }
        Ok(0)
    }
}

/// Indexes an archive; a compressed one is decompressed into the store's
/// directory for unfinished files first.
fn index_tar(
    layout: &Layout,
    path: &Path,
    mut file: File,
    options: &PullOptions,
) -> Result<Content> {
    let failed = |source| Error::store("read", path, source);
    let packed = file.metadata().map_err(failed)?.len();
    let limit = expanded_limit(&options.limits, packed);
    let mut indexer = Indexer::new(LayerLimits {
        entries: options.limits.layer_entries,
        bytes: limit,
    });
    let refused = |fault: crate::layer::Fault| Error::NotAnArchive {
        path: path.to_owned(),
        reason: fault.to_string(),
    };
    let mut magic = [0; 4];
    let plain = match file.read_exact(&mut magic) {
        Ok(()) => !matches!(magic, [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd]),
        Err(_) => true,
    };
    file.rewind().map_err(failed)?;
    let mut unpacked = if plain {
        None
    } else {
        Some(layout.temp_file()?.into_file())
    };
    {
        let reader = BufReader::with_capacity(CHUNK, &file);
        let mut input = decompress::open(reader).map_err(failed)?;
        let mut buffer = vec![0; CHUNK];
        loop {
            let read = input.read(&mut buffer).map_err(failed)?;
            if read == 0 {
                break;
            }
            indexer.push(&buffer[..read]).map_err(refused)?;
            if let Some(unpacked) = &mut unpacked {
                unpacked
                    .write_all(&buffer[..read])
                    .map_err(|source| Error::store("write", &layout.tmp(), source))?;
            }
        }
    }
    let index = indexer.finish().map_err(refused)?;
    let mut members = HashMap::new();
    for entry in index.entries() {
        let Ok(name) = std::str::from_utf8(entry.path()) else {
            continue;
        };
        let member = match entry.kind() {
            Kind::File => Member::File {
                size: entry.size(),
                extents: entry.extents().to_vec(),
            },
            Kind::HardLink | Kind::Symlink => match link_target(name, &entry) {
                Some(target) => Member::Link(target),
                None => continue,
            },
            _ => continue,
        };
        let whole = |member: &Member| match member {
            Member::File { size, extents } => {
                extents.iter().map(|extent| extent.length).sum::<u64>() == *size
            }
            Member::Link(_) => true,
        };
        if whole(&member) && members.insert(name.to_owned(), member).is_some() {
            return Err(Error::NotAnArchive {
                path: path.to_owned(),
                reason: format!("it holds {name} twice"),
            });
        }
    }
    Ok(Content::Tar {
        file: unpacked.unwrap_or(file),
        members,
    })
}

/// The member that a link means; older versions of docker link equal layers.
fn link_target(name: &str, entry: &crate::layer::Entry<'_>) -> Option<String> {
    let target = std::str::from_utf8(entry.target()).ok()?;
    if entry.kind() == Kind::HardLink {
        return Some(target.to_owned());
    }
    let mut parts: Vec<&str> = name.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::{keep_named, named_images};
    use crate::Digest;
    use crate::manifest::{Descriptor, Variant};

    #[test]
    fn several_images_are_told_apart_by_whole_names_or_tags() {
        let variant = |name: &str| Variant {
            descriptor: Descriptor {
                digest: Digest::of(name.as_bytes()),
                size: 1,
            },
            platform: None,
            name: Some(name.to_owned()),
        };
        let kept = |names: &[&str], wanted: &str| {
            let mut variants: Vec<Variant> = names.iter().map(|name| variant(name)).collect();
            keep_named(&mut variants, &wanted.parse().unwrap());
            let names = variants.into_iter().filter_map(|variant| variant.name);
            names.collect::<Vec<_>>()
        };
        let whole = ["docker.io/library/a:latest", "docker.io/library/b:latest"];
        assert_eq!(kept(&whole, "b"), ["docker.io/library/b:latest"]);
        assert_eq!(kept(&whole, "localhost:5000/c:1"), whole);
        assert_eq!(kept(&["1", "2"], "localhost:5000/c:2"), ["2"]);
        let mut two = vec![variant("1"), variant("2")];
        assert_eq!(named_images(&two), 2);
        two[1].descriptor.digest = two[0].descriptor.digest;
        assert_eq!(named_images(&two), 1);
    }
}
