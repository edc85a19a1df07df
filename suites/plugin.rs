//! The verdict on a built-in driver through a socket: a `graphtest serve` of its own, judged as any plugin is, must come out of every
//! scenario as the driver does in this process.
//!
//! A trial is one case, `DRIVER::SUITE/SCENARIO#ROW`, or a server of its own that a signal ends, `DRIVER::ends-by-SIGNAL`.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use graphtest::graphdriver::{Capability, CreateOpts, InitOptions};
use graphtest::graphtest::engine::{RunLimits, run_case};
use graphtest::graphtest::event::Outcome;
use graphtest::graphtest::load;
use graphtest::graphtest::needs::NeedKind;
use graphtest::graphtest::target::{Target, built_in};
use graphtest::graphtest::{Case, PluginTarget};
use graphtest::harness::{Homes, made_backings};
use graphtest::lab::Place;
use graphtest::remote::plugin::{Address, Claims, Plugin};
use graphtest::sys::mount::mounts_below;
use graphtest::sys::remove::remove_tree;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What a scenario says that asks for something that a driver in another process cannot be asked for.
const IN_THIS_PROCESS: &str = "needs a driver in this process";

/// Cases that the protocol has no way to carry, with the reason.
const UNSAYABLE: [(&str, &str); 1] = [(
    "paths/mount-table-escapes#not-utf8",
    "the protocol says paths as JSON strings, which are UTF-8",
)];

/// How long a server may take to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// A `graphtest serve`, which ends with this value, however that comes about.
struct Server(Child);

impl Server {
    fn start(driver: &str, home: &Path, socket: &Path) -> Result<Self, String> {
        Self::command(driver, home, socket)
            .spawn()
            .map(Self)
            .map_err(|e| format!("serve: {e}"))
    }

    fn command(driver: &str, home: &Path, socket: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_graphtest"));
        command.args(["serve", "--driver", driver, "--home"]);
        command.arg(home).arg("--plugin").arg(socket);
        command.stdin(Stdio::null()).stderr(Stdio::piped());
        command
    }

    /// Tells it to end, and waits until it has.
    fn end(&mut self) -> Result<ExitStatus, String> {
        self.end_by(Signal::SIGTERM)
    }

    fn end_by(&mut self, signal: Signal) -> Result<ExitStatus, String> {
        if let Some(status) = self.0.try_wait().map_err(|e| e.to_string())? {
            return Ok(status);
        }
        let pid = i32::try_from(self.0.id()).map_err(|e| e.to_string())?;
        kill(Pid::from_raw(pid), signal).map_err(|e| e.to_string())?;
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.0.try_wait().map_err(|e| e.to_string())? {
                return Ok(status);
            }
            if Instant::now() > until {
                let _ = self.0.kill();
                let _ = self.0.wait();
                return Err("the server did not end when it was told to".to_string());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // What went wrong before says more.
        let _ = self.end();
    }
}

/// A driver in this process, the same behind a socket, and where both have their homes.
struct Pair {
    here: Arc<dyn Target>,
    /// A plugin has one home at a time.
    there: Mutex<PluginTarget>,
    dir: PathBuf,
    server: Server,
    /// Given back after the server is gone.
    homes: Homes,
}

impl Pair {
    /// `Err` says why the driver does not run here.
    fn start(here: Arc<dyn Target>, homes: Homes) -> Result<Result<Self, String>, String> {
        let on = match homes.place_for(&*here, &[]) {
            Ok(place) => place.dir.clone(),
            Err(why) => return homes.close().map(|()| Err(why)),
        };
        // Filesystems that scenarios have to themselves are beside it.
        let dir = on.parent().ok_or("a place without a parent")?.to_path_buf();
        let socket = dir.join("plugin.sock");
        let server = Server::start(here.name(), &dir, &socket)?;
        let claims = claims(&*here, &on)?;
        let plugin = Plugin::new(Address::Unix(socket), Duration::from_secs(60), claims);
        let layout = here.layout().map(str::to_string);
        let there = PluginTarget::new(format!("plugin:{}", here.name()), plugin, layout);
        Ok(Ok(Self {
            here,
            there: Mutex::new(there),
            dir,
            server,
            homes,
        }))
    }

    /// Where both have their homes.
    fn place(&self) -> &Place {
        let place = self.homes.place_for(&*self.here, &[]);
        place.unwrap_or_else(|_| self.homes.place())
    }

