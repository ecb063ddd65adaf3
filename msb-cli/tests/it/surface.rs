//! What the commands say of themselves: trees, schema, completions, manual pages, suggestions.

use std::process::Command;

use crate::lab::{Lab, finish};

#[test]
fn shells_complete_what_the_definitions_have() {
    let lab = Lab::empty();
    let dir = tempfile::tempdir().expect("a folder");
    let of = |shell: &str| finish(&mut lab.msb(["completion", shell]), b"").success();
    let script = dir.path().join("msb.bash");
    std::fs::write(&script, of("bash")).expect("a file");
    // As bash calls it at a press of Tab.
    let press = r#". "$0"; COMP_WORDS=(msb "$@"); COMP_CWORD=$#
        _msb msb "${@: -1}" "${COMP_WORDS[COMP_CWORD-1]}"; echo "${COMPREPLY[*]}""#;
    let complete = |words: &[&str]| {
        let mut bash = Command::new("bash");
        bash.args(["-c", press]).arg(&script).args(words);
        finish(&mut bash, b"").success()
    };
    assert_eq!(complete(&["resta"]), "restart\n");
    assert_eq!(complete(&["run", "--memo"]), "--memory\n");
    assert_eq!(complete(&["image", "r"]), "rm remove\n");
    assert!(of("zsh").starts_with("#compdef msb"), "zsh");
    assert!(of("fish").contains("__fish_msb"), "fish");
    let wrong = finish(&mut lab.msb(["completion", "bahs"]), b"");
    assert!(wrong.stderr.contains("'bash'"), "{wrong:?}");

    let pages = dir.path().join("man/man1");
    let written = lab.msb(["completion", "man"]).arg(&pages).output();
    assert!(written.expect("msb runs").status.success());
    let page = |name: &str| std::fs::read_to_string(pages.join(name)).expect(name);
    assert!(
        page("msb-run.1").contains("Examples:"),
        "{}",
        page("msb-run.1")
    );
    for name in ["msb.1", "msb-image-ls.1", "msb-self-uninstall.1"] {
        assert!(page(name).contains(".TH"), "{name}");
    }
}

#[test]
fn the_tree_and_the_schema_are_printed() {
    let lab = Lab::empty();
    let msb = |args: &[&str]| finish(&mut lab.msb(args), b"").success();
    let tree = msb(&["--tree"]);
    for part in ["run", "-m, --memory <SIZE>", "rm|remove", "self", "--yes"] {
        assert!(tree.contains(part), "{part:?} is missing in:\n{tree}");
    }
    assert!(msb(&["self", "--tree"]).starts_with("self"));
    assert!(msb(&["run", "--tree"]).contains("--net-rule"));
    let schema: serde_json::Value = serde_json::from_str(&msb(&["schema"])).expect("JSON");
    let keys = schema["properties"].as_object().expect("properties");
    for key in ["image", "memory_mib", "env", "patches", "network"] {
        let described = keys[key]["description"].as_str();
        assert!(described.is_some_and(|text| !text.is_empty()), "{key}");
    }
}

#[test]
fn what_is_misspelt_is_answered_with_what_is_meant() {
    let lab = Lab::empty();
    for (args, meant) in [
        (&["restrat", "app"][..], "'restart'"),
        (&["run", "--memroy", "1G", "busybox"], "'--memory'"),
        (&["image", "lis"], "'list'"),
        (&["run", "--net", "al-low", "busybox"], "allow-all"),
        (&["snapshot", "crate", "a", "b"], "'create'"),
    ] {
        let run = finish(&mut lab.msb(args), b"");
        assert_eq!(run.code, Some(125), "{run:?}");
        assert!(run.stderr.contains(meant), "{args:?}: {}", run.stderr);
    }
}
