//! The client against plugins that answer badly, or not at all.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rstest::rstest;

use super::super::{Address, Claims, Plugin};
use crate::graphdriver::{Driver, InitOptions, Result};

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
