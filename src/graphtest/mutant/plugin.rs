//! Plugins with a bug at the wire: a good driver is served as a plugin, and what stands between it and the caller tampers with what
//! is asked and answered.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;

use super::WireBug;
use crate::graphdriver::{Driver, Error, InitOptions, Result};
use crate::graphtest::target::Target;
use crate::graphtest::wire::{Kind, Message, Wire};
use crate::remote::plugin::{Address, Claims, Plugin, Server, Stopper};
use crate::sync::lock;

/// The most of a message that is passed on, in bytes.
const MOST: u64 = 256 << 20;

/// How long a call of a plugin with a bug may take.
const LIMIT: Duration = Duration::from_secs(20);

/// How long a plugin that does one call at a time is at it, at the least.
const SLOW: Duration = Duration::from_millis(20);

/// A driver that is served with a bug, for homes in one directory.
#[derive(Debug)]
pub(super) struct Front {
    plugin: Plugin,
    fence: PathBuf,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
    stopper: Stopper,
    serving: Option<JoinHandle<Result<()>>>,
    /// Where the sockets are.
    dir: tempfile::TempDir,
}

#[derive(Debug)]
struct Shared {
    bug: WireBug,
    back: PathBuf,
    over: AtomicBool,
    at_work: AtomicUsize,
    gets: Mutex<BTreeMap<String, i64>>,
}

impl Front {
    /// Serves drivers of `target` for homes beside this one.
    pub fn start(target: Arc<dyn Target>, bug: WireBug, home: &Path) -> Result<Self> {
        let fence = home.parent().unwrap_or(home).to_path_buf();
        let failed = |e: io::Error| Error::io("serve a driver for", home, e);
        let dir = tempfile::tempdir().map_err(failed)?;
        let (front, back) = (dir.path().join("front.sock"), dir.path().join("back.sock"));
        let start = move |home: &Path, init: &InitOptions| target.init(home, &init.options);
        let server = Server::bind(&back, &fence, start)?;
        let stopper = server.stopper().map_err(failed)?;
        let listener = UnixListener::bind(&front).map_err(failed)?;
        let shared = Arc::new(Shared {
            bug,
            back,
            over: AtomicBool::new(false),
            at_work: AtomicUsize::new(0),
            gets: Mutex::default(),
        });
        let accepting = {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || accept(&listener, &shared))
        };
        // What the driver can is seen as it is with any plugin.
        let claims = Claims {
            probe: true,
            ..Claims::default()
        };
        Ok(Self {
            plugin: Plugin::new(Address::Unix(front), LIMIT, claims),
            fence,
            shared,
            accepting: Some(accepting),
            stopper,
            serving: Some(std::thread::spawn(|| server.run())),
            dir,
        })
    }

    /// Whether it serves drivers for this home.
    pub fn is_for(&self, home: &Path) -> bool {
        home.starts_with(&self.fence)
    }

    pub fn init(&self, home: &Path, options: &[String]) -> Result<Arc<dyn Driver>> {
        self.plugin.start(home, &InitOptions::new(options))
    }

    pub fn dial(&self) -> io::Result<Wire> {
        self.plugin.dial().map(|socket| Wire {
            socket,
            limit: LIMIT,
        })
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        // The one that wakes it up.
        let _ = UnixStream::connect(self.dir.path().join("front.sock"));
        self.stopper.stop();
        // What is wrong with a driver that has a bug is for its scenarios to show.
        let _ = self.accepting.take().map(JoinHandle::join);
        let _ = self.serving.take().map(JoinHandle::join);
    }
}

fn accept(listener: &UnixListener, shared: &Arc<Shared>) {
    while !shared.over.load(Ordering::SeqCst) {
        let Ok((stream, _)) = listener.accept() else {
            return;
        };
        let shared = Arc::clone(shared);
        // A call that breaks off is the caller's to notice.
        std::thread::spawn(move || shared.serve(stream));
    }
}

/// What goes back: a status and a body, and whether it is all of it.
struct Answer {
    status: u16,
    body: Vec<u8>,
    whole: bool,
}

impl Answer {
    fn json(status: u16, text: &str) -> Self {
        Self {
            status,
            body: text.as_bytes().to_vec(),
            whole: true,
        }
    }
}

