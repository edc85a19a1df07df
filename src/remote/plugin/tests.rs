//! Both sides against what the other one may do: raw requests to a server, and a bad server for the client.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rstest::rstest;

use super::{Address, Claims, Plugin, Server, Stopper};
use crate::drivers::registry;
use crate::graphdriver::{Capability, CreateOpts, Driver, Error, InitOptions, Result};

/// A `vfs` that is served.
struct Served {
    dir: tempfile::TempDir,
    stopper: Stopper,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Served {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = bind(dir.path()).unwrap();
        let stopper = server.stopper().unwrap();
        let thread = Some(std::thread::spawn(|| server.run()));
        Self {
            dir,
            stopper,
            thread,
        }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("run/p.sock")
    }

    fn home(&self) -> PathBuf {
        self.dir.path().join("homes/home")
    }

    fn plugin(&self, claims: Claims) -> Plugin {
        let address = Address::Unix(self.socket());
        Plugin::new(address, Duration::from_secs(30), claims)
    }

    fn driver(&self) -> Arc<dyn Driver> {
        let plugin = self.plugin(Claims::default());
        plugin.start(&self.home(), &InitOptions::default()).unwrap()
    }

    /// Sends bytes as they are, and returns all that comes until the server closes.
    fn raw(&self, request: &[u8]) -> String {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        stream.write_all(request).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn post(&self, call: &str, body: &str) -> String {
        let length = body.len();
        let head = format!(
            "POST /GraphDriver.{call} HTTP/1.1\r\nHost:\r\nContent-Length: {length}\r\n\r\n"
        );
        self.raw((head + body).as_bytes())
    }

    fn layers(&self) -> usize {
        std::fs::read_dir(self.home().join("dir")).map_or(0, Iterator::count)
    }

    fn end(mut self) -> Result<()> {
        self.stopper.stop();
        let socket = self.socket();
        let ended = self.thread.take().unwrap().join().unwrap();
        assert!(!socket.exists());
        ended
    }
}

fn bind(dir: &Path) -> Result<Server> {
    let start = |home: &Path, init: &InitOptions| registry().start("vfs", home, init);
    Server::bind(&dir.join("run/p.sock"), &dir.join("homes"), start)
}

fn tar(files: &[(&str, usize)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, size) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(*size as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_cksum();
        let content = vec![b'x'; *size];
        builder
            .append_data(&mut header, name, &content[..])
            .unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn a_layer_goes_through_the_socket_and_back() {
    let served = Served::new();
    let driver = served.driver();
    let opts = CreateOpts::default();
    driver.create("a", None, &opts).unwrap();
    let size = driver.apply_diff("a", None, &mut &tar(&[("f", 300_000), ("g", 5)])[..]);
    assert_eq!(size.unwrap(), 300_005);
    driver.create("b c&d", Some("a"), &opts).unwrap();
    assert_eq!(
        driver
            .apply_diff("b c&d", Some("a"), &mut &tar(&[("h", 1)])[..])
            .unwrap(),
        1
    );
    let changes = driver.changes("b c&d", Some("a")).unwrap();
    assert_eq!(
        changes.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["A /h"]
    );
    assert_eq!(driver.diff_size("b c&d", Some("a")).unwrap(), 1);
    let mut archive = Vec::new();
    driver
        .diff("a", None)
        .unwrap()
        .read_to_end(&mut archive)
        .unwrap();
    assert!(archive.len() > 300_000 && archive.len() % 512 == 0);
    let shown = driver.get("a", "").unwrap();
    assert_eq!(std::fs::metadata(shown.join("f")).unwrap().len(), 300_000);
    driver.put("a").unwrap();
    assert!(driver.exists("a") && !driver.exists("z"));
    let class = |e: Error| e.class().name();
    assert_eq!(
        class(driver.create("a", None, &opts).unwrap_err()),
        "exists"
    );
    assert_eq!(
        class(driver.diff("z", None).map(drop).unwrap_err()),
        "not-found"
    );
    driver.remove("b c&d").unwrap();
    driver.cleanup().unwrap();
    served.end().unwrap();
}

#[test]
fn what_a_driver_can_is_seen_in_what_it_does() {
    let served = Served::new();
    let plugin = served.plugin(Claims {
        probe: true,
        ..Claims::default()
    });
    std::fs::create_dir_all(served.home().parent().unwrap()).unwrap();
    let driver = plugin
        .start(&served.home(), &InitOptions::default())
        .unwrap();
    let seen = driver.capabilities().claims;
    let claimed = registry()
        .start(
            "vfs",
            &served.dir.path().join("other"),
            &InitOptions::default(),
        )
        .unwrap()
        .capabilities()
        .claims;
    let visible = [
        Capability::Mounts,
        Capability::FrozenParent,
        Capability::IndependentChildren,
        Capability::RefusesParentRemoval,
        Capability::DirRename,
        Capability::HardlinkCopyUp,
        Capability::StableInode,
        Capability::DirTimes,
        Capability::Sockets,
    ];
    for what in visible {
        assert_eq!(seen.contains(&what), claimed.contains(&what), "{what}");
    }
    assert_eq!(
        std::fs::read_dir(served.home().parent().unwrap())
            .unwrap()
            .count(),
        1
    );
    drop(driver);
    served.end().unwrap();
}

#[rstest]
#[case("Create", "", "400")]
#[case("Create", "{", "400")]
#[case("Create", r#"{"ID": 5}"#, "400")]
#[case("Create", r#"{"ID": "a"} {"ID": "b"}"#, "400")]
#[case("Create", r#"{"ID": "../a"}"#, "500")]
#[case("Create", r#"{"ID": "a", "Parent": "none"}"#, "500")]
#[case("Remove", r#"{}"#, "500")]
#[case("Diff", r#"{"ID": "none"}"#, "500")]
#[case("Diff", "[]", "400")]
#[case("ApplyDiff?id=%zz&parent=", "", "400")]
#[case("ApplyDiff?id=none&parent=", "", "500")]
#[case("Nothing", "{}", "404")]
#[case("Init", r#"{"Home": "/elsewhere"}"#, "500")]
#[case("Status", "", "200")]
#[case("Capabilities", "", "200")]
#[case("Exists", r#"{"ID": "kept", "Unknown": [1, {}]}"#, "200")]
fn a_request_gets_its_status_and_a_bad_one_changes_nothing(
    #[case] call: &str,
    #[case] body: &str,
    #[case] status: &str,
) {
    let served = Served::new();
    let driver = served.driver();
    driver.create("kept", None, &CreateOpts::default()).unwrap();
    let answer = served.post(call, body);
    assert!(
        answer.starts_with(&format!("HTTP/1.1 {status} ")),
        "{answer}"
    );
    assert_eq!(served.layers(), 1);
    drop(driver);
    served.end().unwrap();
}

#[test]
fn requests_of_every_form_are_understood_or_refused() {
    let served = Served::new();
    let answer = served.raw(b"POST /Plugin.Activate HTTP/1.1\r\nHost:\r\n\r\n");
    assert!(
        answer.contains(r#""Implements":["GraphDriver"]"#),
        "{answer}"
    );
    assert!(
        served
            .raw(b"GET /Plugin.Activate HTTP/1.1\r\nHost: x\r\n\r\n")
            .starts_with("HTTP/1.1 405")
    );
    assert!(served.raw(b"nonsense\r\n\r\n").starts_with("HTTP/1.1 400"));
    assert!(
        served
            .raw(&vec![b'x'; 70 << 10])
            .starts_with("HTTP/1.1 400")
    );
    assert!(
        served
            .post("Create", r#"{"ID": "a"}"#)
            .starts_with("HTTP/1.1 500"),
        "before Init"
    );
    let driver = served.driver();
    driver.create("a", None, &CreateOpts::default()).unwrap();
    // A tar that comes a byte at a time, in chunks, to a server without a Host.
    let mut stream = UnixStream::connect(served.socket()).unwrap();
    let head = "POST /GraphDriver.ApplyDiff?id=a&parent= HTTP/1.1\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    for byte in tar(&[("f", 3)]) {
        stream
            .write_all(&[b'1', b'\r', b'\n', byte, b'\r', b'\n'])
            .unwrap();
    }
    stream.write_all(b"0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains(r#""Size":3"#), "{answer}");
    // One that is cut, by the connection or by its own end, is no success.
    let whole = tar(&[("g", 2000)]);
    let head = format!(
        "POST /GraphDriver.ApplyDiff?id=a&parent= HTTP/1.1\r\nContent-Length: {}\r\n\r\n",
        whole.len()
    );
    let cut = served.raw(&[head.as_bytes(), &whole[..1000]].concat());
    assert!(!cut.contains("200 OK"), "{cut}");
    let short = served.raw(
        &[
            b"POST /GraphDriver.ApplyDiff?id=a&parent= HTTP/1.1\r\nContent-Length: 1000\r\n\r\n",
            &whole[..1000],
        ]
        .concat(),
    );
    assert!(short.starts_with("HTTP/1.1 500"), "{short}");
    drop(driver);
    served.end().unwrap();
}

#[test]
fn a_server_lives_through_daemons_that_hang_up_and_is_alone() {
    let served = Served::new();
    let again = bind(served.dir.path()).map(drop).unwrap_err().to_string();
    assert!(again.contains("another server"), "{again}");
    let start = |home: &Path, init: &InitOptions| registry().start("vfs", home, init);
    let other = served.dir.path().join("other");
    let same = Server::bind(&served.socket(), &other, start)
        .map(drop)
        .unwrap_err()
        .to_string();
    assert!(same.contains("another server listens"), "{same}");
    let request = b"POST /GraphDriver.Exists HTTP/1.1\r\nContent-Length: 10\r\n\r\n{\"ID\":\"a\"}";
    let driver = served.driver();
    for cut in 0..request.len() {
        let mut stream = UnixStream::connect(served.socket()).unwrap();
        stream.write_all(&request[..cut]).unwrap();
    }
    driver.create("a", None, &CreateOpts::default()).unwrap();
    // A diff of which nothing is read.
    driver
        .apply_diff("a", None, &mut &tar(&[("f", 4 << 20)])[..])
        .unwrap();
    drop(driver.diff("a", None).unwrap());
    let held: Vec<_> = (0..16)
        .map(|i| {
            let driver = Arc::clone(&driver);
            std::thread::spawn(move || {
                driver.create(&format!("l{i}"), None, &CreateOpts::default())
            })
        })
        .collect();
    for thread in held {
        thread.join().unwrap().unwrap();
    }
    assert_eq!(served.layers(), 17);
    // After a cleanup the driver is there again when it is asked.
    driver.cleanup().unwrap();
    assert!(driver.exists("l3"));
    drop(driver);
    let dir = served.dir.path().to_path_buf();
    std::fs::create_dir_all(dir.join("dead")).unwrap();
    served.end().unwrap();
}

#[test]
fn a_dead_socket_is_taken_over_and_a_file_is_not() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("run")).unwrap();
    drop(UnixListener::bind(dir.path().join("run/p.sock")).unwrap());
    drop(bind(dir.path()).unwrap());
    std::fs::remove_file(dir.path().join("run/p.sock")).unwrap();
    std::fs::write(dir.path().join("run/p.sock"), "x").unwrap();
    let e = bind(dir.path()).map(drop).unwrap_err().to_string();
    assert!(e.contains("no socket"), "{e}");
}

/// How a bad plugin answers a call, after it was started in good order.
#[derive(Clone, Copy, Debug)]
enum Bad {
    /// These bytes, then the end.
    Says(&'static str),
    /// These bytes, then nothing.
    Hangs(&'static str),
    /// These bytes, then others again and again.
    Repeats(&'static str, &'static str),
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 200000000000\r\n\r\n";
const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

/// A plugin that starts well and answers everything else badly. It ends with the test's process.
fn bad_plugin(bad: Bad) -> (tempfile::TempDir, Plugin) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("bad.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || bad_answer(stream, bad));
        }
    });
    let plugin = Plugin::new(
        Address::Unix(socket),
        Duration::from_secs(1),
        Claims::default(),
    );
    (dir, plugin)
}

fn bad_answer(mut stream: UnixStream, bad: Bad) {
    let mut request = [0; 4096];
    let n = stream.read(&mut request).unwrap_or(0);
    let request = String::from_utf8_lossy(&request[..n]).into_owned();
    let good = |body: &str| {
        let length = body.len();
        format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}")
    };
    let (head, then) = if request.contains("/Plugin.Activate") {
        (good(r#"{"implements": ["x", "GraphDriver"]}"#), None)
    } else if request.contains("/GraphDriver.Init") {
        (good("null"), None)
    } else if request.contains("/GraphDriver.Capabilities") {
        (
            "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_owned(),
            None,
        )
    } else {
        match bad {
            Bad::Says(text) => (text.to_owned(), None),
            Bad::Hangs(text) => (text.to_owned(), Some("")),
            Bad::Repeats(text, more) => (text.to_owned(), Some(more)),
        }
    };
    let _ = stream.write_all(head.as_bytes());
    match then {
        None => {}
        Some("") => std::thread::sleep(Duration::from_secs(30)),
        Some(more) => {
            let more = more.repeat(1000);
            while stream.write_all(more.as_bytes()).is_ok() {}
        }
    }
}

#[rstest]
#[case(
    Bad::Says("HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{\"Err\": \"no!\"}"),
    "no!"
)]
#[case(
    Bad::Says("HTTP/1.1 500 Oops\r\nContent-Length: 14\r\n\r\n{\"Err\": \"no!\"}"),
    "no!"
)]
#[case(
    Bad::Says("HTTP/1.1 400 Bad\r\nContent-Length: 5\r\n\r\nwhat?"),
    "what?"
)]
#[case(
    Bad::Says("HTTP/1.0 500 Oops\r\n\r\nall that is left"),
    "all that is left"
)]
#[case(
    Bad::Says("HTTP/1.1 302 Away\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n"),
    "302"
)]
#[case(Bad::Says(""), "hung up before it answered")]
#[case(
    Bad::Says("HTTP/1.1 200 OK\r\nContent-Le"),
    "hung up before it answered"
)]
#[case(
    Bad::Says("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{\"Di"),
    "broke its answer off"
)]
#[case(
    Bad::Says("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n{{{{"),
    "not the JSON"
)]
#[case(
    Bad::Says("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"),
    "no directory"
)]
#[case(
    Bad::Says("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{\"Dir\": 5}"),
    "not the JSON"
)]
#[case(Bad::Says("garbage\r\n\r\n"), "no HTTP")]
#[case(
    Bad::Says("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
    "no HTTP"
)]
#[case(Bad::Hangs(""), "no answer within 1s")]
#[case(Bad::Hangs("HTTP/1.1 200 OK\r\n"), "no answer within 1s")]
#[case(Bad::Hangs(OK), "no answer within 1s")]
#[case(Bad::Repeats("HTTP/1.1 200 OK\r\nX: ", "xxxxxxxx"), "no HTTP")]
#[case(Bad::Repeats(OK, "          "), "more than 1 MiB")]
#[case(Bad::Repeats(OK, "{\"a\":[[["), "more than 1 MiB")]
#[case(
    Bad::Repeats(
        "HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n{\"Dir\": \"",
        "xxxxxxxx"
    ),
    "more than 1 MiB"
)]
fn a_bad_answer_is_an_error_that_names_the_call(#[case] bad: Bad, #[case] says: &str) {
    let (dir, plugin) = bad_plugin(bad);
    let driver = plugin.start(dir.path(), &InitOptions::default()).unwrap();
    let begun = Instant::now();
    let e = driver.get("a", "").unwrap_err();
    let text = e.to_string();
    assert!(text.starts_with("GraphDriver.Get: "), "{text}");
    assert!(text.contains(says), "{text}");
    assert!(begun.elapsed() < Duration::from_secs(20));
    assert!(!driver.exists("a") && driver.status().is_empty());
}

