//! A plugin as a driver: the daemon's side of the protocol.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::Serialize;
use ureq_proto::http::StatusCode;

use super::Address;
use super::client::{Answered, Body, Client};
use super::http::percent_encode;
use super::probe::shown;
use super::wire::{Answer, GRAPH_DRIVER, Init, Request};
use crate::graphdriver::{
    Capabilities, Capability, Change, CreateOpts, DiffRead, DiffStream, Driver, Error, FsMagic,
    InitOptions, ProtoDriver, Result, get_fs_magic,
};
use crate::sync::lock;

/// What a person says that a plugin can, beyond what it answers and shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// Capabilities.
    pub claims: BTreeSet<Capability>,
    /// The most layers a chain may have.
    pub max_depth: Option<u32>,
    /// Whether what it can is also looked for in what it does, once for each kind of filesystem below a home.
    pub probe: bool,
}

/// A plugin that listens somewhere. It has one driver at a time: starting one ends the one before, as a daemon's start does.
#[derive(Debug)]
pub struct Plugin {
    client: Arc<Client>,
    name: String,
    claims: Claims,
    /// What it showed, by the kind of filesystem.
    shown: Mutex<BTreeMap<FsMagic, BTreeSet<Capability>>>,
    /// The number of the driver that was started last.
    current: Arc<AtomicU64>,
}

impl Plugin {
    /// A plugin at an address; nothing is asked of it yet. A call that takes longer than `limit` fails; of a stream, each piece.
    pub fn new(address: Address, limit: Duration, claims: Claims) -> Self {
        Self {
            name: format!("plugin:{address}"),
            client: Arc::new(Client::new(address, limit)),
            claims,
            shown: Mutex::default(),
            current: Arc::default(),
        }
    }

    /// Where it listens.
    pub fn address(&self) -> &Address {
        self.client.address()
    }

    /// How long a call may take.
    pub fn limit(&self) -> Duration {
        self.client.limit()
    }

    /// A new connection to it, on which nothing was said yet.
    ///
    /// # Errors
    /// Nobody listens.
    pub fn dial(&self) -> io::Result<OwnedFd> {
        self.client.connect().map(Into::into)
    }

    /// Activates the plugin and starts its driver on a home, an absolute path.
    ///
    /// # Errors
    /// [`Error::Remote`], naming the call: it cannot be reached, does not implement graph drivers, does not answer in time or not as the
    /// protocol has it, or says an error.
    pub fn start(&self, home: &Path, init: &InitOptions) -> Result<Arc<dyn Driver>> {
        let seen = if self.claims.probe {
            self.shown_on(home, init)?
        } else {
            BTreeSet::new()
        };
        let mut driver = self.begin(home, init)?;
        driver.capabilities.claims.extend(seen);
        Ok(Arc::new(driver))
    }

    /// What it shows on the filesystem of a home. Where nothing can be found out, it shows nothing; its scenarios say more.
    fn shown_on(&self, home: &Path, init: &InitOptions) -> Result<BTreeSet<Capability>> {
        let Some(above) = home.parent() else {
            return Ok(BTreeSet::new());
        };
        let Ok(magic) = get_fs_magic(above) else {
            return Ok(BTreeSet::new());
        };
        if let Some(seen) = lock(&self.shown).get(&magic) {
            return Ok(seen.clone());
        }
        let seen = self.look(above, init)?;
        lock(&self.shown).insert(magic, seen.clone());
        Ok(seen)
    }

    /// Tries it out on a home of its own, which is taken away afterwards.
    fn look(&self, above: &Path, init: &InitOptions) -> Result<BTreeSet<Capability>> {
        let home = tempfile::Builder::new()
            .prefix("probe-")
            .tempdir_in(above)
            .map_err(|e| Error::io("make a directory in", above, e))?;
        let plain = InitOptions {
            options: Vec::new(),
            ..init.clone()
        };
        // One that does not start here starts nowhere; whoever waits for it need not wait twice.
        let driver = self.begin(home.path(), &plain)?;
        let seen = shown(&driver).and_then(|seen| driver.cleanup().map(|()| seen));
        Ok(seen.unwrap_or_default())
    }

