//! Hands the target named by `MSB_FUZZ_TARGET` to libFuzzer.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use msb_fuzz::Property;

static PROPERTY: OnceLock<Property> = OnceLock::new();

fuzz_target!(|data: &[u8]| {
    let property = PROPERTY.get_or_init(|| {
        let name = std::env::var("MSB_FUZZ_TARGET").unwrap_or_default();
        let names: Vec<_> = msb_fuzz::TARGETS.iter().map(|(name, _)| *name).collect();
        msb_fuzz::property(&name)
            .unwrap_or_else(|| panic!("set MSB_FUZZ_TARGET to one of {names:?}"))
    });
    property(data);
});
