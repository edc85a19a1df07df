//! The verdict on a built-in driver through a socket: a `graphtest serve` of its own, judged as any plugin is, must come out of every
//! scenario as the driver does in this process.
//!
//! A trial is one case: `DRIVER::SUITE/SCENARIO#ROW`.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use graphtest::graphtest::engine::{RunLimits, run_case};
use graphtest::graphtest::event::Outcome;
use graphtest::graphtest::load;
use graphtest::graphtest::target::{Target, built_in};
use graphtest::graphtest::{Case, PluginTarget};
use graphtest::harness::Homes;
use graphtest::remote::plugin::{Address, Claims, Plugin};
use graphtest::sys::mount::mounts_below;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The drivers that are compared: one that mounts and one that does not, both of which run on a tmpfs.
const DRIVERS: [&str; 2] = ["overlay2", "vfs"];

/// What a scenario says that asks for something that a driver in another process cannot be asked for.
const IN_THIS_PROCESS: &str = "needs a driver in this process";

/// Cases that the protocol has no way to carry, with the reason.
const UNSAYABLE: [(&str, &str); 1] = [(
    "paths/mount-table-escapes#not-utf8",
    "the protocol says paths as JSON strings, which are UTF-8",
)];

/// How long a server may take to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// A driver in this process, the same behind a socket, and where both have their homes.
struct Pair {
    here: Arc<dyn Target>,
    homes: Homes,
    dir: PathBuf,
    /// A plugin has one home at a time.
    there: Mutex<PluginTarget>,
    server: Child,
}

impl Pair {
    fn start(here: Arc<dyn Target>, homes: Homes) -> Result<Self, String> {
        let on = &homes.place().dir;
        // Filesystems that scenarios have to themselves are beside it.
        let dir = on.parent().ok_or("a place without a parent")?.to_path_buf();
        let socket = dir.join("plugin.sock");
        let server = Command::new(env!("CARGO_BIN_EXE_graphtest"))
            .args(["serve", "--driver", here.name()])
            .arg("--home")
            .arg(&dir)
            .arg("--plugin")
            .arg(&socket)
            .stdin(Stdio::null())
            .spawn()
            .map_err(|e| format!("serve: {e}"))?;
        let claims = claims(&*here, on)?;
        let plugin = Plugin::new(Address::Unix(socket), Duration::from_secs(60), claims);
        let layout = here.layout().map(str::to_string);
        let there = PluginTarget::new(format!("plugin:{}", here.name()), plugin, layout);
        Ok(Self {
            here,
            homes,
            dir,
            there: Mutex::new(there),
            server,
        })
    }

    fn compare(&self, case: &Case) -> Result<Completion, Failed> {
        let place = self.homes.place();
        let limits = RunLimits::default();
        if let Some((_, why)) = UNSAYABLE.iter().find(|(label, _)| *label == case.label()) {
            return Ok(Completion::ignored_with(*why));
        }
        let there = {
            let there = self.there.lock().unwrap_or_else(PoisonError::into_inner);
            run_case(&*there, place, case, &limits)
        };
        let reason = there.reason.clone().unwrap_or_default();
        if there.outcome == Outcome::Skip && reason.starts_with(IN_THIS_PROCESS) {
            return Ok(Completion::ignored_with(reason));
        }
        let here = run_case(&*self.here, place, case, &limits);
        match (here.outcome, there.outcome) {
            (Outcome::Skip, Outcome::Skip) => Ok(Completion::ignored_with(reason)),
            (here, there) if here == there => Ok(Completion::Completed),
            (was, is) => {
                let why = there.failure.map_or(reason, |f| f.to_string());
                let was_why = here
                    .failure
                    .map_or_else(|| here.reason.unwrap_or_default(), |f| f.to_string());
                let text = format!("in this process: {was:?} {was_why}\nas a plugin: {is:?} {why}");
                Err(text.into())
            }
        }
    }

    /// Ends the server, which must leave nothing behind, and gives the homes back.
    fn end(mut self) -> Result<(), String> {
        drop(self.there);
        let status = stop(&mut self.server)?;
        if !status.success() {
            return Err(format!(
                "the server of {} ended with {status}",
                self.here.name()
            ));
        }
        let left = mounts_below(&self.dir).map_err(|e| e.to_string())?;
        let place = &self.homes.place().dir;
        if let Some(mount) = left.iter().find(|m| m.path != *place) {
            return Err(format!("{} is still mounted", mount.path.display()));
        }
        if self.dir.join("plugin.sock").exists() {
            return Err("the socket is still there".to_string());
        }
        self.homes.close()
    }
}

/// What the driver claims in this process, all of it said by a person.
fn claims(here: &dyn Target, on: &Path) -> Result<Claims, String> {
    let home = on.join("asked");
    let driver = here.init(&home, &[]).map_err(|e| e.to_string())?;
    let claims = driver.capabilities();
    driver.cleanup().map_err(|e| e.to_string())?;
    std::fs::remove_dir_all(&home).map_err(|e| e.to_string())?;
    Ok(Claims {
        claims: claims.claims,
        max_depth: claims.max_depth,
        probe: false,
    })
}

fn stop(server: &mut Child) -> Result<std::process::ExitStatus, String> {
    let pid = i32::try_from(server.id()).map_err(|e| e.to_string())?;
    kill(Pid::from_raw(pid), Signal::SIGTERM).map_err(|e| e.to_string())?;
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = server.try_wait().map_err(|e| e.to_string())? {
            return Ok(status);
        }
        if Instant::now() > until {
            let _ = server.kill();
            let _ = server.wait();
            return Err("the server did not end when it was told to".to_string());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let ended = |what: String| {
        eprintln!("{what}");
        ExitCode::from(3)
    };
    let library = match load::builtin() {
        Ok(library) => library,
        Err(e) => return ended(e.to_string()),
    };
    let mut pairs = Vec::new();
    // A list of trials needs no servers.
    let mut targets = built_in();
    targets.retain(|t| DRIVERS.contains(&t.name()));
    let names: Vec<String> = targets.iter().map(|t| t.name().to_string()).collect();
    if !arguments.list {
        // Making homes enters a namespace, in which the servers must be, too.
        let homes: Result<Vec<Homes>, String> = targets
            .iter()
            .map(|_| Homes::make(&std::env::temp_dir(), true))
            .collect();
        let homes = match homes {
            Ok(homes) => homes,
            Err(e) => return ended(e),
        };
        for (here, homes) in targets.into_iter().zip(homes) {
            match Pair::start(here, homes) {
                Ok(pair) => pairs.push(Arc::new(pair)),
                Err(e) => return ended(e),
            }
        }
    }
    let mut trials = Vec::new();
    for case in library.cases() {
        for (i, name) in names.iter().enumerate() {
            let (pair, case) = (pairs.get(i).cloned(), Arc::clone(case));
            let label = format!("{name}::{}", case.label());
            trials.push(Trial::ignorable_test(label, move || match &pair {
                Some(pair) => pair.compare(&case),
                None => Err("no server".into()),
            }));
        }
    }
    let code = libtest_mimic::run(&arguments, trials).exit_code();
    for pair in pairs {
        let ended_well = Arc::into_inner(pair)
            .ok_or_else(|| "a pair is still in use".to_string())
            .and_then(Pair::end);
        if let Err(e) = ended_well {
            return ended(e);
        }
    }
    code
}
