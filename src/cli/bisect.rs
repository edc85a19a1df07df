//! `graphtest vm bisect`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use clap::Args as ClapArgs;

use super::vm::{self, Guests, HowArgs};
use super::{guest, print, select, setup, usage};
use crate::graphtest::guest::{Finding, Pair, Texts, Trial, Tried, Verdict, bisect, script};
use crate::graphtest::run::{Cell, Named, Options, Status, shell_words};
use crate::graphtest::{Case, Keep, Library, load};
use crate::lab::Backing;
use crate::lab::vm::{Kernel, kernels_between};

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    #[command(flatten)]
    how: HowArgs,
    /// A kernel under which the scenario passes: a name, or the path of a kernel image
    #[arg(long, value_name = "K")]
    good: String,
    /// A kernel under which it does not; it may be the older one
    #[arg(long, value_name = "K")]
    bad: String,
    /// What lies between them, from the good end to the bad one [default: the named kernels between two named ones]
    #[arg(long, value_name = "K,...", value_delimiter = ',')]
    among: Vec<String>,
    /// The driver
    #[arg(long, value_name = "T", default_value = "overlay2")]
    target: String,
    /// What its homes live on
    #[arg(long, value_name = "BACKING", default_value = "dir")]
    on: Backing,
    /// How often the scenario is run under each kernel
    #[arg(long, value_name = "N", default_value = "3", value_parser = clap::value_parser!(u32).range(1..=1000))]
    times: u32,
    /// Where the report goes; must not be there [default: bisect-SUITE-NAME in the current directory]
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// A scenario file to use instead of the built-in ones
    #[arg(long, value_name = "PATH")]
    suite: Vec<PathBuf>,
    /// The scenario; a row of one as suite/name#row
    scenario: String,
}

pub(super) fn main(args: &Args) -> anyhow::Result<Status> {
    let library = select::library(&args.suite)?;
    let cell = cell(args, &library)?;
    let case = Arc::clone(&cell.cases[0]);
    let output = match &args.output {
        Some(dir) => dir.clone(),
        None => PathBuf::from(format!("bisect-{}", file_name(&case.label()))),
    };
    if output.exists() {
        return Err(usage(format!(
            "{}: already there; --output names another directory",
            output.display()
        )));
    }
    let names = names(args)?;
    let mut guests = Guests::open(&args.how, &names)?;
    fs::create_dir(&output).with_context(|| output.display().to_string())?;
    let output = fs::canonicalize(&output)?;
    let source = load::texts_of(&args.suite).map_err(|e| usage(e.to_string()))?;
    let search = Search {
        args,
        cell: &cell,
        options: guest::options(args.suite.clone(), library, args.times as usize, Keep::None),
        texts: &Texts {
            suites: (!args.suite.is_empty()).then(|| source.clone()),
            known: Some(Vec::new()),
        },
        source: &source,
        output: &output,
    };
    let register = setup::register()?;
    let stop = setup::interrupts()?;
    let mut tried: Vec<Option<(Option<Kernel>, Tried)>> = names.iter().map(|_| None).collect();
    let pair = bisect(names.len(), &mut |i| {
        let (kernel, one) = search.judge(&mut guests, &names[i], &register, &|| {
            setup::interrupted(&stop)
        });
        eprintln!("{}: {}", names[i], one.verdict);
        let verdict = one.verdict.clone();
        tried[i] = Some((kernel, one));
        verdict
    });
    register.close()?;
    if setup::interrupted(&stop) {
        return Ok(Status::Interrupted);
    }
    let pair = match pair {
        Ok(pair) => pair,
        Err(why) => {
            eprintln!("error: nothing to search for: {why}");
            return Ok(Status::Failed);
        }
    };
    search.report(&names, &tried, pair)
}

/// What is searched with.
struct Search<'a> {
    args: &'a Args,
    cell: &'a Cell,
    options: Options,
    texts: &'a Texts,
    /// Every suite as it is written.
    source: &'a [(String, String)],
    output: &'a Path,
}

