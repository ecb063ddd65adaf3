//! `msb cp` of what is large, oddly named, or changed while it is copied.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use crate::lab::{BUSYBOX, Kept, Lab, PYTHON, finish, until};

fn sandbox<'a>(lab: &'a Lab, flags: &[&str], image: &str) -> Kept<'a> {
    let name = format!("copies-{}", std::process::id());
    let mut create = lab.msb(["create", "-q", "--name", &name]);
    finish(create.args(flags).arg(image), b"").success();
    Kept { lab, name }
}

impl Kept<'_> {
    fn guest(&self, path: impl AsRef<OsStr>) -> OsString {
        let mut place = OsString::from(format!("{}:", self.name));
        place.push(path);
        place
    }

    fn cp(&self, from: impl AsRef<OsStr>, to: impl AsRef<OsStr>) -> String {
        let mut command = self.lab.msb(["cp"]);
        let run = finish(command.arg(from).arg(to), b"");
        run.success()
    }

    fn sh(&self, script: &str) -> String {
        let mut command = self.lab.msb(["exec", &self.name, "--", "sh", "-c", script]);
        finish(&mut command, b"").success()
    }
}

/// Bytes of which no two pieces are the same (xorshift).
struct Noise(u64);

impl Read for Noise {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        for chunk in out.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            chunk.copy_from_slice(&self.0.to_le_bytes()[..chunk.len()]);
        }
        Ok(out.len())
    }
}

#[test]
fn a_gigabyte_goes_in_and_comes_out() {
    const SIZE: u64 = 1 << 30;
    let lab = Lab::shared();
    let kept = sandbox(&lab, &["--disk", "1600M"], BUSYBOX);
    let host = tempfile::tempdir().expect("a folder");
    let (up, down) = (host.path().join("up"), host.path().join("down"));
    let mut file = File::create(&up).expect("a file");
    io::copy(&mut Noise(1).take(SIZE), &mut file).expect("write");
    kept.cp(&up, kept.guest("/big"));
    assert_eq!(kept.sh("stat -c %s /big").trim(), SIZE.to_string());
    kept.cp(kept.guest("/big"), &down);
    assert_eq!(fs::metadata(&down).expect("a file").len(), SIZE);
    let (mut seen, mut wanted) = (File::open(&down).expect("open"), Noise(1));
    let (mut piece, mut other) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    for number in 0..SIZE >> 20 {
        seen.read_exact(&mut piece).expect("read");
        wanted.read_exact(&mut other).expect("read");
        assert!(piece == other, "mebibyte {number}");
    }
}

#[test]
fn names_may_be_any_bytes() {
    let lab = Lab::shared();
    let kept = sandbox(&lab, &[], BUSYBOX);
    let host = tempfile::tempdir().expect("a folder");
    let tree = host.path().join("tree");
    fs::create_dir(&tree).expect("a folder");
    let longest = [b'x'; 255];
    let names: [&[u8]; 8] = [
        b"new\nline",
        b"\xff\xfe latin \xe4",
        b" spaces ",
        b"-rf",
        b"a:b",
        b"\x1b[2J\r\t\"'\\*?$(x)",
        "日本語".as_bytes(),
        &longest,
    ];
    let name = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
    for bytes in names {
        fs::create_dir(tree.join(name(bytes))).expect("a folder");
        fs::write(tree.join(name(bytes)).join(name(bytes)), bytes).expect("a file");
    }
    kept.cp(&tree, kept.guest("/tmp"));
    // In the guest they are what they were: content and names are the same bytes.
    let check = r#"cd /tmp/tree && for one in *; do
        test "$(cat "./$one/$one")" = "$one" || exit 1; done; ls -A | wc -c"#;
    let bytes: usize = names.iter().map(|name| name.len() + 1).sum();
    assert_eq!(kept.sh(check).trim(), bytes.to_string());
    let back = host.path().join("back");
    kept.cp(kept.guest("/tmp/tree"), &back);
    for bytes in names {
        let file = back.join(name(bytes)).join(name(bytes));
        assert_eq!(fs::read(file).expect("a file"), bytes);
    }
    assert_eq!(fs::read_dir(&back).expect("a folder").count(), names.len());
    // And on the command line, each way.
    for bytes in names {
        let inside = Path::new("/tmp/tree").join(name(bytes)).join(name(bytes));
        let one = host.path().join("one");
        kept.cp(kept.guest(inside), &one);
        assert_eq!(fs::read(&one).expect("a file"), bytes);
        kept.cp(&one, kept.guest(Path::new("/root").join(name(bytes))));
    }
    assert_eq!(kept.sh("ls -A /root | wc -c").trim(), bytes.to_string());
}

/// Puts a symlink in the place of each folder and of each file, and takes it away again, as fast
/// as a program can.
const CHANGE: &str = r#"
import os, sys
victim = sys.argv[1]
for number in range(400):
    os.makedirs(f"/t/quiet{number % 20}", exist_ok=True)
    open(f"/t/quiet{number % 20}/{number}", "w").write("good")
places = [f"/t/quiet{number}/" for number in range(0, 20, 5)]
for place in places:
    os.makedirs(place + "dir")
    open(place + "dir/file", "w").write("evil")
os.open("/begun", os.O_CREAT)
while True:
    for place in places:
        os.rename(place + "dir", place + "was")
        os.symlink(victim, place + "dir")
    for place in places:
        os.unlink(place + "dir")
        os.rename(place + "was", place + "dir")
        os.unlink(place + "dir/file")
        os.symlink(f"{victim}/file", place + "dir/file")
    for place in places:
        os.unlink(place + "dir/file")
        open(place + "dir/file", "w").write("evil")
