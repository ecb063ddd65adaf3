//! Real virtual machines. Needs the guest's kernel (`cargo xtask guest`), QEMU and a static
//! busybox, which `cargo xtask test` sees to.

mod boot;
mod confinement;
mod guest;
mod network;
mod snapshot;
mod template;
