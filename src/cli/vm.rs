//! `graphtest vm`, and what `graphtest run --kernel` needs of it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use clap::{Args as ClapArgs, Subcommand};
use serde_json::{Value, json};

use super::{bisect, guest, print, select, setup, usage};
use crate::graphtest::guest::{Texts, order};
use crate::graphtest::run::{Cell, Named, Status};
use crate::graphtest::{Keep, load};
use crate::lab::vm::{
    Accel, Cache, Deadlines, Emulator, End, JOB_DIR, Job, Kernel, Lab, Mirrors, PROGRAM, Program,
    Said, Userland, VmError, kernels,
};
use crate::lab::{Backing, Register};

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Fetch kernels and the programs of guests, in the versions that Debian has now
    Fetch {
        #[command(flatten)]
        from: FromArgs,
        /// With the kernel's zfs: its modules are built, which takes about five minutes for each kernel, once
        #[arg(long)]
        zfs: bool,
        /// The kernels, as `list kernels` has them [default: all]
        kernel: Vec<String>,
    },
    /// Run a command in a guest, and end with its status
    Run {
        #[command(flatten)]
        how: HowArgs,
        /// The kernel: a name, or the path of a kernel image
        kernel: String,
        /// The command
        #[arg(required = true, last = true)]
        command: Vec<String>,
    },
    /// Open a shell in a guest, where a scenario has been run and everything left in place, or where a backing has been made
    Shell(Box<ShellArgs>),
    /// Find the two neighbouring kernels between which a scenario begins to fail, and write a report of it
    Bisect(Box<bisect::Args>),
    /// Remove everything that was fetched and made for guests
    Clean,
}

#[derive(Debug, ClapArgs)]
struct ShellArgs {
    #[command(flatten)]
    how: HowArgs,
    /// The driver that runs the scenario
    #[arg(long, value_name = "T", default_value = "overlay2")]
    target: String,
    /// What is made in the guest for the driver's home
    #[arg(long, value_name = "BACKING", default_value = "dir")]
    on: Backing,
    /// A scenario file to use instead of the built-in ones
    #[arg(long, value_name = "PATH")]
    suite: Vec<PathBuf>,
    /// The kernel: a name, or the path of a kernel image
    kernel: String,
    /// The scenario [default: none]
    scenario: Option<String>,
}

/// Where packages come from.
#[derive(Debug, ClapArgs)]
pub(super) struct FromArgs {
    /// The mirror of Debian's archive [default: the one that apt is set up with]
    #[arg(long, value_name = "URI", env = "GRAPHTEST_MIRROR")]
    mirror: Option<String>,
}

/// How guests are run.
#[derive(Debug, ClapArgs)]
pub(super) struct HowArgs {
    #[command(flatten)]
    from: FromArgs,
    /// What carries out a guest's instructions: auto, kvm or tcg
    #[arg(
        long,
        value_name = "HOW",
        default_value = "auto",
        env = "GRAPHTEST_ACCEL"
    )]
    accel: Accel,
    /// Modules for the kernel that is given by its path: a directory that holds lib/modules/RELEASE, or that one itself
    #[arg(long, value_name = "DIR")]
    modules: Option<PathBuf>,
    /// A guest's memory in MiB
    #[arg(long, value_name = "MIB", default_value = "1024", value_parser = clap::value_parser!(u32).range(128..))]
    memory: u32,
    /// With the kernel's zfs, as cells of zfs have it by themselves: its modules are built, once for each kernel
    #[arg(long)]
    zfs: bool,
}

pub(super) fn main(args: &Args) -> anyhow::Result<Status> {
    match &args.command {
        Command::Fetch { from, zfs, kernel } => fetch(from, *zfs, kernel),
        Command::Run {
            how,
            kernel,
            command,
        } => {
            let job = Job {
                argv: command.clone(),
                ..Job::default()
            };
            run(how, kernel, false, &job)
        }
        Command::Shell(args) => shell(args),
        Command::Bisect(args) => bisect::main(args),
        Command::Clean => {
            let cache = Cache::of_user()?;
            let text = format!("removed {}\n", cache.dir().display());
            cache.clear()?;
            print(&text)
        }
    }
}

