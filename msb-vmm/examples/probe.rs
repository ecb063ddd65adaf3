//! Prints whether this host's KVM runs guest code, and how long it took to find out.

use std::time::Instant;

fn main() {
    let start = Instant::now();
    let kvm = msb_vmm::Engine::probe();
    println!(
        "{kvm}\n{} guests, found out in {:.1?}",
        kvm.isolation(),
        start.elapsed()
    );
}
