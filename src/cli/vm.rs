//! `graphtest vm`, and what `graphtest run --kernel` needs of it.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use clap::{Args as ClapArgs, Subcommand};
use serde_json::{Value, json};

use super::{print, setup, usage};
use crate::graphtest::run::Status;
use crate::lab::Register;
use crate::lab::vm::{
    Accel, Cache, Deadlines, Emulator, End, Job, Kernel, Lab, Mirrors, Program, Said, Userland,
    VmError, kernels,
};

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
    /// Open a shell in a guest
    Shell {
        #[command(flatten)]
        how: HowArgs,
        /// The kernel: a name, or the path of a kernel image
        kernel: String,
    },
    /// Remove everything that was fetched and made for guests
    Clean,
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
        } => run(how, kernel, command, false),
        Command::Shell { how, kernel } => run(
            how,
            kernel,
            &["/bin/busybox".to_string(), "sh".to_string()],
            true,
        ),
        Command::Clean => {
            let cache = Cache::of_user()?;
            let text = format!("removed {}\n", cache.dir().display());
            cache.clear()?;
            print(&text)
        }
    }
}

/// An unknown name is the caller's mistake.
fn told(error: VmError) -> anyhow::Error {
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
    for name in &names {
        let kernel = Kernel::fetch(&cache, &mirrors, name, &mut |t| said.once(t));
        let kernel = kernel.map_err(told)?;
        print(&format!("{name}: {}\n", kernel.release))?;
        if zfs {
            kernel.with_zfs(&cache, &mirrors, &program, &mut |t| said.once(t))?;
            print(&format!("{name}: with zfs\n"))?;
        }
    }
    Ok(Status::Good)
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

/// Everything for guests with these kernels; what the cache does not have is fetched. `zfs`: cells want zfs, and fail in guests where
/// there is none.
pub(super) fn prepare(
    how: &HowArgs,
    names: &[String],
    zfs: bool,
) -> anyhow::Result<(Lab, Vec<Kernel>)> {
    let own = |name: &String| name.contains('/');
    for name in names.iter().filter(|n| !own(n)) {
        crate::lab::vm::kernel(name).map_err(told)?;
    }
    let of_paths = names.iter().filter(|n| own(n)).count();
    if how.modules.is_some() && of_paths != 1 {
        return Err(usage(format!(
            "--modules is for one kernel that is given by its path; found {of_paths} of them"
        )));
    }
    let mut own_kernels = BTreeMap::new();
    for name in names.iter().filter(|n| own(n)) {
        let kernel = Kernel::own(Path::new(name)).map_err(told)?;
        let kernel = match &how.modules {
            Some(dir) => kernel.with_modules(dir).map_err(told)?,
            None => kernel,
        };
        own_kernels.insert(name, kernel);
    }
    let (emulator, said) = Emulator::find(how.accel)?;
    if let Some(said) = said {
        note(&said);
    }
    let cache = Cache::of_user()?;
    let program = Program::own()?;
    let mut notes = Notes::default();
    let mut mirrors = None;
    let mut mirrors = || match &mirrors {
        Some(found) => Ok(Mirrors::clone(found)),
        None => Mirrors::find(how.from.mirror.as_deref()).inspect(|m| mirrors = Some(m.clone())),
    };
    let userland = match Userland::cached(&cache, &program)? {
        Some(userland) => userland,
        None => Userland::fetch(&cache, &mirrors()?, &program, &mut |t| notes.once(t))?,
    };
    let mut found = Vec::new();
    for name in names {
        let kernel = if own(name) {
            Kernel::own(Path::new(name)).map_err(told)?
        } else {
            match Kernel::cached(&cache, name).map_err(told)? {
                Some(kernel) => kernel,
                None => Kernel::fetch(&cache, &mirrors()?, name, &mut |t| notes.once(t))?,
            }
        };
        let kernel = match how.zfs || zfs {
            false => kernel,
            true => {
                let with = match kernel.cached_with_zfs(&cache, &program) {
                    Ok(None) => mirrors().and_then(|mirrors| {
                        kernel.with_zfs(&cache, &mirrors, &program, &mut |t| notes.once(t))
                    }),
                    Ok(Some(with)) => Ok(with),
                    Err(e) => Err(e),
                };
                match with {
                    Ok(with) => with,
                    Err(e) if how.zfs => return Err(e.into()),
                    Err(e) => {
                        notes.once(e.to_string());
                        kernel
                    }
                }
            }
        };
        if !found.contains(&kernel) {
            found.push(kernel);
        }
    }
    let lab = Lab {
        cache,
        emulator,
        userland,
        program,
        memory_mib: how.memory,
        deadlines: Deadlines::default(),
    };
    Ok((lab, found))
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

fn run(
    how: &HowArgs,
    kernel: &str,
    command: &[String],
    interactive: bool,
) -> anyhow::Result<Status> {
    let (lab, kernels) = prepare(how, &[kernel.to_string()], false)?;
    let register = setup::register()?;
    let stop = setup::interrupts()?;
    let job = Job {
        argv: command.to_vec(),
        interactive,
        ..Job::default()
    };
    let status = one(&lab, &kernels[0], &job, &register, &stop);
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
