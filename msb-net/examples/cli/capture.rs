//! `--pcap`: a capture of the guest's link.

use std::path::{Path, PathBuf};

use clap::Args;
use msb_net::shell::Capture;

#[derive(Args)]
pub(crate) struct CaptureArgs {
    /// Writes every frame to FILE, for Wireshark and its kin (pcapng)
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,
    /// Ends the capture at this size
    #[arg(long, value_name = "MIB", default_value_t = 1024, requires = "pcap")]
    pcap_limit: u32,
}

impl CaptureArgs {
    /// Opens the capture of one guest; the first has the plain name, others their
    /// number behind it.
    pub(crate) fn open(&self, guest: u64) -> anyhow::Result<Option<Capture>> {
        let Some(path) = &self.pcap else {
            return Ok(None);
        };
        let path = match guest {
            1 => path.clone(),
            _ => numbered(path, guest),
        };
        let limit = u64::from(self.pcap_limit) << 20;
        Ok(Some(Capture::create(&path, limit)?))
    }
}

fn numbered(path: &Path, guest: u64) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{guest}"));
    name.into()
}
