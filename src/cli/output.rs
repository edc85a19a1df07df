//! Where events go: text on standard output, a progress bar on a terminal, reports in files.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::graphtest::event::{CellStatus, Event};
use crate::graphtest::report::text::{self, Paint};
use crate::graphtest::report::{File, Report, Wanted};

/// When to do what only a terminal shows well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum When {
    /// On a terminal.
    Auto,
    /// In any case.
    Always,
    /// Not at all.
    Never,
}

impl When {
    fn colour(self) -> Paint {
        // https://no-color.org: set and not empty, whatever it says.
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        match self {
            Self::Always => Paint::Colour,
            Self::Auto if !no_color && std::io::stdout().is_terminal() => Paint::Colour,
            _ => Paint::Plain,
        }
    }

    fn bar(self) -> ProgressBar {
        let shown = match self {
            Self::Never => false,
            Self::Always => true,
            Self::Auto => std::io::stderr().is_terminal() && std::io::stdout().is_terminal(),
        };
        if !shown {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template(
            "{elapsed_precise} [{wide_bar}] {pos}/{len} {prefix} {msg}",
        ) {
            bar.set_style(style);
        }
        bar
    }
}

/// How much to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Volume {
    /// Failures and the summary.
    Quiet,
    /// One line a result.
    Normal,
    /// Also when cells and scenarios begin.
    Verbose,
}

/// Takes events in and shows them.
pub(super) struct Output {
    report: Option<Report>,
    files: Vec<File>,
    paint: Paint,
    volume: Volume,
    bar: ProgressBar,
    /// Standard output went away.
    deaf: bool,
    /// Report files that could not be written; each is told once.
    broken: usize,
}

impl Output {
    pub(super) fn new(reports: &[Wanted], colour: When, progress: When, volume: Volume) -> Self {
        Self {
            report: None,
            files: reports.iter().cloned().map(File::new).collect(),
            paint: colour.colour(),
            volume,
            bar: progress.bar(),
            deaf: false,
            broken: 0,
        }
    }

    /// Shows one event, and brings reports up to date.
    pub(super) fn tell(&mut self, event: &Event) {
        let report = match &mut self.report {
            Some(report) => {
                report.take(event);
                &*report
            }
            None => match Report::begin(event) {
                Some(report) => &*self.report.insert(report),
                None => return,
            },
        };
        let text = line(event, report, self.paint, self.volume);
        move_bar(&self.bar, event, report);
        let broken = &mut self.broken;
        self.files
            .retain_mut(|file| match file.update(report, event) {
                Ok(()) => true,
                Err(e) => {
                    eprintln!("error: {e}");
                    *broken += 1;
                    false
                }
            });
        if !text.is_empty() {
            self.print(&text);
        }
    }

    fn print(&mut self, text: &str) {
        if self.deaf {
            return;
        }
        let written = self.bar.suspend(|| {
            let mut out = std::io::stdout().lock();
            out.write_all(text.as_bytes()).and_then(|()| out.flush())
        });
        // A reader that went away does not end the run: reports are still wanted, and everything must be given back.
        self.deaf = written.is_err();
    }

    /// The report of the run, and whether every file of it could be written; `None` when no run began.
    pub(super) fn finish(self) -> Option<(Report, bool)> {
        self.bar.finish_and_clear();
        Some((self.report?, self.broken == 0))
    }
}

/// What an event says on standard output.
fn line(event: &Event, report: &Report, paint: Paint, volume: Volume) -> String {
    let name = |cell: &usize| {
        report
            .cells
            .get(*cell)
            .map(|c| c.name())
            .unwrap_or_default()
    };
    match event {
        Event::RunStarted(_) if volume == Volume::Quiet => String::new(),
        Event::RunStarted(_) => text::heading(report),
        Event::CellStarted {
            cell,
            filesystem,
            planned,
            ..
        } if volume == Volume::Verbose => {
            format!("cell {} ({filesystem}): {planned} scenarios\n", name(cell))
        }
        Event::CaseStarted { cell, label } if volume == Volume::Verbose => {
            format!("begin {}  {label}\n", name(cell))
        }
        Event::CaseFinished { cell, result }
            if volume != Volume::Quiet || result.outcome.is_bad() =>
        {
            let mut line = text::result_line(paint, &name(cell), result) + "\n";
            if result.outcome.is_bad() {
                line += &text::failure_block(result);
            }
            line
        }
        Event::CellFinished { cell, end } if end.status == CellStatus::Error => {
            format!(
                "{}: {}\n",
                name(cell),
                end.reason.as_deref().unwrap_or_default()
            )
        }
        Event::RunFinished { .. } => text::summary(paint, report),
        _ => String::new(),
    }
}

fn move_bar(bar: &ProgressBar, event: &Event, report: &Report) {
    match event {
        Event::CellStarted { planned, .. } => {
            bar.inc_length(*planned as u64);
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        Event::CaseStarted { label, .. } => bar.set_message(label.clone()),
        Event::CaseFinished { .. } => {
            bar.inc(1);
            let bad = report.totals.fail + report.totals.xpass;
            if bad > 0 {
                bar.set_prefix(format!("{bad} failed"));
            }
        }
        _ => {}
    }
}
