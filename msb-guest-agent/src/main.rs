//! PID 1 of the guest; all of it is in the library's `agent` module.

fn main() -> std::process::ExitCode {
    msb_guest_agent::agent::run()
}
