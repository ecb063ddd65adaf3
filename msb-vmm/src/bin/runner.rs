//! A program that is nothing but the runner of the krun engine, for programs whose own
//! `main` cannot be the hook's: interpreters with bindings, test harnesses.

fn main() {
    msb_vmm::runner_hook();
    eprintln!("msb-vmm-runner is started by msb-vmm, as the VMM of a machine");
    std::process::exit(2);
}
