//! Debian's `docker-registry`, and images made by `umoci` and `skopeo`.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use msb_oci::{PullOptions, Reference, Store};

/// Runs a tool; its absence is a failure that names the Debian package.
pub(crate) fn run(package: &str, arguments: &[&str]) {
    let output = Command::new(arguments[0])
        .args(&arguments[1..])
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}; install the package {package}", arguments[0]));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {text}");
}

/// Makes an OCI layout with one image `demo` of two layers.
pub(crate) fn layout(directory: &Path) -> String {
    let layout = directory.join("oci");
    let image = format!("{}:demo", layout.display());
    let bundle = directory.join("bundle");
    let bundle_text = bundle.to_str().unwrap();
    run(
        "umoci",
        &["umoci", "init", "--layout", layout.to_str().unwrap()],
    );
    run("umoci", &["umoci", "new", "--image", &image]);
    run(
        "umoci",
        &[
            "umoci",
            "config",
            "--image",
            &image,
            "--architecture",
            "amd64",
            "--os",
            "linux",
            "--config.cmd",
            "sh",
        ],
    );
    for name in ["first", "second"] {
        run(
            "umoci",
            &[
                "umoci",
                "unpack",
                "--rootless",
                "--image",
                &image,
                bundle_text,
            ],
        );
        std::fs::write(bundle.join("rootfs").join(name), name.repeat(1000)).unwrap();
        run(
            "umoci",
            &["umoci", "repack", "--image", &image, bundle_text],
        );
        std::fs::remove_dir_all(&bundle).unwrap();
    }
    image
}

struct Registry {
    child: Child,
    host: String,
}

impl Registry {
    /// Starts a registry on a port of its own choice, told in its log.
    fn start(directory: &Path) -> Registry {
        let config = directory.join("registry.yml");
        let data = directory.join("data");
        let yaml = format!(
            "version: 0.1\nlog:\n  level: info\n  formatter: json\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:0\n",
            data.display()
        );
        std::fs::write(&config, yaml).unwrap();
        let mut child = Command::new("docker-registry")
            .args(["serve", config.to_str().unwrap()])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| {
                panic!("docker-registry: {error}; install the package docker-registry")
            });
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let host = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| {
                let at = line.find("listening on ")? + "listening on ".len();
                Some(line[at..].split(['"', ' ']).next()?.to_owned())
            })
            .expect("the registry says where it listens");
        // Its log must be read on, or it blocks.
        std::thread::spawn(move || lines.for_each(drop));
        Registry { child, host }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn pulls_what_skopeo_pushed() {
    let directory = tempfile::tempdir().unwrap();
    let image = layout(directory.path());
    let registry = Registry::start(directory.path());
    let source = format!("oci:{image}");
    for (tag, options) in [
        ("gzip", &[][..]),
        ("zstd", &["--dest-compress-format", "zstd"]),
        ("docker", &["--format", "v2s2"]),
    ] {
        let target = format!("docker://{}/demo/{tag}:1", registry.host);
        let mut arguments = vec!["skopeo", "copy", "--dest-tls-verify=false"];
        arguments.extend(options);
        arguments.extend([source.as_str(), target.as_str()]);
        run("skopeo", &arguments);
        let store = Store::open(directory.path().join(tag)).unwrap();
        let reference: Reference = format!("{}/demo/{tag}:1", registry.host).parse().unwrap();
        let image = store
            .pull(&reference, &PullOptions::default(), &|_| {})
            .unwrap();
        assert_eq!(
            (image.layers().len(), image.config().cmd.as_slice()),
            (2, &["sh".to_owned()][..])
        );
    }
}