/// An unknown name is the caller's mistake.
pub(super) fn told(error: VmError) -> anyhow::Error {
    match error {
        VmError::Unknown(why) => usage(why),
        VmError::Cannot(_) => error.into(),
    }
}

fn note(text: &str) {
    eprintln!("note: {text}");
}

fn fetch(from: &FromArgs, zfs: bool, names: &[String]) -> anyhow::Result<Status> {
    let mut names = names.to_vec();
    if names.is_empty() {
        names = kernels()?.into_keys().collect();
    }
    for name in &names {
        crate::lab::vm::kernel(name).map_err(told)?;
    }
    let cache = Cache::of_user()?;
    let mirrors = Mirrors::find(from.mirror.as_deref())?;
    let mut said = Notes::default();
    let program = Program::own()?;
    Userland::fetch(&cache, &mirrors, &program, &mut |t| said.once(t))?;
    let mut status = Status::Good;
    for name in &names {
        let mut say = |text| said.once(text);
        let kernel = match Kernel::fetch(&cache, &mirrors, name, &mut say) {
            Ok(kernel) => kernel,
            // The others may be there.
            Err(e) if names.len() > 1 => {
                eprintln!("error: {e}");
                status = Status::Harness;
                continue;
            }
            Err(e) => return Err(told(e)),
        };
        print(&format!("{name}: {}\n", kernel.release))?;
        if zfs {
            kernel.with_zfs(&cache, &mirrors, &program, &mut say)?;
            print(&format!("{name}: with zfs\n"))?;
        }
    }
    Ok(status)
}

/// Says each thing once.
#[derive(Default)]
struct Notes(Vec<String>);

impl Notes {
    fn once(&mut self, text: String) {
        if !self.0.contains(&text) {
            note(&text);
            self.0.push(text);
        }
    }
}

/// Everything for guests but their kernels; what the cache does not have is fetched when it is wanted.
pub(super) struct Guests<'a> {
    pub(super) lab: Lab,
    how: &'a HowArgs,
    mirrors: Option<Mirrors>,
    notes: Notes,
}

impl<'a> Guests<'a> {
    /// For guests with kernels of these names, all of which must make sense.
    pub(super) fn open(how: &'a HowArgs, names: &[String]) -> anyhow::Result<Self> {
        for name in names.iter().filter(|n| !is_own(n)) {
            crate::lab::vm::kernel(name).map_err(told)?;
        }
        let of_paths: Vec<&String> = names.iter().filter(|n| is_own(n)).collect();
        for name in &of_paths {
            own(how, name)?;
        }
        if how.modules.is_some() && of_paths.is_empty() {
            return Err(usage("--modules is for a kernel that is given by its path"));
        }
        let (emulator, said) = Emulator::find(how.accel)?;
        if let Some(said) = said {
            note(&said);
        }
        let (cache, program) = (Cache::of_user()?, Program::own()?);
        let (mut mirrors, mut notes) = (None, Notes::default());
        let userland = match Userland::cached(&cache, &program)? {
            Some(userland) => userland,
            None => {
                let found = Mirrors::find(how.from.mirror.as_deref())?;
                let found = mirrors.insert(found);
                Userland::fetch(&cache, found, &program, &mut |t| notes.once(t))?
            }
        };
        let lab = Lab {
            cache,
            emulator,
            userland,
            program,
            memory_mib: how.memory,
            deadlines: Deadlines::default(),
            console: None,
        };
        Ok(Self {
            lab,
            how,
            mirrors,
            notes,
        })
    }

