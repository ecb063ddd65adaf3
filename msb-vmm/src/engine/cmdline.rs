//! The kernel's command line.

use crate::clock::TscRate;
use crate::machine::Machine;

/// The words for all engines, and what is added under TCG; both files and `docs/boot.md`
/// say what each word is for.
const COMMON: &str = include_str!("../../kernel/cmdline");
const TCG: &str = include_str!("../../kernel/cmdline.tcg");

/// Returns the command line of `machine`. A guest that has no hypervisor to ask is told
/// the rate of its counter, `tsc`.
pub(super) fn of(machine: &Machine, tsc: Option<TscRate>) -> String {
    let (more, khz) = tsc.map_or(("", 0), |tsc| (TCG, tsc.khz()));
    let lines = COMMON.lines().chain(more.lines()).map(str::trim);
    let mut words: Vec<String> = lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            line.replace("{tsc_khz}", &khz.to_string())
                .replace("{lpj}", &(u64::from(khz) * 10).to_string())
        })
        .collect();
    words.extend(machine.extra_cmdline.iter().cloned());
    words.join(" ")
}