    fn begin(&self, home: &Path, init: &InitOptions) -> Result<PluginDriver> {
        let Some(home) = home.to_str() else {
            return Err(Error::Remote {
                call: "GraphDriver.Init".to_owned(),
                text: "the protocol has no way to say a home that is no UTF-8".to_owned(),
                class: None,
            });
        };
        let call = "Plugin.Activate";
        let answer = self.client.call::<()>(call, None)?;
        let answer = good(&self.client, call, answer)?;
        if !answer.implements.iter().any(|what| what == GRAPH_DRIVER) {
            return Err(Error::Remote {
                call: call.to_owned(),
                text: format!("it implements {:?}, not {GRAPH_DRIVER}", answer.implements),
                class: None,
            });
        }
        let number = self.current.fetch_add(1, Ordering::SeqCst) + 1;
        let mut driver = PluginDriver {
            client: Arc::clone(&self.client),
            name: self.name.clone(),
            capabilities: Capabilities {
                claims: self.claims.claims.clone(),
                max_depth: self.claims.max_depth,
            },
            number,
            current: Arc::clone(&self.current),
            released: AtomicBool::new(true),
        };
        driver.capabilities.claims.insert(Capability::Plugin);
        driver.call("Init", &Init::new(home, init))?;
        if driver.reproduces_exact_diffs()? {
            driver.capabilities.claims.insert(Capability::ExactDiffs);
        }
        Ok(driver)
    }
}

/// The answer of a call that went well.
fn good(client: &Client, call: &str, answered: Answered) -> Result<Answer> {
    match answered {
        Answered {
            status: StatusCode::OK,
            said: Ok(answer),
        } if answer.err.is_empty() => Ok(answer),
        failed => Err(client.refused(call, failed)),
    }
}

/// A plugin's driver, started on a home.
struct PluginDriver {
    client: Arc<Client>,
    name: String,
    capabilities: Capabilities,
    number: u64,
    current: Arc<AtomicU64>,
    /// Whether nothing was asked since the last cleanup.
    released: AtomicBool,
}

impl fmt::Debug for PluginDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PluginDriver")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl PluginDriver {
    /// A call that must be answered without an error.
    fn call(&self, method: &str, body: &impl Serialize) -> Result<Answer> {
        self.released.store(false, Ordering::SeqCst);
        let call = format!("{GRAPH_DRIVER}.{method}");
        let answered = self.client.call(&call, Some(body))?;
        good(&self.client, &call, answered)
    }

    /// Whether it gives back the very archives that were applied. Plugins from before 17.05 do not know the question.
    fn reproduces_exact_diffs(&self) -> Result<bool> {
        let call = "GraphDriver.Capabilities";
        let answered = self.client.call(call, Some(&Request::default()))?;
        match answered {
            Answered {
                status: StatusCode::NOT_FOUND,
                ..
            } => Ok(false),
            Answered {
                status: StatusCode::OK,
                said: Ok(answer),
            } => Ok(answer.capabilities.reproduces_exact_diffs),
            failed => Err(self.client.refused(call, failed)),
        }
    }

    /// An answer that a call cannot have.
    fn wrong(method: &str, what: String) -> Error {
        Error::Remote {
            call: format!("{GRAPH_DRIVER}.{method}"),
            text: what,
            class: None,
        }
    }

    fn make(&self, method: &str, id: &str, parent: Option<&str>, opts: &CreateOpts) -> Result<()> {
        let request = Request {
            mount_label: opts.mount_label.clone(),
            storage_opt: opts.storage_opt.clone(),
            ..Request::of(id, parent)
        };
        self.call(method, &request).map(drop)
    }

    fn size(method: &str, answer: &Answer) -> Result<u64> {
        u64::try_from(answer.size)
            .map_err(|_| Self::wrong(method, format!("it says a size of {}", answer.size)))
    }
}

