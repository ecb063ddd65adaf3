//! `msb events`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use msb_sdk::{Activity, Home, LifeEvent, Sandbox, SandboxEvent};
use tokio::time::Instant;

use crate::args::{EventKindArg, EventsArgs, FormatArg};
use crate::session::forwarded_signals;
use crate::{Failure, terminal};

const DAY: u64 = 86_400;

/// Prints what happens until its time is up, it is interrupted, or nobody reads any more.
pub(crate) async fn run(args: EventsArgs) -> Result<u8, Failure> {
    let home = Home::from_env()?;
    let since = SystemTime::now().checked_sub(args.since.unwrap_or_default());
    let since = since.unwrap_or(UNIX_EPOCH);
    let mut signals = forwarded_signals();
    let mut events = Sandbox::watch_in(&home, since).await?;
    // One that would be after the end of time never comes.
    let end = args.time.and_then(|time| Instant::now().checked_add(time));
    let end = async {
        match end {
            Some(end) => tokio::time::sleep_until(end).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(end);
    for name in &args.names {
        match Sandbox::get(name).await {
            Err(error @ msb_sdk::Error::NoSandbox { .. }) => {
                terminal::complain(&format!("msb: {error}: waiting for it"));
            }
            Err(error @ msb_sdk::Error::InvalidName { .. }) => return Err(error.into()),
            _ => {}
        }
    }
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            Some(number) = signals.recv() => return Ok(128 + number),
            () = &mut end => return Ok(0),
        };
        let Some(event) = event else {
            return Err(Failure::Usage {
                message: "the host tells of no more changes".into(),
                hint: Some("run it again".into()),
            });
        };
        if wanted(&args, &event) && !terminal::pass(line(args.format, &event))? {
            return Ok(0);
        }
    }
}

fn wanted(args: &EventsArgs, event: &SandboxEvent) -> bool {
    let kind = match &event.activity {
        Activity::Life(event) if event.is_exec() => EventKindArg::Exec,
        // Whoever listens is to know that something is missing.
        Activity::Life(LifeEvent::Lost { .. }) => return true,
        Activity::Network(_) => EventKindArg::Network,
        _ => EventKindArg::Life,
    };
    (args.names.is_empty() || args.names.contains(&event.sandbox))
        && (args.kinds.is_empty() || args.kinds.contains(&kind))
}

fn line(format: FormatArg, event: &SandboxEvent) -> String {
    match format {
        FormatArg::Json => format!("{}\n", event.json()),
        FormatArg::Table => format!("{} {}\n", stamp(event.at), shown(&event.to_string())),
    }
}

/// Text in which nothing is left that a terminal obeys: names of programs are anybody's words.
fn shown(text: &str) -> String {
    let escaped = |letter: char| match letter.is_control() {
        true => letter.escape_default().to_string(),
        false => letter.to_string(),
    };
    text.chars().map(escaped).collect()
}

/// The time in UTC, as RFC 3339 has it, to the millisecond.
fn stamp(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let (days, second) = (since.as_secs() / DAY, since.as_secs() % DAY);
    let (year, month, day) = date(days);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    let (second, millis) = (second % 60, since.subsec_millis());
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// Year, month and day of the Gregorian calendar, so many days after 1970 began.
fn date(days: u64) -> (u64, u64, u64) {
    let leap = |year: u64| match year.is_multiple_of(100) {
        true => year.is_multiple_of(400),
        false => year.is_multiple_of(4),
    };
    let (mut year, mut left) = (1970 + 400 * (days / 146_097), days % 146_097);
    while left >= 365 + u64::from(leap(year)) {
        left -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if left < length {
            break;
        }
        left -= length;
        month += 1;
    }
    (year, month, left + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_dates() {
        let at = |seconds: u64, millis| {
            stamp(UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_millis(millis))
        };
        // As `date -u -d @N` has them.
        assert_eq!(at(0, 0), "1970-01-01T00:00:00.000Z");
        assert_eq!(at(951_782_399, 7), "2000-02-28T23:59:59.007Z");
        assert_eq!(at(951_868_799, 0), "2000-02-29T23:59:59.000Z");
        assert_eq!(at(1_798_761_599, 999), "2026-12-31T23:59:59.999Z");
        assert_eq!(at(4_107_542_400, 0), "2100-03-01T00:00:00.000Z");
    }

    #[test]
    fn a_terminal_obeys_no_name() {
        assert_eq!(shown("a\x1b[2J\nb ä"), "a\\u{1b}[2J\\nb ä");
    }
}