    /// A kernel, by its name or path. `zfs`: cells want zfs, and fail in guests where there is none.
    pub(super) fn kernel(&mut self, name: &str, zfs: bool) -> anyhow::Result<Kernel> {
        let kernel = match Kernel::cached(&self.lab.cache, name) {
            _ if is_own(name) => own(self.how, name)?,
            Ok(Some(kernel)) => kernel,
            Ok(None) => {
                let (mirrors, notes) = (self.mirrors()?, &mut self.notes);
                Kernel::fetch(&self.lab.cache, &mirrors, name, &mut |t| notes.once(t))
                    .map_err(told)?
            }
            Err(e) => return Err(told(e)),
        };
        if !(self.how.zfs || zfs) {
            return Ok(kernel);
        }
        let with = match kernel.cached_with_zfs(&self.lab.cache, &self.lab.program) {
            Ok(None) => {
                let (mirrors, notes) = (self.mirrors()?, &mut self.notes);
                let lab = &self.lab;
                kernel.with_zfs(&lab.cache, &mirrors, &lab.program, &mut |t| notes.once(t))
            }
            Ok(Some(with)) => Ok(with),
            Err(e) => Err(e),
        };
        match with {
            Ok(with) => Ok(with),
            Err(e) if self.how.zfs => Err(e.into()),
            Err(e) => {
                self.notes.once(e.to_string());
                Ok(kernel)
            }
        }
    }

    /// Looked for once, and only when something is to be fetched.
    fn mirrors(&mut self) -> anyhow::Result<Mirrors> {
        if self.mirrors.is_none() {
            self.mirrors = Some(Mirrors::find(self.how.from.mirror.as_deref())?);
        }
        self.mirrors.clone().context("no mirror")
    }
}

/// Whether a kernel is one by its path.
fn is_own(name: &str) -> bool {
    name.contains('/')
}

fn own(how: &HowArgs, name: &str) -> anyhow::Result<Kernel> {
    let kernel = Kernel::own(Path::new(name)).map_err(told)?;
    match &how.modules {
        Some(dir) => kernel.with_modules(dir).map_err(told),
        None => Ok(kernel),
    }
}

/// Whether a guest needs the kernel's zfs for a cell, which is asked for by name; with `any`, also for one that is not.
pub(super) fn of_zfs(cell: &Cell, any: bool) -> bool {
    let is = |name: &str| name.split('+').next() == Some("zfs");
    let target = (any || cell.named.target) && is(cell.target.name());
    target || (any || cell.named.backing) && is(&cell.backing.to_string())
}

/// The kernels of a run.
pub(super) struct Kernels {
    /// Those that are there.
    pub(super) found: Vec<Kernel>,
    /// The names of the others, each with the reason.
    pub(super) missing: Vec<(String, String)>,
}

/// Everything for guests with these kernels; `zfs` as for [`Guests::kernel`]. Where one of several cannot be had, the others can be run.
pub(super) fn prepare(
    how: &HowArgs,
    names: &[String],
    zfs: bool,
) -> anyhow::Result<(Lab, Kernels)> {
    let mut guests = Guests::open(how, names)?;
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for name in names {
        match guests.kernel(name, zfs) {
            Ok(kernel) if found.contains(&kernel) => {}
            Ok(kernel) => found.push(kernel),
            Err(e) if missing.len() + 1 == names.len() => return Err(e),
            Err(e) => missing.push((name.clone(), format!("{e:#}"))),
        }
    }
    Ok((guests.lab, Kernels { found, missing }))
}

/// The kernels for `graphtest list`.
pub(super) fn list() -> anyhow::Result<Vec<Value>> {
    let cache = Cache::of_user()?;
    let mut items = Vec::new();
    for (name, entry) in kernels()? {
        let cached = Kernel::cached(&cache, &name)?.map(|k| k.release);
        let mut about = format!("{} of {}", entry.package, entry.suites.join(", "));
        if let Some(release) = &cached {
            about += &format!("; fetched: {release}");
        }
        items.push(json!({"name": name, "about": about, "fetched": cached}));
    }
    Ok(items)
}

