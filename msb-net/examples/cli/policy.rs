//! A policy from the command line: a file, or a preset, and rules behind it.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use msb_net::Name;
use msb_net::policy::{Document, Policy, Preset, Rule};

#[derive(Args)]
pub(crate) struct PolicyArgs {
    /// Reads the policy from FILE (its grammar is in the README of msb-net)
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// What happens where no rule says otherwise: public-only (the default),
    /// allow-all or none
    #[arg(long, value_name = "PRESET", conflicts_with = "policy")]
    net: Option<String>,
    /// Adds a rule behind those of the file, such as "allow tcp 443 1.1.1.1"
    #[arg(long, value_name = "RULE")]
    rule: Vec<String>,
    /// Refuses a name and all below it, ahead of all rules
    #[arg(long, value_name = "SUFFIX")]
    block_domain: Vec<String>,
}

impl PolicyArgs {
    /// Reads what was given.
    pub(crate) fn read(&self) -> anyhow::Result<Policy> {
        let mut policy = match (&self.policy, &self.net) {
            (Some(path), _) => file(path)?,
            (None, Some(preset)) => {
                let preset: Preset = preset.parse().context("--net")?;
                Policy::preset(preset)
            }
            (None, None) => Policy::default(),
        };
        for text in &self.rule {
            let named = || format!("--rule {text:?}");
            let rule: Rule = text.parse().with_context(named)?;
            policy = policy.rule(rule).with_context(named)?;
        }
        for suffix in &self.block_domain {
            let named = || format!("--block-domain {suffix:?}");
            let suffix: Name = suffix.parse().with_context(named)?;
            policy = policy.block_domain_suffix(suffix).with_context(named)?;
        }
        Ok(policy)
    }
}

fn file(path: &Path) -> anyhow::Result<Policy> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
    let document = Document::from_file(path, &text).with_context(|| shown.to_string())?;
    Ok(document.policy)
}