#[rstest]
#[case(Bad::Hangs(CHUNKED), "no answer within 1s")]
#[case(
    Bad::Says("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"),
    "broke its answer off"
)]
#[case(
    Bad::Says("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc"),
    "broke its answer off"
)]
fn a_bad_archive_is_an_error_that_names_the_call(#[case] bad: Bad, #[case] says: &str) {
    let (dir, plugin) = bad_plugin(bad);
    let driver = plugin.start(dir.path(), &InitOptions::default()).unwrap();
    let mut stream = driver.diff("a", None).unwrap();
    let text = stream.read_to_end(&mut Vec::new()).unwrap_err().to_string();
    assert!(
        text.starts_with("GraphDriver.Diff: ") && text.contains(says),
        "{text}"
    );
}

/// Zeros without end, which counts what is read.
struct Endless(u64);

impl Read for Endless {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        out.fill(0);
        self.0 += out.len() as u64;
        Ok(out.len())
    }
}

#[test]
fn an_upload_that_nobody_reads_ends_and_one_that_breaks_is_told() {
    let (dir, plugin) = bad_plugin(Bad::Hangs(""));
    let driver = plugin.start(dir.path(), &InitOptions::default()).unwrap();
    let mut source = Endless(0);
    let text = driver
        .apply_diff("a", None, &mut source)
        .unwrap_err()
        .to_string();
    assert!(
        text.starts_with("GraphDriver.ApplyDiff: ") && text.contains("no answer within 1s"),
        "{text}"
    );
    assert!(source.0 < 64 << 20, "{} bytes were taken", source.0);
    let (dir, plugin) = bad_plugin(Bad::Says(
        "HTTP/1.1 500 No\r\nContent-Length: 4\r\n\r\nfull",
    ));
    let driver = plugin.start(dir.path(), &InitOptions::default()).unwrap();
    let text = driver
        .apply_diff("a", None, &mut Endless(0).take(4 << 20))
        .unwrap_err()
        .to_string();
    assert_eq!(text, "GraphDriver.ApplyDiff: full");
    let text = plugin_at(Path::new("/nonexistent/p.sock"))
        .map(drop)
        .unwrap_err()
        .to_string();
    assert!(
        text.starts_with("Plugin.Activate: ") && text.contains("cannot connect"),
        "{text}"
    );
}

fn plugin_at(socket: &Path) -> Result<Arc<dyn Driver>> {
    let address = Address::Unix(socket.to_owned());
    Plugin::new(address, Duration::from_millis(100), Claims::default())
        .start(Path::new("/tmp"), &InitOptions::default())
}