    fn compare(&self, case: &Case) -> Result<Completion, Failed> {
        let place = self.place();
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
        if case
            .needs
            .iter()
            .any(|n| n.kind == NeedKind::Capability(Capability::Plugin))
        {
            // What is asked of the socket itself has nothing to be compared with.
            return match there.outcome {
                Outcome::Pass => Ok(Completion::Completed),
                Outcome::Skip => Ok(Completion::ignored_with(reason)),
                _ => Err(there.failure.map_or(reason, |f| f.to_string()).into()),
            };
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

    /// A server that is told to end while a layer is held gives everything back, after a diff that nobody read to its end; another one on its
    /// socket or its home is refused meanwhile.
    fn ends_by(&self, signal: Signal) -> Result<Completion, Failed> {
        let dir = self.place().dir.join(format!("served-{signal}"));
        std::fs::create_dir(&dir)?;
        let (socket, home) = (dir.join("p.sock"), dir.join("homes/home"));
        let mut server = Server::start(self.here.name(), &dir.join("homes"), &socket)?;
        let address = Address::Unix(socket.clone());
        let plugin = Plugin::new(address, PATIENCE, Claims::default());
        let driver = plugin.start(&home, &InitOptions::default())?;
        driver.create("base", None, &CreateOpts::default())?;
        let root = driver.get("base", "")?;
        std::fs::write(root.join("big"), vec![b'x'; 16 << 20])?;
        driver.put("base")?;
        driver.create("held", Some("base"), &CreateOpts::default())?;
        driver.get("held", "")?;
        let mut stream = driver.diff("base", None)?;
        stream.read_exact(&mut [0; 512])?;
        for (home, socket) in [("other", "p.sock"), ("homes", "other.sock")] {
            let other = Server::command(self.here.name(), &dir.join(home), &dir.join(socket));
            let Output { status, stderr, .. } = { other }.output()?;
            let said = String::from_utf8_lossy(&stderr).into_owned();
            if status.code() != Some(3) || !said.contains("another server") {
                return Err(format!("a second server ended with {status}: {said}").into());
            }
        }
        drop(stream);
        let status = server.end_by(signal)?;
        if !status.success() {
            return Err(format!("it ended with {status}").into());
        }
        if let Some(mount) = mounts_below(&dir)?.first() {
            return Err(format!("{} is still mounted", mount.path.display()).into());
        }
        if socket.exists() {
            return Err("the socket is still there".into());
        }
        remove_tree(&dir)?;
        Ok(Completion::Completed)
    }

    /// Ends the server, which must leave nothing behind, and gives the homes back.
    fn end(mut self) -> Result<(), String> {
        let place = self.place().dir.clone();
        drop(self.there);
        let ended = self.server.end();
        let left = mounts_below(&self.dir);
        let socket = self.dir.join("plugin.sock").exists();
        let closed = self.homes.close();
        let name = self.here.name();
        match ended? {
            status if !status.success() => Err(format!("the server of {name} ended with {status}")),
            _ if socket => Err(format!("the socket of {name} is still there")),
            _ => {
                let mut left = left.map_err(|e| e.to_string())?;
                left.retain(|m| m.path != place);
                match left.first() {
                    Some(mount) => Err(format!("{} is still mounted", mount.path.display())),
                    None => closed,
                }
            }
        }
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

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    match run(&arguments) {
        Ok(code) => code,
        Err(what) => {
            eprintln!("{what}");
            ExitCode::from(3)
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode, String> {
    let library = load::builtin().map_err(|e| e.to_string())?;
    let targets = built_in();
    let names: Vec<String> = targets.iter().map(|t| t.name().to_string()).collect();
    let mut pairs = Vec::new();
    // A list of trials needs no servers.
    if !arguments.list {
        // Making homes enters a namespace, in which the servers must be, too.
        let homes: Result<Vec<Homes>, String> = targets
            .iter()
            .map(|_| Homes::make(&std::env::temp_dir(), true).map(|h| h.also_on(made_backings())))
            .collect();
        for (here, homes) in targets.into_iter().zip(homes?) {
            pairs.push(Pair::start(here, homes)?.map(Arc::new));
        }
    }
    let mut trials = Vec::new();
    for case in library.cases() {
        for (i, name) in names.iter().enumerate() {
            let (pair, case) = (pairs.get(i).cloned(), Arc::clone(case));
            let label = format!("{name}::{}", case.label());
            trials.push(Trial::ignorable_test(label, move || match &pair {
                Some(Ok(pair)) => pair.compare(&case),
                Some(Err(why)) => Ok(Completion::ignored_with(why)),
                None => Err("no server".into()),
            }));
        }
    }
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        for (i, name) in names.iter().enumerate() {
            let pair = pairs.get(i).cloned();
            let label = format!("{name}::ends-by-{signal}");
            trials.push(Trial::ignorable_test(label, move || match &pair {
                Some(Ok(pair)) => pair.ends_by(signal),
                Some(Err(why)) => Ok(Completion::ignored_with(why)),
                None => Err("no server".into()),
            }));
        }
    }
    let code = libtest_mimic::run(arguments, trials).exit_code();
    let mut wrong = Vec::new();
    for pair in pairs.into_iter().flatten() {
        let ended = Arc::into_inner(pair)
            .ok_or_else(|| "a pair is still in use".to_string())
            .and_then(Pair::end);
        wrong.extend(ended.err());
    }
    if wrong.is_empty() {
        Ok(code)
    } else {
        Err(wrong.join("; "))
    }
}
