//! How much of the network a sandbox may use at once.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a sandbox may use of the network in each second; `None` is as much as there is.
///
/// ```
/// use msb_sdk::NetworkLimits;
///
/// let limits = NetworkLimits { download: Some(1_000_000), ..NetworkLimits::default() };
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkLimits {
    /// Bytes that the guest may send.
    pub upload: Option<u64>,
    /// Bytes that the guest may receive.
    pub download: Option<u64>,
    /// Connections and datagram flows that may be opened, in either direction.
    pub opens: Option<u32>,
}

impl NetworkLimits {
    /// Sets these limits in those of a gateway.
    pub(crate) fn apply(self, limits: &mut msb_net::gateway::Limits) {
        limits.upload = self.upload;
        limits.download = self.download;
        limits.opens = self.opens;
    }

    /// The limit that would let nothing pass.
    pub(crate) fn zero(self) -> Option<&'static str> {
        let limits = [
            ("upload", self.upload),
            ("download", self.download),
            ("opens", self.opens.map(u64::from)),
        ];
        let zero = limits.iter().find(|(_, limit)| *limit == Some(0));
        zero.map(|(name, _)| *name)
    }
}
