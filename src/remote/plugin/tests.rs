//! Both sides against what the other one may do: raw requests to a server; in [`client`], a bad server for the client.

mod client;

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rstest::rstest;

use super::http::{LARGE_PIECE, PIECE};
use super::{Address, Claims, Plugin, Server, Stopper};
use crate::archive::{LayerStream, WriteOptions};
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

/// Bytes that are not the same again soon.
fn noise(size: usize) -> Vec<u8> {
    let words = (0..size as u32 / 4 + 1).map(|i| (i + 1).wrapping_mul(2_654_435_761) | 1);
    let mut bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
    bytes.truncate(size);
    bytes
}

/// Fills a layer, and gives the path of its root.
fn filled(driver: &dyn Driver, files: &[(String, Vec<u8>)]) -> PathBuf {
    driver.create("a", None, &CreateOpts::default()).unwrap();
    let root = driver.get("a", "").unwrap();
    for (name, content) in files {
        std::fs::write(root.join(name), content).unwrap();
    }
    driver.put("a").unwrap();
    root
}

/// Files around every size at which a stream is cut, and one with holes: read in pieces of every kind, and beside the tree itself.
#[test]
fn a_diff_is_the_same_bytes_through_the_socket() {
    let served = Served::new();
    let driver = served.driver();
    let cuts = [16 << 10, PIECE, 2 * PIECE, LARGE_PIECE as usize, 3 << 20];
    let around = cuts.into_iter().flat_map(|cut| [cut - 1, cut, cut + 1]);
    let sizes = [0, 100].into_iter().chain(around);
    let files: Vec<_> = sizes.map(|n| (n.to_string(), noise(n))).collect();
    let root = filled(driver.as_ref(), &files);
    let holed = std::fs::File::create(root.join("holed")).unwrap();
    holed.set_len(8 << 20).unwrap();
    holed.write_all_at(&noise(2 << 20), 1 << 20).unwrap();
    holed.write_all_at(b"last", 5 << 20).unwrap();
    let dir = std::fs::File::open(&root).unwrap();
    let mut expected = Vec::new();
    LayerStream::full(dir.as_fd(), WriteOptions::default())
        .unwrap()
        .read_to_end(&mut expected)
        .unwrap();
    for size in [700, 8 << 10, 100_000, PIECE, 5 << 20] {
        let mut stream = driver.diff("a", None).unwrap();
        let (mut bytes, mut buffer) = (Vec::new(), vec![0; size]);
        while let n @ 1.. = stream.read(&mut buffer).unwrap() {
            bytes.extend_from_slice(&buffer[..n]);
        }
        assert!(bytes == expected, "read by {size} bytes");
    }
    drop(driver);
    served.end().unwrap();
}

/// The archive keeps the size it announced, whatever becomes of the file while it is sent.
#[rstest]
#[case::shrunk(5 << 20)]
#[case::grown(64 << 20)]
fn a_file_that_changes_while_it_is_sent_keeps_its_size(#[case] size: u64) {
    const SIZE: usize = 32 << 20;
    let served = Served::new();
    let driver = served.driver();
    let root = filled(
        driver.as_ref(),
        &[("f".into(), noise(SIZE)), ("g".into(), noise(10))],
    );
    let mut whole = Vec::new();
    driver
        .diff("a", None)
        .unwrap()
        .read_to_end(&mut whole)
        .unwrap();
    let mut stream = driver.diff("a", None).unwrap();
    let mut bytes = vec![0; 100_000];
    stream.read_exact(&mut bytes).unwrap();
    let file = std::fs::File::options()
        .write(true)
        .open(root.join("f"))
        .unwrap();
    file.set_len(size).unwrap();
    stream.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len(), whole.len());
    let start = whole.windows(64).position(|w| w == &noise(64)[..]).unwrap();
    let (kept, end) = (start + SIZE.min(size as usize), start + SIZE);
    // The header has been sent, and the file's last bytes have not.
    assert!(bytes[..kept] == whole[..kept]);
    let zeros = bytes[end - 4096..end].iter().all(|b| *b == 0);
    assert_eq!(zeros, kept < end);
    assert!(bytes[end..] == whole[end..]);
    drop(driver);
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

