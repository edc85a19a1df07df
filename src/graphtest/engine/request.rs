//! The step that calls a plugin itself, byte for byte as daemons do, or worse.

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use serde_json::Value;

use super::call::{Done, Fail};
use super::world::World;
use crate::graphdriver::{Error, Result as Called};
use crate::graphtest::step::{Expect, RequestStep};
use crate::graphtest::wire::{Kind, Message};

/// The most of an answer that is read, in bytes.
const MAX_ANSWER: u64 = 64 << 20;

/// Stands for the driver's home in what is said to a plugin.
const HOME: &str = "%HOME%";

/// The calls whose bodies are archives, one each way.
const APPLY: &str = "GraphDriver.ApplyDiff";
const DIFF: &str = "GraphDriver.Diff";

/// What came back.
enum Answer {
    /// A status, and a body that may have been broken off.
    Said(u16, Message),
    /// Nothing, because the request was not ended or the answer not waited for.
    None,
}

impl World<'_> {
    pub fn request(&mut self, s: &RequestStep, expect: &Expect) -> Done {
        let what = &s.call;
        let applied = s.layer().filter(|_| *what == APPLY);
        let mut wrong = None;
        let mut called = |world: &Self| {
            world
                .ask(s)
                .and_then(|answer| judge(s, answer))
                .unwrap_or_else(|fail| {
                    wrong = Some(fail);
                    Ok(Value::Null)
                })
        };
        let done = match applied {
            // A part of the archive may be in the layer after a failure.
            Some(_) => {
                let result = called(self);
                expect.judge(what, result)
            }
            None => self.call(expect, what, |_| called(self)),
        };
        if let Some(fail) = wrong {
            return Err(fail.context(what));
        }
        let done = done?;
        if let Some(path) = &s.makes {
            let path = path.replace(HOME, &self.home.display().to_string());
            if !std::path::Path::new(&path).is_dir() {
                return Err(Fail::new(format!(
                    "{what}: expected the directory {path}, found none"
                )));
            }
        }
        let Some(id) = applied else {
            return Ok(());
        };
        if done.is_some() && s.cut.is_none() && !s.hang_up {
            return self.after_apply(id, None, what);
        }
        self.layers.unknown(id);
        self.all_as_modelled(|other| other != id)
            .map_err(|f| f.context(&format!("{what} failed, as stated, but did harm")))
    }

    /// Sends the request and reads the answer.
    fn ask(&self, s: &RequestStep) -> Done<Answer> {
        let body = match (&s.archive, &s.body) {
            (Some(name), _) => std::fs::read(&self.archive_named(name)?.path)
                .map_err(|e| Fail::new(format!("the archive {name}: {e}")))?,
            (None, text) => {
                let home = Value::from(self.home.display().to_string()).to_string();
                let text = text.as_deref().unwrap_or_default();
                text.replace(HOME, home.trim_matches('"')).into_bytes()
            }
        };
        let wire = self
            .target
            .dial()
            .ok_or_else(|| Fail::new("the driver is no plugin: nothing can be sent to it"))?
            .map_err(|e| Fail::new(format!("expected a connection, found: {e}")))?;
        let mut stream = UnixStream::from(wire.socket);
        stream
            .set_read_timeout(Some(wire.limit))
            .and_then(|()| stream.set_write_timeout(Some(wire.limit)))
            .map_err(|e| Fail::new(format!("no time limit: {e}")))?;
        let cut = s.cut.as_ref().map(|n| n.0 as usize);
        // Whoever does not read to the end may have said why.
        let _ = send(&mut stream, s, &body, cut);
        if s.hang_up {
            return Ok(Answer::None);
        }
        if cut.is_some() {
            let _ = stream.shutdown(Shutdown::Write);
        }
        match Message::read(stream, Kind::Answer, MAX_ANSWER) {
            Ok(Some(message)) => match message.status() {
                Ok(status) => Ok(Answer::Said(status, message)),
                Err(e) => Err(Fail::new(format!("expected an answer, found: {e}"))),
            },
            Ok(None) | Err(_) if cut.is_some() => Ok(Answer::None),
            Ok(None) => Err(Fail::new("expected an answer, found: it hung up")),
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                ) =>
            {
                let limit = humantime::format_duration(wire.limit);
                Err(Fail::new(format!(
                    "expected an answer within {limit}, found none"
                )))
            }
            Err(e) => Err(Fail::new(format!("expected an answer, found: {e}"))),
        }
    }
}

