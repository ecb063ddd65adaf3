//! Progress on standard error: bars on a terminal, a few lines elsewhere.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use msb_sdk::{Progress, PullEvent, VmStep};

use crate::size::human;
use crate::terminal;

/// Shows how an image or a sandbox comes about. Clones show the same.
#[derive(Clone)]
pub(crate) struct Display(Option<Arc<Mutex<Shown>>>);

struct Shown {
    image: String,
    started: Instant,
    layers: usize,
    bytes: u64,
    fetching: bool,
    /// On a terminal only.
    bars: Option<MultiProgress>,
    layer_bars: HashMap<usize, ProgressBar>,
    spinner: Option<ProgressBar>,
}

impl Display {
    pub(crate) fn new(image: &str, quiet: bool) -> Self {
        if quiet {
            return Self(None);
        }
        Self(Some(Arc::new(Mutex::new(Shown {
            image: image.to_owned(),
            started: Instant::now(),
            layers: 0,
            bytes: 0,
            fetching: false,
            bars: terminal::stderr_is_terminal().then(MultiProgress::new),
            layer_bars: HashMap::new(),
            spinner: None,
        }))))
    }

    pub(crate) fn show(&self, progress: &Progress) {
        match progress {
            Progress::Pull(event) => self.pull(event),
            Progress::Vm(step) => self.with(|shown| shown.vm(*step)),
            _ => {}
        }
    }

    pub(crate) fn pull(&self, event: &PullEvent) {
        self.with(|shown| shown.pull(event));
    }

    /// Takes the bars off the terminal.
    pub(crate) fn finish(&self) {
        self.with(|shown| {
            if let Some(spinner) = shown.spinner.take() {
                spinner.finish_and_clear();
            }
            if let Some(bars) = &shown.bars {
                let _ = bars.clear();
            }
        });
    }

    fn with(&self, work: impl FnOnce(&mut Shown)) {
        if let Some(shown) = &self.0 {
            work(&mut shown.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }
}

impl Shown {
    fn pull(&mut self, event: &PullEvent) {
        match event {
            PullEvent::Resolved { layers, bytes, .. } => {
                (self.layers, self.bytes) = (*layers, *bytes);
            }
            PullEvent::LayerStarted {
                layer,
                digest,
                total,
            } => self.layer_started(*layer, &digest.to_string(), *total),
            PullEvent::LayerProgress { layer, done, .. } => {
                if let Some(bar) = self.layer_bars.get(layer) {
                    bar.set_position(*done);
                }
            }
            PullEvent::LayerRetry {
                layer,
                attempt,
                reason,
            } => {
                self.line(&format!("layer {layer}: {reason}; attempt {attempt}"));
            }
            PullEvent::LayerDone { layer } => {
                if let Some(bar) = self.layer_bars.remove(layer) {
                    bar.finish_and_clear();
                }
            }
            PullEvent::LeftOut { digest, tag } => {
                let tag = tag.as_deref().map(|tag| format!(", tagged {tag:?}"));
                self.line(&format!(
                    "left out, because the archive does not name it: {digest}{}",
                    tag.unwrap_or_default()
                ));
            }
            PullEvent::Done { fetched: true, .. } if self.fetching => {
                let seconds = self.started.elapsed().as_secs_f64();
                let text = format!(
                    "Pulled {}: {} layers, {} in {seconds:.1} s",
                    self.image,
                    self.layers,
                    human(self.bytes)
                );
                self.line(&text);
            }
            _ => {}
        }
    }

    fn layer_started(&mut self, layer: usize, digest: &str, total: u64) {
        if !self.fetching {
            self.fetching = true;
            self.line(&format!("Pulling {}", self.image));
        }
        let Some(bars) = &self.bars else { return };
        let style = ProgressStyle::with_template(
            "  {prefix} [{bar:32}] {bytes:>10}/{total_bytes} {bytes_per_sec}",
        );
        let bar = bars.add(ProgressBar::new(total));
        if let Ok(style) = style {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(
            digest
                .trim_start_matches("sha256:")
                .chars()
                .take(12)
                .collect::<String>(),
        );
        self.layer_bars.insert(layer, bar);
    }

    fn vm(&mut self, step: VmStep) {
        let text = match step {
            VmStep::TemplateWaiting => "Waiting for another msb to prepare the machine template",
            VmStep::TemplateBooting => "Preparing a machine template (once for these settings)",
            VmStep::TemplateDone => {
                if let Some(spinner) = self.spinner.take() {
                    spinner.finish_and_clear();
                }
                return;
            }
            _ => return,
        };
        match &self.bars {
            Some(bars) => {
                let spinner = self
                    .spinner
                    .get_or_insert_with(|| bars.add(ProgressBar::new_spinner()));
                spinner.set_message(text);
                spinner.tick();
            }
            None => self.line(text),
        }
    }

    fn line(&self, text: &str) {
        match &self.bars {
            Some(bars) => drop(bars.println(text)),
            None => terminal::complain(text),
        }
    }
}