"#;

#[test]
fn a_tree_that_changes_while_it_is_copied_stays_in_its_place() {
    let lab = Lab::with_python();
    let kept = sandbox(&lab, &["-c", "2"], PYTHON);
    let host = tempfile::tempdir().expect("a folder");
    let victim = host.path().join("victim");
    fs::create_dir(&victim).expect("a folder");
    fs::write(victim.join("file"), "untouched").expect("a file");
    let mut change = lab.msb(["exec", &kept.name, "--", "python3", "-c", CHANGE]);
    let mut change = change.arg(&victim).spawn().expect("spawn");
    until("it has begun", || {
        let mut test = lab.msb(["exec", &kept.name, "--", "test", "-e", "/begun"]);
        finish(&mut test, b"").code == Some(0)
    });
    let mut whole = 0;
    for round in 0..10 {
        // Anew, and over what is there.
        let target = host.path().join(format!("target-{}", round / 2));
        let mut cp = lab.msb(["cp"]);
        let run = finish(cp.arg(kept.guest("/t/.")).arg(&target), b"");
        // A copy may fail for what vanished, or for a symlink where a folder is: it says so.
        assert!(matches!(run.code, Some(0 | 125)), "{run:?}");
        let told = run.stderr.starts_with("msb: cannot");
        assert!(run.code == Some(0) || told, "{run:?}");
        whole += usize::from(run.code == Some(0));
        assert_eq!(fs::read(victim.join("file")).expect("a file"), b"untouched");
        assert_eq!(fs::read_dir(&victim).expect("a folder").count(), 1);
    }
    println!("{whole} of 10 copies are whole");
    assert_eq!(change.try_wait().expect("wait"), None, "it still changes");
    change.kill().expect("kill");
    change.wait().expect("wait");
    // Once nothing changes any more, or only a symlink is in the place of a folder for good.
    let target = host.path().join("target-last");
    until("a copy is whole", || {
        let mut cp = lab.msb(["cp"]);
        finish(cp.arg(kept.guest("/t")).arg(&target), b"").code == Some(0)
    });
    assert_eq!(fs::read(target.join("quiet1/1")).expect("a file"), b"good");
    let mut names: Vec<_> = fs::read_dir(host.path())
        .expect("a folder")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    names.retain(|name| !name.as_bytes().starts_with(b"target-"));
    assert_eq!(names, ["victim"]);
}

/// What a folder of the guest says of itself is not believed.
#[test]
fn a_place_with_points_in_it_is_one_of_the_guest() {
    let lab = Lab::shared();
    let kept = sandbox(&lab, &[], BUSYBOX);
    let host = tempfile::tempdir().expect("a folder");
    fs::write(host.path().join("file"), "in").expect("a file");
    kept.sh("mkdir -p /opt");
    kept.cp(
        host.path().join("file"),
        kept.guest("/../../opt/../opt/file"),
    );
    assert_eq!(kept.sh("cat /opt/file"), "in");
    kept.cp(kept.guest("../../opt/file"), host.path().join("out"));
    assert_eq!(fs::read(host.path().join("out")).expect("a file"), b"in");
    // Into a folder, what has no name of its own needs one.
    for nameless in ["/", "/opt/.."] {
        let mut cp = lab.msb(["cp"]);
        let run = finish(cp.arg(kept.guest(nameless)).arg(host.path()), b"");
        assert_eq!(run.code, Some(125), "{nameless}: {run:?}");
        assert!(run.stderr.contains("hint: "), "{nameless}: {run:?}");
    }
    // What is in a folder goes into another one that is there.
    kept.sh("mkdir -p /opt/some; echo in it > /opt/some/thing");
    kept.cp(kept.guest("/opt/some/."), host.path());
    assert_eq!(
        fs::read(host.path().join("thing")).expect("a file"),
        b"in it\n"
    );
    kept.cp(host.path().join("."), kept.guest("/opt/some"));
    assert_eq!(kept.sh("cat /opt/some/out"), "in");
    // Also where a link leads, but never as a link.
    kept.sh("ln -s /opt/some /opt/link; ln -s /opt/file /opt/other");
    let new = host.path().join("new");
    kept.cp(kept.guest("/opt/link/."), &new);
    assert!(!new.is_symlink() && new.join("thing").is_file());
    kept.cp(kept.guest("/opt/link"), host.path().join("link"));
    assert!(host.path().join("link").is_symlink());
    std::os::unix::fs::symlink(&new, host.path().join("here")).expect("a link");
    kept.cp(host.path().join("here/."), kept.guest("/opt/there"));
    assert_eq!(
        kept.sh("test ! -L /opt/there && cat /opt/there/thing"),
        "in it\n"
    );
    let mut cp = lab.msb(["cp"]);
    let run = finish(
        cp.arg(kept.guest("/opt/other/."))
            .arg(host.path().join("none")),
        b"",
    );
    assert_eq!(run.code, Some(125), "{run:?}");
    assert!(!host.path().join("none").exists(), "{run:?}");
    // Other tools write an archive to it.
    for places in [
        [kept.guest("/opt/file"), "-".into()],
        ["-".into(), kept.guest("/x")],
    ] {
        let run = finish(lab.msb(["cp"]).args(places), b"");
        assert_eq!(run.code, Some(125), "{run:?}");
        assert!(run.stderr.contains("-- tar "), "{run:?}");
    }
}