/// Writes the request, the body in pieces where that is stated, and no more of it than `cut`.
fn send(
    stream: &mut UnixStream,
    s: &RequestStep,
    body: &[u8],
    cut: Option<usize>,
) -> io::Result<()> {
    let query = s
        .query
        .as_ref()
        .map(|q| format!("?{q}"))
        .unwrap_or_default();
    let mut head = format!("POST /{}{query} HTTP/1.1\r\n", s.call);
    let host = s.host.as_deref().unwrap_or("plugin.moby.localhost");
    let accept = s
        .accept
        .as_deref()
        .unwrap_or("application/vnd.docker.plugins.v1.2+json");
    head += &format!("Host: {host}\r\nUser-Agent: Go-http-client/1.1\r\n");
    if s.chunked {
        head += "Transfer-Encoding: chunked\r\n";
    } else {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    head += &format!("Accept: {accept}\r\n");
    if let Some(kind) = &s.content_type {
        head += &format!("Content-Type: {kind}\r\n");
    }
    stream.write_all(head.as_bytes())?;
    stream.write_all(b"\r\n")?;
    let sent = &body[..cut.unwrap_or(body.len()).min(body.len())];
    let piece = s.chunk.as_ref().map_or(32 << 10, |n| n.0 as usize).max(1);
    for piece in sent.chunks(piece) {
        if s.chunked {
            let chunk = [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat();
            stream.write_all(&chunk)?;
        } else {
            stream.write_all(piece)?;
        }
    }
    if s.chunked && cut.is_none() {
        stream.write_all(b"0\r\n\r\n")?;
    }
    Ok(())
}

/// What an answer says: a value, or an error. `Err` where it says neither.
fn judge(s: &RequestStep, answer: Answer) -> Done<Called<Value>> {
    let error = |text: String| Error::Remote {
        call: s.call.clone(),
        text,
        class: None,
    };
    let (status, message) = match answer {
        Answer::None if s.hang_up => return Ok(Ok(Value::Null)),
        Answer::None => return Ok(Err(error("it hung up".to_owned()))),
        Answer::Said(status, message) => (status, message),
    };
    let text = String::from_utf8_lossy(&message.body);
    let said: Option<Value> = serde_json::from_slice(&message.body).ok();
    let err = said
        .as_ref()
        .and_then(|said| member(said, "Err")?.as_str())
        .map(str::to_owned);
    if !s.status.is_empty() {
        if !s.status.contains(&u32::from(status)) {
            let allowed: Vec<String> = s.status.iter().map(ToString::to_string).collect();
            let allowed = allowed.join(" or ");
            return Err(Fail::new(format!(
                "expected the status {allowed}, found {status}: {text}"
            )));
        }
        if status != 200 {
            return Ok(Ok(Value::Null));
        }
    }
    if status != 200 {
        let text = err.unwrap_or_else(|| text.trim().to_owned());
        return Ok(Err(error(format!("status {status}: {text}"))));
    }
    if s.call == DIFF {
        return match err {
            Some(err) => Err(Fail::new(format!(
                "expected an archive, or another status than 200, found the error {err:?}, which a daemon takes for the archive"
            ))),
            None if message.whole => Ok(Ok(Value::Null)),
            None => Ok(Err(error("it broke the archive off".to_owned()))),
        };
    }
    let said = match said {
        Some(said) if message.whole && (said.is_object() || said.is_null()) => said,
        _ => {
            return Err(Fail::new(format!(
                "expected a JSON object, found: {text:?}"
            )));
        }
    };
    if let Some(err) = err.filter(|err| !err.is_empty()) {
        return Ok(Err(error(err)));
    }
    if let Some(gives) = s
        .gives
        .as_deref()
        .and_then(|g| serde_json::from_str(g).ok())
        && let Some(wrong) = differs(&gives, &said)
    {
        return Err(Fail::new(wrong));
    }
    Ok(Ok(said))
}

/// A member of an object, whatever its case, as Go reads them.
fn member<'v>(object: &'v Value, name: &str) -> Option<&'v Value> {
    let mut members = object.as_object()?.iter();
    members
        .find(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| value)
}

/// What of the stated members is not there. Absent and `null` are the zero value; a list must hold what is stated, and may hold more.
fn differs(stated: &Value, said: &Value) -> Option<String> {
    for (name, wanted) in stated.as_object()? {
        let found = member(said, name).unwrap_or(&Value::Null);
        let holds = match (wanted, found) {
            (Value::Array(wanted), Value::Array(found)) => wanted.iter().all(|w| found.contains(w)),
            (Value::Bool(false), Value::Null) => true,
            (Value::Number(n), Value::Null) => n.as_i64() == Some(0),
            (wanted, found) => wanted == found,
        };
        if !holds {
            return Some(format!("expected {name} to be {wanted}, found {found}"));
        }
    }
    None
}
