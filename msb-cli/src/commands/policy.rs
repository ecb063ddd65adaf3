//! `msb policy check` and `msb policy explain`.

use msb_sdk::policy;

use crate::Failure;
use crate::args::{PolicyArgs, PolicyCommand};
use crate::terminal;

/// The exit code of a policy that does not do what is expected of it.
const EXPECTATION_FAILED: u8 = 1;

/// Checks or explains.
pub(crate) fn run(args: PolicyArgs) -> Result<u8, Failure> {
    match args.command {
        PolicyCommand::Check { file } => {
            let report = policy::check(&file)?;
            let shown = file.display();
            for failure in &report.failures {
                terminal::complain(&format!("{shown}: {failure}"));
            }
            let (total, failed) = (report.total, report.failures.len());
            let held = total - failed;
            terminal::say(&format!("{shown}: {held} of {total} expectations hold"))?;
            Ok(if failed == 0 { 0 } else { EXPECTATION_FAILED })
        }
        PolicyCommand::Explain { file, subject } => {
            terminal::say(&policy::explain(&file, &subject.join(" "))?.to_string())?;
            Ok(0)
        }
    }
}
