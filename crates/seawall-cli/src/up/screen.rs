//! What a person sees: every log line with its origin, and what runs.

use std::collections::HashMap;
use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Log and status on one terminal, or in one file.
#[derive(Clone, Debug)]
pub(crate) struct Screen {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    width: usize,
    colors: HashMap<String, u8>,
    /// On a terminal the status stays at the bottom; elsewhere it is printed when it changes.
    bottom: Option<(MultiProgress, ProgressBar)>,
    last: Mutex<String>,
}

const COLORS: [u8; 6] = [36, 32, 33, 35, 34, 31];

impl Screen {
    pub(crate) fn new(names: Vec<String>) -> Self {
        let width = names.iter().map(String::len).max().unwrap_or(0).max("seawall".len());
        let colors = names.into_iter().enumerate().map(|(at, name)| (name, COLORS[at % COLORS.len()])).collect();
        let bottom = std::io::stdout().is_terminal().then(|| {
            let all = MultiProgress::with_draw_target(indicatif::ProgressDrawTarget::stdout_with_hz(5));
            let bar = all.add(ProgressBar::new_spinner());
            if let Ok(style) = ProgressStyle::with_template("{msg}") {
                bar.set_style(style);
            }
            (all, bar)
        });
        Self { shared: Arc::new(Shared { width, colors, bottom, last: Mutex::default() }) }
    }

    /// A line of some process.
    pub(crate) fn line(&self, name: &str, line: &str) {
        let width = self.shared.width;
        let text = match (&self.shared.bottom, self.shared.colors.get(name)) {
            (Some(_), Some(color)) => format!("\x1b[{color}m{name:>width$} |\x1b[0m {line}"),
            _ => format!("{name:>width$} | {line}"),
        };
        self.print(&text);
    }

    /// A line of our own.
    pub(crate) fn say(&self, line: &str) {
        self.line("seawall", line);
    }

    /// The status; shown again only when it has changed.
    pub(crate) fn status(&self, text: &str) {
        {
            let mut last = self.shared.last.lock().unwrap_or_else(PoisonError::into_inner);
            if *last == text {
                return;
            }
            text.clone_into(&mut last);
        }
        match &self.shared.bottom {
            Some((_, bar)) => bar.set_message(text.to_owned()),
            None => text.lines().for_each(|line| self.say(line)),
        }
    }

    fn print(&self, text: &str) {
        // A reader that has gone away must not stop the fleet.
        let _ = match &self.shared.bottom {
            Some((all, _)) => all.println(text),
            None => writeln!(std::io::stdout(), "{text}"),
        };
    }
}
