//! A driver through the socket of a `graphtest serve`, beside the same driver in this process.

#![allow(dead_code)] // Every benchmark uses a part of it.

use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use graphtest::graphdriver::{CreateOpts, Driver, InitOptions};
use graphtest::remote::plugin::{Address, Claims, Plugin};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::support;

/// The driver that is measured: the others' calls take longer.
pub const DRIVER: &str = "vfs";

/// A server of [`DRIVER`]; it ends with this value.
pub struct Served(Child);

impl Served {
    /// Serves drivers with homes below `root`.
    pub fn start(root: &Path) -> Self {
        let server = Command::new(env!("CARGO_BIN_EXE_graphtest"))
            .args(["serve", "--driver", DRIVER, "--home"])
            .arg(root)
            .arg("--plugin")
            .arg(root.join("plugin.sock"))
            .stderr(Stdio::null())
            .spawn()
            .expect("our own program");
        Self(server)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let pid = i32::try_from(self.0.id()).expect("a process id");
        kill(Pid::from_raw(pid), Signal::SIGTERM).expect("it is a child");
        assert!(self.0.wait().expect("it is a child").success());
    }
}

/// The driver behind the socket in `root`, on the home that [`support::driver`] has there.
pub fn through_socket(root: &Path) -> Arc<dyn Driver> {
    let address = Address::Unix(root.join("plugin.sock"));
    let plugin = Plugin::new(address, Duration::from_secs(60), Claims::default());
    plugin
        .start(&root.join(DRIVER), &InitOptions::default())
        .expect("it starts")
}

/// How many calls a median is of.
const CALLS: usize = 10_000;

/// The median of a call that does next to nothing, times [`CALLS`].
pub fn calls(driver: &dyn Driver) -> Duration {
    let mut times: Vec<Duration> = (0..CALLS)
        .map(|_| {
            let start = Instant::now();
            assert!(driver.exists("base"));
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[CALLS / 2] * u32::try_from(CALLS).expect("a small number")
}

/// The time of a diff of the layer `base`, which is thrown away.
pub fn diff(driver: &dyn Driver) -> Duration {
    let start = Instant::now();
    assert!(support::drain(driver.diff("base", None).expect("diff")) > 0);
    start.elapsed()
}

/// The time of applying an archive to a fresh layer, which is removed again.
pub fn apply(driver: &dyn Driver, archive: &Path) -> Duration {
    driver
        .create("fresh", None, &CreateOpts::default())
        .expect("create");
    let mut archive = io::BufReader::with_capacity(
        128 * 1024,
        std::fs::File::open(archive).expect("the archive"),
    );
    let start = Instant::now();
    driver
        .apply_diff("fresh", None, &mut archive)
        .expect("apply");
    let took = start.elapsed();
    driver.remove("fresh").expect("remove");
    took
}
