//! Plugins that lie, hang or never end: what a person sees of it, how soon, and what it costs.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rstest::rstest;
use serde_json::{Value, json};

use super::bench::{Bench, root};

/// What a bad plugin does instead of answering one call.
#[derive(Clone, Copy, Debug)]
enum Lie {
    /// Nothing, for longer than anybody waits.
    Hangs,
    /// Hangs up.
    Drops,
    /// A JSON text without end.
    Endless,
    /// Says that a terabyte comes, and sends a little.
    Huge,
    /// What is no HTTP.
    Garbage,
    /// A good answer with this body.
    Says(&'static str),
    /// This status, with a text.
    Status(u16),
}

/// A plugin that does just enough, and lies on one call. It ends with the test's process.
fn plugin(socket: &Path, call: &'static str, lie: Lie) {
    let listener = UnixListener::bind(socket).unwrap();
    let home = Arc::new(Mutex::new(PathBuf::new()));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let home = Arc::clone(&home);
            std::thread::spawn(move || answer(stream, &home, call, lie));
        }
    });
}

fn answer(
    mut stream: UnixStream,
    home: &Mutex<PathBuf>,
    lies: &str,
    lie: Lie,
) -> std::io::Result<()> {
    let mut request = Vec::new();
    let mut piece = [0; 4096];
    let (head, body) = loop {
        let n = stream.read(&mut piece)?;
        request.extend_from_slice(&piece[..n]);
        let text = String::from_utf8_lossy(&request).into_owned();
        let parts = text.split_once("\r\n\r\n");
        let whole = |head: &str, body: &str| {
            let length = head.to_ascii_lowercase();
            let length = length.split("content-length: ").nth(1);
            let length = length.and_then(|l| l.lines().next()?.parse().ok());
            length.is_none_or(|length: usize| body.len() >= length)
        };
        match parts {
            Some((head, body)) if whole(head, body) => break (head.to_owned(), body.to_owned()),
            _ if n == 0 => return Ok(()),
            _ => {}
        }
    };
    let call = head.split([' ', '?']).nth(1).unwrap_or_default();
    let call = call.trim_start_matches('/').to_owned();
    if call == lies {
        return tell(stream, lie);
    }
    if call == "GraphDriver.Diff" {
        // An archive of nothing.
        return write_answer(stream, 200, &"\0".repeat(1024));
    }
    let said: Value = serde_json::from_str(&body).unwrap_or_default();
    let text = |key: &str| said[key].as_str().unwrap_or_default().to_owned();
    let layer = || home.lock().unwrap().join(text("ID"));
    let reply = match call.as_str() {
        "Plugin.Activate" => json!({"Implements": ["GraphDriver"]}),
        "GraphDriver.Init" => {
            *home.lock().unwrap() = PathBuf::from(text("Home"));
            json!({})
        }
        "GraphDriver.Create" | "GraphDriver.CreateReadWrite" => {
            fs::create_dir(layer())?;
            json!({})
        }
        "GraphDriver.Remove" => {
            fs::remove_dir_all(layer())?;
            json!({})
        }
        "GraphDriver.Get" => json!({"Dir": layer()}),
        "GraphDriver.Exists" => json!({"Exists": layer().exists()}),
        _ => json!({}),
    };
    write_answer(stream, 200, &reply.to_string())
}

fn write_answer(mut stream: UnixStream, status: u16, body: &str) -> std::io::Result<()> {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(head.as_bytes())
}

fn tell(mut stream: UnixStream, lie: Lie) -> std::io::Result<()> {
    match lie {
        Lie::Hangs => std::thread::sleep(Duration::from_secs(60)),
        Lie::Drops => {}
        Lie::Endless => {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n{\"Dir\": [\"")?;
            loop {
                stream.write_all(&[b'x'; 64 << 10])?;
            }
        }
        Lie::Huge => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1099511627776\r\n\r\n{")?;
            std::thread::sleep(Duration::from_secs(60));
        }
        Lie::Garbage => stream.write_all(&[0xff; 200])?,
        Lie::Says(body) => return write_answer(stream, 200, body),
        Lie::Status(status) => return write_answer(stream, status, "it does not want to"),
    }
    Ok(())
}

