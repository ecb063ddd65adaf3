//! `msb policy check` and `msb policy explain`.

use msb_sdk::policy;

use crate::Failure;
use crate::args::{PolicyArgs, PolicyCommand};

/// The exit code of a policy that does not do what is expected of it.
const EXPECTATION_FAILED: u8 = 1;

/// Checks or explains.
pub(crate) fn run(args: PolicyArgs) -> Result<u8, Failure> {
    match args.command {
        PolicyCommand::Check { file } => {
            let report = policy::check(&file)?;
            let shown = file.display();
            for failure in &report.failures {
                eprintln!("{shown}: {failure}");
            }
            let (total, failed) = (report.total, report.failures.len());
            println!("{shown}: {} of {total} expectations hold", total - failed);
            Ok(if failed == 0 { 0 } else { EXPECTATION_FAILED })
        }
        PolicyCommand::Explain { file, subject } => {
            println!("{}", policy::explain(&file, &subject.join(" "))?);
            Ok(0)
        }
    }
}