impl Shared {
    /// One call, after which the connection is closed.
    fn serve(&self, mut stream: UnixStream) -> io::Result<()> {
        let Some(mut request) = Message::read(&stream, Kind::Request, MOST)? else {
            return Ok(());
        };
        let target = request.start.split(' ').nth(1).unwrap_or_default();
        let target = target.trim_start_matches('/').to_owned();
        let call = target.split('?').next().unwrap_or_default();
        if !request.whole && self.bug == WireBug::DiesOfHangUp {
            self.over.store(true, Ordering::SeqCst);
            // It accepts once more, to see that it is dead.
            return UnixStream::connect(self.back.with_file_name("front.sock")).map(drop);
        }
        let cut_is_fine = self.bug == WireBug::CutBodyTaken && call == "GraphDriver.ApplyDiff";
        if !request.whole && !cut_is_fine {
            return Ok(());
        }
        let others = self.at_work.fetch_add(1, Ordering::SeqCst);
        let answer = match self.before(call, &mut request, others) {
            Some(answer) => Ok(answer),
            None => self
                .ask(&target, &request.body)
                .map(|a| self.after(call, a)),
        };
        if self.bug == WireBug::OneAtATime {
            std::thread::sleep(SLOW);
        }
        self.at_work.fetch_sub(1, Ordering::SeqCst);
        let Answer {
            status,
            body,
            whole,
        } = answer?;
        let length = body.len() + usize::from(!whole);
        let head =
            format!("HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes())?;
        stream.write_all(&body)
    }

    /// The answer of the good driver.
    fn ask(&self, target: &str, body: &[u8]) -> io::Result<Answer> {
        let mut back = UnixStream::connect(&self.back)?;
        let length = body.len();
        let head = format!(
            "POST /{target} HTTP/1.1\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
        );
        back.write_all(head.as_bytes())?;
        back.write_all(body)?;
        let answer = Message::read(back, Kind::Answer, MOST)?;
        let answer = answer.ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(Answer {
            status: answer.status()?,
            body: answer.body,
            whole: answer.whole,
        })
    }

    /// What is answered without asking the driver, or done to what it is asked.
    fn before(&self, call: &str, request: &mut Message, others: usize) -> Option<Answer> {
        let said: Option<Value> = serde_json::from_slice(&request.body).ok();
        let text = |key: &str| Some(said.as_ref()?.get(key)?.as_str()?.to_owned());
        let no = |status: u16| Some(Answer::json(status, r#"{"Err": "no"}"#));
        let yes = || Some(Answer::json(200, r#"{"Err": ""}"#));
        match (self.bug, call) {
            (WireBug::CutBodyTaken, "GraphDriver.ApplyDiff") if !request.whole => yes(),
            (WireBug::ChunkedRefused, _) if request.header("transfer-encoding").is_some() => {
                no(411)
            }
            (WireBug::FirstPieceOnly, "GraphDriver.ApplyDiff") => {
                request.body.truncate(request.at_once);
                None
            }
            (WireBug::HostRequired, _) if request.header("host").is_none_or(str::is_empty) => {
                no(400)
            }
            (WireBug::TypeRequired, _) if request.header("content-type").is_none() => no(415),
            (WireBug::OneAtATime, _) if others > 0 => no(503),
            (WireBug::HomeMustBeThere, "GraphDriver.Init") => {
                let there = Path::new(&text("Home")?).is_dir();
                if there { None } else { no(500) }
            }
            (WireBug::StrictInit, "GraphDriver.Init") => {
                let all = ["Home", "Opts", "UIDMaps", "GIDMaps"];
                let has = |key: &&str| said.as_ref().is_some_and(|s| s.get(*key).is_some());
                if all.iter().all(has) { None } else { no(400) }
            }
            (WireBug::GarbageTaken, _) if said.is_none() && !request.body.is_empty() => yes(),
            (WireBug::CapabilitiesFail, "GraphDriver.Capabilities") => no(500),
            (WireBug::CountsKept, "GraphDriver.Get") => {
                *lock(&self.gets).entry(text("ID")?).or_default() += 1;
                None
            }
            (WireBug::CountsKept, "GraphDriver.Put") => {
                let mut gets = lock(&self.gets);
                let left = gets.entry(text("ID")?).or_default();
                *left -= 1;
                if *left > 0 { yes() } else { None }
            }
            _ => None,
        }
    }

    /// What becomes of the driver's answer.
    fn after(&self, call: &str, answer: Answer) -> Answer {
        let failed = answer.status != 200;
        match (self.bug, call) {
            (WireBug::ErrorsHidden, call) if failed && call != "GraphDriver.Diff" => {
                Answer::json(200, r#"{"Err": ""}"#)
            }
            (WireBug::CutBodyTaken, "GraphDriver.ApplyDiff") if failed => {
                Answer::json(200, r#"{"Size": 0}"#)
            }
            (WireBug::DiffErrorIs200, "GraphDriver.Diff") => Answer {
                status: 200,
                ..answer
            },
            (WireBug::ExistsAlways, "GraphDriver.Exists") => {
                Answer::json(200, r#"{"Exists": true}"#)
            }
            (WireBug::NotJson, "GraphDriver.Put") => Answer::json(200, "done"),
            (WireBug::ErrorWithoutText, _) if failed => Answer::json(answer.status, ""),
            (WireBug::UnknownCallTaken, _) if answer.status == 404 => Answer::json(200, "{}"),
            _ => answer,
        }
    }
}