impl Search<'_> {
    fn judge(
        &self,
        guests: &mut Guests<'_>,
        name: &str,
        register: &crate::lab::Register,
        stop: &dyn Fn() -> bool,
    ) -> (Option<Kernel>, Tried) {
        let kernel = match guests.kernel(name, vm::of_zfs(self.cell, false)) {
            Ok(kernel) => kernel,
            Err(why) => {
                let verdict = Verdict::Untestable(format!("{why:#}"));
                return (
                    None,
                    Tried {
                        verdict,
                        result: None,
                    },
                );
            }
        };
        let mut lab = guests.lab.clone();
        lab.console = Some(self.output.join(console_of(&kernel)));
        let trial = Trial {
            cell: self.cell,
            texts: self.texts,
            options: &self.options,
        };
        let note = |text: &str| eprintln!("note: {text}");
        let tried = trial.judge(&lab, &kernel, register, stop, &note);
        (Some(kernel), tried)
    }

    /// Writes what was found into the directory, and shows it.
    fn report(
        &self,
        names: &[String],
        tried: &[Option<(Option<Kernel>, Tried)>],
        pair: Pair,
    ) -> anyhow::Result<Status> {
        let kernel = |i: usize| tried[i].as_ref().and_then(|(kernel, _)| kernel.as_ref());
        let ends = [kernel(pair.good), kernel(pair.bad)];
        let files = beside(
            &self.cell.cases[0],
            self.args,
            self.source,
            ends,
            self.output,
        )?;
        let lines = names.iter().zip(tried).enumerate().map(|(i, (name, one))| {
            let release = kernel(i).map(|k| k.release.clone());
            let one = one.as_ref().map(|(_, one)| one.clone());
            (name.clone(), release, one)
        });
        let lines: Vec<_> = lines.collect();
        let finding = Finding {
            cell: self.cell,
            tried: &lines,
            pair,
            files: &files,
            again: &self.again(&names[pair.bad]),
        };
        let report = self.output.join("report.txt");
        fs::write(&report, finding.to_string()).with_context(|| report.display().to_string())?;
        print(&format!(
            "{finding}\nWritten to {}\n",
            self.output.display()
        ))
    }

    /// The command that runs the scenario under a kernel.
    fn again(&self, kernel: &str) -> String {
        let args = self.args;
        let mut words: Vec<String> = ["graphtest", "run", "--kernel", kernel]
            .map(str::to_string)
            .to_vec();
        for suite in &args.suite {
            words.extend(["--suite".to_string(), suite.display().to_string()]);
        }
        words.extend(["--target".to_string(), args.target.clone()]);
        words.extend(["--on".to_string(), args.on.to_string()]);
        words.push(self.cell.cases[0].label());
        shell_words(&words)
    }
}

fn console_of(kernel: &Kernel) -> String {
    format!("console-{}.log", kernel.release)
}

/// The one scenario on its cell.
fn cell(args: &Args, library: &Library) -> anyhow::Result<Cell> {
    Ok(Cell {
        target: select::targets(std::slice::from_ref(&args.target))?.remove(0),
        backing: args.on.clone(),
        named: Named::ALL,
        cases: vec![select::case(library, &args.scenario)?],
        required: Arc::default(),
    })
}

/// The kernels from the good end to the bad one.
fn names(args: &Args) -> anyhow::Result<Vec<String>> {
    if args.good == args.bad {
        return Err(usage("the good and the bad kernel are the same"));
    }
    let mut names = vec![args.good.clone()];
    if args.among.is_empty() {
        names.extend(kernels_between(&args.good, &args.bad).map_err(vm::told)?);
    } else {
        let ends = [&args.good, &args.bad];
        let inner = args.among.iter().filter(|k| !ends.contains(k));
        names.extend(inner.cloned());
    }
    names.push(args.bad.clone());
    Ok(names)
}

/// What lies beside a report: the name of each file, and what it is.
struct Beside<'a> {
    output: &'a Path,
    files: Vec<(String, String)>,
}

impl Beside<'_> {
    fn write(&mut self, name: String, text: &[u8], about: String) -> anyhow::Result<()> {
        let path = self.output.join(&name);
        fs::write(&path, text).with_context(|| path.display().to_string())?;
        self.files.push((name, about));
        Ok(())
    }
}

/// Writes what belongs to a report about these two kernels.
fn beside(
    case: &Case,
    args: &Args,
    texts: &[(String, String)],
    pair: [Option<&Kernel>; 2],
    output: &Path,
) -> anyhow::Result<Vec<(String, String)>> {
    let mut beside = Beside {
        output,
        files: Vec::new(),
    };
    let file = case.scenario.at.file.to_string();
    if let Some((_, text)) = texts.iter().find(|(name, _)| *name == file) {
        let name = file.rsplit('/').next().unwrap_or(&file).to_string();
        let text = load::only(text, &case.scenario);
        beside.write(
            name,
            text.as_bytes(),
            "the scenario, for --suite".to_string(),
        )?;
    }
    if let Some(text) = script(case, &args.target) {
        let about = "the same by hand, without graphtest".to_string();
        beside.write("by-hand.sh".to_string(), text.as_bytes(), about)?;
    }
    for kernel in pair.into_iter().flatten() {
        let release = &kernel.release;
        if let Some(config) = kernel.config() {
            let text = fs::read(&config).with_context(|| config.display().to_string())?;
            let about = format!("the configuration of {release}");
            beside.write(format!("config-{release}"), &text, about)?;
        }
        let console = console_of(kernel);
        if output.join(&console).exists() {
            let about = format!("what {release} said, in all guests");
            beside.files.push((console, about));
        }
    }
    Ok(beside.files)
}

/// A label as the name of a file.
fn file_name(label: &str) -> String {
    let plain = |c: char| match c {
        c if c.is_ascii_alphanumeric() || "-_.".contains(c) => c,
        _ => '-',
    };
    label.chars().map(plain).collect()
}
