//! What a caller can be told while a sandbox is being made.

use serde::{Deserialize, Serialize};

/// One step on the way to a running sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// The image is being fetched.
    Pull(msb_oci::PullEvent),
    /// The virtual machine is being started.
    Vm(VmStep),
}

/// A step that the supervisor reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum VmStep {
    /// Somebody else makes the template that this sandbox needs.
    TemplateWaiting,
    /// The template's guest boots: the first start with these settings.
    TemplateBooting,
    /// The template's guest is being saved.
    TemplateSaving,
    /// The template is there.
    TemplateDone,
}
