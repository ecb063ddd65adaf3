//! The table of fuzz targets: one name, one property, one folder of seeds.
//!
//! A property takes any bytes and panics when something that must hold does
//! not. `tests/replay.rs` runs each over its corpus with an ordinary compiler;
//! `src/main.rs` hands one of them to libFuzzer:
//!
//! ```console
//! $ MSB_FUZZ_TARGET=layer_tar RUSTC_BOOTSTRAP=1 cargo fuzz run fuzz fuzz/corpus/layer_tar --features libfuzzer
//! ```

/// A property of any bytes.
pub type Property = fn(&[u8]);

/// Every target, by name; the names are those of the folders in `corpus`.
pub const TARGETS: &[(&str, Property)] = &[
    ("agent_frames", msb_guest_agent::fuzzing::agent_frames),
    ("agent_endpoint", msb_guest_agent::fuzzing::agent_endpoint),
    ("agent_tree", msb_guest_agent::fuzzing::agent_tree),
    ("policy_text", msb_net::fuzzing::policy_text),
    ("gateway_frames", msb_net::fuzzing::gateway_frames),
    ("offload_frames", msb_net::fuzzing::offload_frames),
    ("claim", msb_net::fuzzing::claim),
    ("reassembly", msb_net::fuzzing::reassembly),
    ("scrubber", msb_net::fuzzing::scrubber),
    ("content_coding", msb_net::fuzzing::content_coding),
    ("basic_credentials", msb_net::fuzzing::basic_credentials),
    ("http1_head", msb_net::fuzzing::http1_head),
    ("http2_frames", msb_net::fuzzing::http2_frames),
    ("http_relay", msb_net::fuzzing::http_relay),
    ("request_path", msb_net::fuzzing::request_path),
    ("dns_query", msb_net::fuzzing::dns_query),
    ("dns_response", msb_net::fuzzing::dns_response),
    ("layer_tar", msb_oci::fuzzing::layer_tar),
    ("erofs_roundtrip", msb_oci::fuzzing::erofs_roundtrip),
    ("image_reference", msb_oci::fuzzing::image_reference),
    ("manifest_json", msb_oci::fuzzing::manifest_json),
    ("image_config_json", msb_oci::fuzzing::image_config_json),
    ("image_archive", msb_oci::fuzzing::image_archive),
    ("auth_challenge", msb_oci::fuzzing::auth_challenge),
    ("sandbox_description", msb_sdk::fuzzing::sandbox_description),
    ("qmp_reply", msb_vmm::fuzzing::qmp_reply),
    ("runner_config", msb_vmm::fuzzing::runner_config),
];

/// The property of a target.
#[must_use]
pub fn property(name: &str) -> Option<Property> {
    TARGETS
        .iter()
        .find(|(target, _)| *target == name)
        .map(|(_, property)| *property)
}
