//! What a program may use: arguments of every command that runs one.

use std::time::Duration;

use msb_sdk::{ExecOptions, Resource};

/// How one program is connected to what this process has.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct TerminalArgs {
    /// Pass standard input on even when it is a terminal
    #[arg(short = 'i', long)]
    pub(crate) interactive: bool,
    /// Give the program a terminal; without -i, -t and --no-tty a person at one gets both
    #[arg(short = 't', long)]
    pub(crate) tty: bool,
    /// Neither, also for a person at a terminal
    #[arg(long, conflicts_with_all = ["interactive", "tty"])]
    pub(crate) no_tty: bool,
}

/// Bounds of one program.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct BoundsArgs {
    /// Kill the program when it has not ended by then, such as 30s, 5m or 500ms; exit code 124
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(crate) timeout: Option<Duration>,
    /// Bound what the program uses of a resource, such as nofile=1024 or fsize=1M:1G
    ///
    /// May be given several times. NAME is cpu (seconds), as, core, fsize, memlock, stack
    /// (bytes, also with K, M or G), nofile or nproc; HARD is how far the program may raise
    /// the bound. "unlimited" is no bound.
    #[arg(long, visible_alias = "rlimit", value_name = "NAME=SOFT[:HARD]", value_parser = parse_limit)]
    pub(crate) ulimit: Vec<Limit>,
}

/// A bound: of what, the one that holds, and the one up to which it can be raised.
pub(crate) type Limit = (Resource, Option<u64>, Option<u64>);

impl BoundsArgs {
    /// Gives a program its bounds.
    pub(crate) fn apply(&self, mut options: ExecOptions) -> ExecOptions {
        if let Some(after) = self.timeout {
            options = options.timeout(after);
        }
        for (resource, soft, hard) in &self.ulimit {
            options = options.limits(*resource, *soft, *hard);
        }
        options
    }
}

/// A time such as `30s`, `5m`, `1.5h` or `500ms`; seconds without a unit, as `timeout(1)` has it.
pub(crate) fn parse_time(text: &str) -> Result<Duration, String> {
    let digits = text
        .bytes()
        .take_while(|byte| byte.is_ascii_digit() || *byte == b'.')
        .count();
    let (number, unit) = text.split_at(digits);
    let wrong = || format!("{text:?} is no time; write for example 30s, 5m or 500ms");
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let seconds = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return Err(wrong()),
    };
    let time = Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())?;
    if time.is_zero() {
        return Err(format!("{text:?} is no time at all"));
    }
    Ok(time)
}

/// As [`parse_time`], for a time that may be none.
pub(crate) fn parse_grace(text: &str) -> Result<Duration, String> {
    match text {
        "0" | "0s" => Ok(Duration::ZERO),
        text => parse_time(text),
    }
}

/// The names that `ulimit` and container tools have for resources.
const RESOURCES: [(&str, Resource); 8] = [
    ("as", Resource::AddressSpace),
    ("core", Resource::CoreFile),
    ("cpu", Resource::CpuTime),
    ("fsize", Resource::FileSize),
    ("memlock", Resource::LockedMemory),
    ("nofile", Resource::Descriptors),
    ("nproc", Resource::Processes),
    ("stack", Resource::Stack),
];

fn parse_limit(text: &str) -> Result<Limit, String> {
    let (name, bounds) = text
        .split_once('=')
        .ok_or_else(|| format!("{text:?} has no \"=\"; write for example nofile=1024"))?;
    let known = RESOURCES.iter().find(|(known, _)| *known == name);
    let (_, resource) = known.ok_or_else(|| {
        let names = RESOURCES.map(|(name, _)| name).join(", ");
        format!("{name:?} is no resource; it must be one of {names}")
    })?;
    let (soft, hard) = bounds.split_once(':').unwrap_or((bounds, bounds));
    let (soft, hard) = (parse_bound(soft)?, parse_bound(hard)?);
    if hard.is_some_and(|hard| soft.is_none_or(|soft| soft > hard)) {
        return Err(format!(
            "{bounds:?}: the bound is above what it can be raised to"
        ));
    }
    Ok((*resource, soft, hard))
}

fn parse_bound(text: &str) -> Result<Option<u64>, String> {
    match text {
        "unlimited" | "-1" => Ok(None),
        plain if plain.bytes().all(|byte| byte.is_ascii_digit()) => {
            let number = plain.parse();
            number
                .map(Some)
                .map_err(|_| format!("{text:?} is no number"))
        }
        sized => crate::size::parse_bytes(sized).map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        for (text, millis) in [
            ("5", 5000),
            ("500ms", 500),
            ("1.5m", 90_000),
            ("2h", 7_200_000),
        ] {
            assert_eq!(
                parse_time(text),
                Ok(Duration::from_millis(millis)),
                "{text}"
            );
        }
        for wrong in [
            "",
            "s",
            "0",
            "-1s",
            "5 s",
            "1e9s",
            "soon",
            "1.2.3s",
            "99999999999999999999d",
        ] {
            parse_time(wrong).expect_err(wrong);
        }
    }

    #[test]
    fn limits_are_those_of_ulimit() {
        let files = Resource::Descriptors;
        assert_eq!(parse_limit("nofile=64"), Ok((files, Some(64), Some(64))));
        assert_eq!(
            parse_limit("nofile=64:unlimited"),
            Ok((files, Some(64), None))
        );
        let large = Ok((Resource::FileSize, Some(1 << 20), Some(1 << 30)));
        assert_eq!(parse_limit("fsize=1M:1G"), large);
        for wrong in [
            "nofile",
            "files=1",
            "nofile=",
            "nofile=2:1",
            "nofile=unlimited:1",
            "core=1x",
        ] {
            parse_limit(wrong).expect_err(wrong);
        }
    }
}