/// What daemons of each generation say, call by call: host, version of the Accept header, and the bodies of Init and Create.
#[rstest]
#[case::v1_9("", "1.1", r#"{"Home":"%","Opts":null}"#, "Create", r#"{"ID":"a"}"#)]
#[case::v1_10(
    "",
    "1.2",
    r#"{"Home":"%","Opts":[]}"#,
    "Create",
    r#"{"ID":"a","MountLabel":"x"}"#
)]
#[case::v1_12(
    "",
    "1.2",
    r#"{"Home":"%","Opts":null}"#,
    "CreateReadWrite",
    r#"{"ID":"a"}"#
)]
#[case::v1_13(
    "",
    "1.2",
    r#"{"Home":"%","Opts":null,"UIDMaps":null,"GIDMaps":null}"#,
    "CreateReadWrite",
    r#"{"ID":"a","StorageOpt":{}}"#
)]
#[case::v20_10(
    "plugin.moby.localhost",
    "1.2",
    r#"{"Home":"%","Opts":[],"UIDMaps":[],"GIDMaps":[]}"#,
    "Create",
    r#"{"ID":"a"}"#
)]
#[case::v27(
    "plugin.moby.localhost",
    "1.2",
    r#"{"Home":"%","Opts":null,"UIDMaps":null,"GIDMaps":null}"#,
    "Create",
    r#"{"ID":"a"}"#
)]
fn daemons_of_every_generation_are_served(
    #[case] host: &str,
    #[case] version: &str,
    #[case] init: &str,
    #[case] create: &str,
    #[case] layer: &str,
) {
    let served = Served::new();
    let ask = |call: &str, body: &str| {
        let length = body.len();
        let head = format!(
            "POST /{call} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: {length}\r\n\
             Accept: application/vnd.docker.plugins.v{version}+json\r\nAccept-Encoding: gzip\r\n\r\n"
        );
        let answer = served.raw((head + body).as_bytes());
        assert!(answer.starts_with("HTTP/1.1 200 "), "{call}: {answer}");
        answer
    };
    assert!(ask("Plugin.Activate", "").contains("GraphDriver"));
    let home = served.home().display().to_string();
    ask("GraphDriver.Init", &(init.replace('%', &home) + "\n"));
    ask(&format!("GraphDriver.{create}"), layer);
    let got = ask("GraphDriver.Get", r#"{"ID":"a"}"#);
    assert!(got.contains(&format!(r#""Dir":"{home}/"#)), "{got}");
    ask("GraphDriver.Put", r#"{"ID":"a"}"#);
    assert!(ask("GraphDriver.Exists", r#"{"ID":"a"}"#).contains(r#""Exists":true"#));
    assert!(ask("GraphDriver.Status", "{}").contains(r#""Status":["#));
    ask("GraphDriver.Remove", r#"{"ID":"a"}"#);
    ask("GraphDriver.Cleanup", "{}");
    assert_eq!(served.layers(), 0);
    served.end().unwrap();
}

#[test]
fn an_upload_is_broken_off_wherever_it_may_be() {
    let served = Served::new();
    let driver = served.driver();
    let opts = CreateOpts::default();
    driver.create("kept", None, &opts).unwrap();
    let head =
        b"POST /GraphDriver.ApplyDiff?id=new&parent= HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
    let archive = tar(&[("f", 700), ("g", 5)]);
    let chunk = format!("{:x}\r\n", archive.len());
    let request = [&head[..], chunk.as_bytes(), &archive, b"\r\n0\r\n\r\n"].concat();
    for cut in (0..request.len()).step_by(61) {
        driver.create("new", None, &opts).unwrap();
        let answer = served.raw(&request[..cut]);
        assert!(!answer.contains(" 200 "), "cut after {cut} bytes: {answer}");
        driver.remove("new").unwrap();
        assert_eq!(served.layers(), 1);
    }
    driver.create("new", None, &opts).unwrap();
    assert!(served.raw(&request).contains(r#""Size":705"#));
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