/// A driver that is given up lets the plugin give back what it holds, unless another was started meanwhile.
impl Drop for PluginDriver {
    fn drop(&mut self) {
        let current = self.current.load(Ordering::SeqCst) == self.number;
        if current && !self.released.load(Ordering::SeqCst) {
            let _ = self.cleanup();
        }
    }
}

impl ProtoDriver for PluginDriver {
    fn name(&self) -> &str {
        &self.name
    }

    fn create(&self, id: &str, parent: Option<&str>, opts: &CreateOpts) -> Result<()> {
        self.make("Create", id, parent, opts)
    }

    fn create_read_write(&self, id: &str, parent: Option<&str>, opts: &CreateOpts) -> Result<()> {
        self.make("CreateReadWrite", id, parent, opts)
    }

    fn remove(&self, id: &str) -> Result<()> {
        self.call("Remove", &Request::id(id)).map(drop)
    }

    fn get(&self, id: &str, mount_label: &str) -> Result<PathBuf> {
        let request = Request {
            mount_label: mount_label.to_owned(),
            ..Request::id(id)
        };
        let answer = self.call("Get", &request)?;
        if answer.dir.is_empty() {
            return Err(Self::wrong("Get", "it gives no directory".to_owned()));
        }
        Ok(answer.dir.into())
    }

    fn put(&self, id: &str) -> Result<()> {
        self.call("Put", &Request::id(id)).map(drop)
    }

    fn exists(&self, id: &str) -> bool {
        self.call("Exists", &Request::id(id))
            .is_ok_and(|answer| answer.exists)
    }

    fn status(&self) -> Vec<(String, String)> {
        let answer = self.call("Status", &Request::default());
        let pair = |pair: Vec<String>| {
            let mut words = pair.into_iter();
            (
                words.next().unwrap_or_default(),
                words.next().unwrap_or_default(),
            )
        };
        let status = answer.map(|answer| answer.status).unwrap_or_default();
        status.into_iter().map(pair).collect()
    }

    fn metadata(&self, id: &str) -> Result<Option<BTreeMap<String, String>>> {
        let answer = self.call("GetMetadata", &Request::id(id))?;
        Ok(answer.metadata)
    }

    fn cleanup(&self) -> Result<()> {
        self.call("Cleanup", &Request::default())?;
        self.released.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }
}

/// What comes out of a socket is in no file.
impl DiffRead for Body {}

impl Driver for PluginDriver {
    fn diff(&self, id: &str, parent: Option<&str>) -> Result<DiffStream> {
        self.released.store(false, Ordering::SeqCst);
        let request = Request::of(id, parent);
        let body = self.client.download("GraphDriver.Diff", &request)?;
        Ok(Box::new(body))
    }

    fn changes(&self, id: &str, parent: Option<&str>) -> Result<Vec<Change>> {
        let answer = self.call("Changes", &Request::of(id, parent))?;
        let changes = answer.changes.into_iter().map(|c| c.change());
        let mut changes = changes
            .collect::<std::result::Result<Vec<_>, _>>()
            .map_err(|why| Self::wrong("Changes", why))?;
        // The protocol knows no order.
        changes.sort();
        Ok(changes)
    }

    fn apply_diff(&self, id: &str, parent: Option<&str>, diff: &mut dyn Read) -> Result<u64> {
        self.released.store(false, Ordering::SeqCst);
        // Daemons do not encode; their ids have nothing that would need it.
        let (id, parent) = (
            percent_encode(id),
            percent_encode(parent.unwrap_or_default()),
        );
        let (method, call) = ("ApplyDiff", "GraphDriver.ApplyDiff");
        let query = format!("id={id}&parent={parent}");
        let answered = self.client.upload(call, &query, diff)?;
        let answer = good(&self.client, call, answered)?;
        Self::size(method, &answer)
    }

    fn diff_size(&self, id: &str, parent: Option<&str>) -> Result<u64> {
        let answer = self.call("DiffSize", &Request::of(id, parent))?;
        Self::size("DiffSize", &answer)
    }
}