/// What `graphtest doctor` says about guests.
pub(super) fn doctor() -> anyhow::Result<String> {
    let cache = Cache::of_user()?;
    let mut fetched = Vec::new();
    for name in kernels()?.into_keys() {
        if Kernel::cached(&cache, &name)?.is_some() {
            fetched.push(name);
        }
    }
    let fetched = match fetched.is_empty() {
        true => "none; graphtest vm fetch".to_string(),
        false => fetched.join(", "),
    };
    Ok(match Emulator::find(Accel::Auto) {
        Ok((_, note)) => {
            let note = note.unwrap_or_else(|| "run by KVM".to_string());
            format!("yes  guests: {note}; kernels fetched: {fetched}\n")
        }
        Err(why) => {
            let mend = "apt-get install qemu-system-x86";
            format!("no   guests: {why}\n     mend: {mend}\n")
        }
    })
}

/// What a person is put into a guest with.
fn shell(args: &ShellArgs) -> anyhow::Result<Status> {
    let library = select::library(&args.suite)?;
    let mut cell = Cell {
        target: select::targets(std::slice::from_ref(&args.target))?.remove(0),
        backing: args.on.clone(),
        named: Named::ALL,
        cases: Vec::new(),
        required: Arc::default(),
    };
    if let Some(name) = &args.scenario {
        cell.cases = vec![select::case(&library, name)?];
    }
    let texts = Texts {
        suites: match args.suite.is_empty() {
            true => None,
            false => Some(load::texts_of(&args.suite).map_err(|e| usage(e.to_string()))?),
        },
        known: Some(Vec::new()),
    };
    let options = guest::options(args.suite.clone(), library, 1, Keep::All);
    let order = order(&cell, &options, &args.kernel, &texts)?;
    let zfs = of_zfs(&cell, false);
    run(
        &args.how,
        &args.kernel,
        zfs,
        &Job {
            argv: [PROGRAM, "guest-shell", &format!("{JOB_DIR}/{ORDER}")]
                .map(str::to_string)
                .to_vec(),
            files: [(ORDER.to_string(), order)].into(),
            interactive: true,
        },
    )
}

/// The name of the file with the order.
const ORDER: &str = "order.json";

fn run(how: &HowArgs, kernel: &str, zfs: bool, job: &Job) -> anyhow::Result<Status> {
    let (lab, kernels) = prepare(how, &[kernel.to_string()], zfs)?;
    let register = setup::register()?;
    let stop = setup::interrupts()?;
    let status = one(&lab, &kernels.found[0], job, &register, &stop);
    register.close()?;
    status
}

fn one(
    lab: &Lab,
    kernel: &Kernel,
    job: &Job,
    register: &Register,
    stop: &AtomicBool,
) -> anyhow::Result<Status> {
    let stopped = || setup::interrupted(stop);
    let mut again = true;
    loop {
        let end = lab.run(kernel, job, register, &stopped, &mut |said| {
            // A reader that went away ends nothing: the command's status is still wanted.
            let _ = match said {
                Said::Up(_) => Ok(()),
                Said::Out(bytes) => std::io::stdout().write_all(bytes),
                Said::Err(bytes) => std::io::stderr().write_all(bytes),
            };
        })?;
        let _ = std::io::stdout().flush();
        return match end {
            End::Done(0) => Ok(Status::Good),
            End::Done(status) => {
                eprintln!("the command ended with status {status}");
                Ok(Status::Failed)
            }
            End::Stopped(_) => Ok(Status::Interrupted),
            End::Broken(broken) if !broken.greeted && again => {
                again = false;
                note(&format!("{broken}\ntrying once more"));
                continue;
            }
            End::Broken(broken) => Err(anyhow::anyhow!("kernel {}: {broken}", kernel.release)),
        };
    }
}