/// A run with a plugin, its output, and the most memory that it took, in KiB.
fn run(bench: &Bench, args: &[&str]) -> (i32, String, u64) {
    let output = bench.path("output");
    let file = File::create(&output).unwrap();
    let mut child = bench
        .command(Path::new(env!("CARGO_BIN_EXE_graphtest")), args)
        .stdout(file.try_clone().unwrap())
        .stderr(file)
        .spawn()
        .unwrap();
    let (status, mut peak) = (format!("/proc/{}/status", child.id()), 0);
    let code = loop {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:"));
        let now = line.and_then(|l| l.split_whitespace().next()?.parse().ok());
        peak = peak.max(now.unwrap_or(0));
        if let Some(status) = child.try_wait().unwrap() {
            break status.code().unwrap_or(-1);
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    (code, fs::read_to_string(&output).unwrap(), peak)
}

const STEPS: &str = "steps:\n      - create: a\n      - in: a\n        do: [{file: f, text: f}]\n      - diff: a\n      - remove: a";

#[rstest]
#[case("none", Lie::Drops, 0, "conforms")]
#[case("Plugin.Activate", Lie::Hangs, 3, "no answer within 2s")]
#[case("Plugin.Activate", Lie::Drops, 3, "hung up before it answered")]
#[case("Plugin.Activate", Lie::Endless, 3, "not the JSON that is due")]
#[case("Plugin.Activate", Lie::Huge, 3, "no answer within 2s")]
#[case("Plugin.Activate", Lie::Garbage, 3, "it is no HTTP")]
#[case(
    "Plugin.Activate",
    Lie::Says(r#"{"Implements": ["VolumeDriver"]}"#),
    3,
    "not GraphDriver"
)]
#[case("GraphDriver.Init", Lie::Hangs, 3, "no answer within 2s")]
#[case("GraphDriver.Init", Lie::Status(500), 3, "it does not want to")]
#[case("GraphDriver.Capabilities", Lie::Status(500), 3, "it does not want to")]
#[case("GraphDriver.Get", Lie::Hangs, 1, "no answer within 2s")]
#[case("GraphDriver.Get", Lie::Drops, 1, "hung up before it answered")]
#[case("GraphDriver.Get", Lie::Endless, 1, "not the JSON that is due")]
#[case("GraphDriver.Get", Lie::Huge, 1, "no answer within 2s")]
#[case("GraphDriver.Get", Lie::Garbage, 1, "it is no HTTP")]
#[case("GraphDriver.Get", Lie::Says("{}"), 1, "it gives no directory")]
#[case("GraphDriver.Remove", Lie::Hangs, 1, "no answer within 2s")]
#[case("GraphDriver.Remove", Lie::Status(503), 1, "it does not want to")]
fn a_bad_plugin_is_named_with_its_call_in_time(
    #[case] call: &'static str,
    #[case] lie: Lie,
    #[case] status: i32,
    #[case] says: &str,
) {
    root();
    let bench = Bench::new();
    let socket = bench.path("bad.sock");
    plugin(&socket, call, lie);
    let suite = bench.suite(&[("lies", "must", STEPS)]);
    let target = format!("plugin:{}", socket.display());
    let begun = Instant::now();
    let args = ["run", "--suite", &suite, "--target", &target];
    let more = ["--on", "dir,tmpfs", "--call-timeout", "2s"];
    let (code, said, peak) = run(&bench, &[&args[..], &more[..]].concat());
    assert_eq!(code, status, "{said}");
    assert!(said.contains(says), "{said}");
    assert!(
        call == "none" || said.contains(&format!("{call}: ")),
        "{said}"
    );
    // Each of the two cells waits once for a start, or for a few calls of a scenario.
    assert!(begun.elapsed() < Duration::from_secs(30), "{said}");
    assert!(peak > 0 && peak < 200 << 10, "{peak} KiB");
    assert_eq!((bench.left(), bench.registered()), (Vec::new(), 0));
}

#[rstest]
#[case(Lie::Says("not a tar at all"), "expected whole blocks of 512 bytes")]
#[case(
    Lie::Says(r#"{"Err": "no such layer"}"#),
    "expected whole blocks of 512 bytes"
)]
#[case(Lie::Endless, "it is no archive, it begins with {")]
#[case(Lie::Huge, "GraphDriver.Diff: ")]
#[case(Lie::Hangs, "GraphDriver.Diff: ")]
#[case(Lie::Drops, "GraphDriver.Diff: ")]
fn a_bad_archive_is_seen_in_time(#[case] lie: Lie, #[case] says: &str) {
    root();
    let bench = Bench::new();
    let socket = bench.path("bad.sock");
    plugin(&socket, "GraphDriver.Diff", lie);
    let suite = bench.suite(&[("lies", "must", STEPS)]);
    let target = format!("plugin:{}", socket.display());
    let begun = Instant::now();
    let args = ["run", "--suite", &suite, "--target", &target];
    let more = ["--on", "dir", "--call-timeout", "2s", "--timeout", "10s"];
    let (code, said, peak) = run(&bench, &[&args[..], &more[..]].concat());
    assert_eq!(code, 1, "{said}");
    assert!(said.contains(says), "{said}");
    assert!(begun.elapsed() < Duration::from_secs(30), "{said}");
    assert!(peak > 0 && peak < 200 << 10, "{peak} KiB");
    assert_eq!((bench.left(), bench.registered()), (Vec::new(), 0));
}
