//! Calls of a plugin: one request, one answer, each within a limit.

use std::io::{self, BufReader, Read};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use serde::{Deserialize, Serialize};
use ureq_proto::BodyMode;
use ureq_proto::client::state::{RecvBody, RecvResponse, SendBody, SendRequest};
use ureq_proto::client::{Call, RecvResponseResult, SendRequestResult};
use ureq_proto::http::{Request, StatusCode};

use super::Address;
use super::http::{Chunks, Connection, Frame, Limit, Stream, malformed};
use super::wire::Answer;
use crate::graphdriver::{Error, Result};
use crate::sync::lock;

/// What daemons from 1.10 on say that they accept.
const ACCEPT: &str = "application/vnd.docker.plugins.v1.2+json";

/// The most of an answer in JSON that is read, in bytes.
const MAX_JSON: u64 = 1 << 20;

/// The same of a list of changes: half a million paths.
const MAX_CHANGES: u64 = 64 << 20;

/// The most of an error's text that is read.
const MAX_TEXT: u64 = 64 << 10;

/// How long a plugin that was just started has until it listens.
const PATIENCE: Duration = Duration::from_secs(3);

/// Connections to one plugin.
#[derive(Debug)]
pub(super) struct Client {
    address: Address,
    limit: Duration,
    idle: Mutex<Vec<Connection>>,
}

/// What came of a call without an archive.
#[derive(Debug)]
pub(super) struct Answered {
    pub status: StatusCode,
    /// What was said; the text itself where it is no JSON and the call failed.
    pub said: std::result::Result<Answer, String>,
}

/// An answer whose head was read.
struct Head {
    connection: Connection,
    status: StatusCode,
    body: Option<Call<RecvBody>>,
    /// Whether the connection can be used again after the body.
    keep: bool,
}

impl Client {
    pub fn new(address: Address, limit: Duration) -> Self {
        Self {
            address,
            limit,
            idle: Mutex::default(),
        }
    }

    pub fn address(&self) -> &Address {
        &self.address
    }

    /// A call with a JSON body (`None`: an empty one), answered with JSON.
    pub fn call<T: Serialize>(
        self: &Arc<Self>,
        method: &str,
        body: Option<&T>,
    ) -> Result<Answered> {
        let limit = Limit::whole(self.limit);
        let failed = |e: io::Error| self.failed(method, &e);
        let head = self.ask(method, body, limit).map_err(failed)?;
        self.answered(method, head, limit)
    }

    /// A call with a JSON body, answered with a stream.
    pub fn download<T: Serialize>(self: &Arc<Self>, method: &str, body: &T) -> Result<Body> {
        let limit = Limit::whole(self.limit);
        let failed = |e: io::Error| self.failed(method, &e);
        let head = self.ask(method, Some(body), limit).map_err(failed)?;
        if head.status == StatusCode::OK {
            let limit = Limit::Each(self.limit);
            return Ok(Body::new(self, head, limit, Some(method.to_owned())));
        }
        let answered = self.answered(method, head, limit)?;
        Err(self.refused(method, answered))
    }

    /// A call whose body is a stream, answered with JSON. The stream is read to its end, whatever the plugin reads of it.
    pub fn upload(
        self: &Arc<Self>,
        method: &str,
        query: &str,
        body: &mut dyn Read,
    ) -> Result<Answered> {
        let target = format!("{method}?{query}");
        let failed = |e: io::Error| self.failed(method, &e);
        let sent = self.stream(&target, body);
        let (mut connection, call, early) = sent.map_err(|e| match e {
            Broken::Source(e) => Error::Archive(crate::archive::Error::stream(e)),
            Broken::Wire(e) => failed(e),
        })?;
        let limit = Limit::whole(self.limit);
        let mut head = connection
            .take()
            .ok_or_else(|| io::Error::other("no connection"))
            .and_then(|c| receive(c, call, limit))
            .map_err(failed)?;
        head.keep &= !early;
        let answered = self.answered(method, head, limit)?;
        // What the plugin did not want is read none the less: whoever writes it must not wait for ever.
        io::copy(body, &mut io::sink())
            .map_err(|e| Error::Archive(crate::archive::Error::stream(e)))?;
        Ok(answered)
    }

    /// The error that an answer says.
    pub fn refused(&self, method: &str, answered: Answered) -> Error {
        let (text, class) = match answered.said {
            Ok(answer) if !answer.err.is_empty() => (answer.err, answer.class),
            Ok(_) => (format!("status {}", answered.status), None),
            Err(text) => (text, None),
        };
        Error::Remote {
            call: method.to_owned(),
            text,
            class,
        }
    }

    /// The error of a call without an answer that can be understood.
    pub fn failed(&self, method: &str, e: &io::Error) -> Error {
        let what = match e.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                "it broke the connection off".to_owned()
            }
            _ => e.to_string(),
        };
        Error::Remote {
            call: method.to_owned(),
            text: format!("the plugin at {}: {what}", self.address),
            class: None,
        }
    }

    /// A connection that is still good, or a new one.
    fn connection(&self) -> io::Result<Connection> {
        loop {
            let Some(connection) = lock(&self.idle).pop() else {
                return self.connect().map(Connection::new);
            };
            // Nothing may come on an idle connection: not even its end.
            let mut fds = [PollFd::new(&connection.stream, PollFlags::IN)];
            if matches!(poll(&mut fds, Some(&Timespec::default())), Ok(0)) {
                return Ok(connection);
            }
        }
    }

    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// A new connection; a plugin that was just started is waited for.
    pub fn connect(&self) -> io::Result<Stream> {
        let until = Instant::now() + PATIENCE.min(self.limit);
        loop {
            match Stream::connect(&self.address) {
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                    ) && Instant::now() < until =>
                {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(e) => return Err(io::Error::new(e.kind(), format!("cannot connect: {e}"))),
                Ok(stream) => return Ok(stream),
            }
        }
    }

    fn keep(&self, connection: Connection) {
        lock(&self.idle).push(connection);
    }

    /// Sends a request with a JSON body and reads the head of the answer.
    fn ask<T: Serialize>(&self, method: &str, body: Option<&T>, limit: Limit) -> io::Result<Head> {
        let mut json = Vec::new();
        if let Some(body) = body {
            serde_json::to_writer(&mut json, body)?;
            json.push(b'\n');
        }
        let mut connection = self.connection()?;
        let (mut out, call) = begin(method, Some(json.len()), json.len())?;
        let call = match call {
            SendRequestResult::SendBody(mut call) => {
                let start = out.len();
                out.resize(start + json.len(), 0);
                call.write(&json, &mut out[start..])
                    .map_err(|e| malformed(&e))?;
                call.proceed()
            }
            SendRequestResult::RecvResponse(call) => Some(call),
            SendRequestResult::Await100(_) => None,
        };
        let call = call.ok_or_else(|| io::Error::other("the request has no end"))?;
        connection.send(&out, limit)?;
        receive(connection, call, limit)
    }

    /// Sends a request whose body is a stream. The connection comes back with whether the plugin answered before the end.
    fn stream(
        &self,
        target: &str,
        body: &mut dyn Read,
    ) -> std::result::Result<(Option<Connection>, Call<RecvResponse>, bool), Broken> {
        let wire = Broken::Wire;
        let mut connection = self.connection().map_err(wire)?;
        let (head, call) = begin(target, None, 0).map_err(wire)?;
        let SendRequestResult::SendBody(call) = call else {
            return Err(wire(io::Error::other("the request has no body")));
        };
        connection
            .send(&head, Limit::Each(self.limit))
            .map_err(wire)?;
        let mut frame = Frame::new();
        loop {
            let n = match body.read(frame.piece()) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                // The connection is dropped without the last chunk: nobody takes it for the whole.
                read => read.map_err(Broken::Source)?,
            };
            if !push(&mut connection, frame.chunk(n), self.limit).map_err(wire)? {
                return Ok((Some(connection), ended(call)?, true));
            }
            if n == 0 {
                return Ok((Some(connection), ended(call)?, false));
            }
        }
    }

    /// Reads the rest of an answer in JSON.
    fn answered(self: &Arc<Self>, method: &str, head: Head, limit: Limit) -> Result<Answered> {
        let status = head.status;
        let body = Body::new(self, head, limit, None);
        let good = status == StatusCode::OK;
        let most = match method {
            _ if !good => MAX_TEXT,
            "GraphDriver.Changes" => MAX_CHANGES,
            _ => MAX_JSON,
        };
        let mut reader = BufReader::new(body.take(most));
        if good {
            let mut json = serde_json::Deserializer::from_reader(&mut reader);
            let said = Answer::deserialize(&mut json);
            let answer = said.map_err(|e| {
                let over = (reader.get_ref().limit() == 0).then_some(most);
                self.not_json(method, e, over)
            })?;
            reader.into_inner().into_inner().finish();
            return Ok(Answered {
                status,
                said: Ok(answer),
            });
        }
        let mut text = Vec::new();
        reader
            .read_to_end(&mut text)
            .map_err(|e| self.failed(method, &e))?;
        reader.into_inner().into_inner().finish();
        let said = match serde_json::from_slice::<Answer>(&text) {
            Ok(answer) if !answer.err.is_empty() => Ok(answer),
            _ if text.trim_ascii().is_empty() => Err(format!("status {status}")),
            _ => Err(String::from_utf8_lossy(text.trim_ascii()).into_owned()),
        };
        Ok(Answered { status, said })
    }

    fn not_json(&self, method: &str, e: serde_json::Error, over: Option<u64>) -> Error {
        let e = match (e.io_error_kind(), over) {
            (_, Some(most)) => io::Error::other(format!(
                "its answer is more than {} MiB of JSON",
                most >> 20
            )),
            (Some(_), _) => io::Error::from(e),
            _ => io::Error::other(format!("its answer is not the JSON that is due: {e}")),
        };
        self.failed(method, &e)
    }
}

/// What broke while a stream was sent.
enum Broken {
    /// The stream itself.
    Source(io::Error),
    /// The connection.
    Wire(io::Error),
}

/// The head of a request; a length is that of its body, `None` a body in chunks.
fn begin(
    target: &str,
    length: Option<usize>,
    room: usize,
) -> io::Result<(Vec<u8>, SendRequestResult)> {
    // The path of a socket is no host; daemons say this one since 20.10.26.
    let url = format!("http://plugin.moby.localhost/{target}");
    let mut request = Request::post(url).header("accept", ACCEPT);
    request = match length {
        Some(length) => request.header("content-length", length),
        None => request.header("transfer-encoding", "chunked"),
    };
    let request = request.body(()).map_err(io::Error::other)?;
    let mut call: Call<SendRequest> = Call::new(request).map_err(|e| malformed(&e))?.proceed();
    let mut out = Vec::with_capacity(target.len() + 512 + room);
    out.resize(target.len() + 512, 0);
    let len = call.write(&mut out).map_err(|e| malformed(&e))?;
    out.truncate(len);
    match call.proceed().map_err(|e| malformed(&e))? {
        Some(call) => Ok((out, call)),
        None => Err(io::Error::other("the head of the request does not fit")),
    }
}

/// The state after a body; of one that the plugin did not want to its end, too.
fn ended(mut call: Call<SendBody>) -> std::result::Result<Call<RecvResponse>, Broken> {
    if !call.can_proceed() {
        call.write(&[], &mut [0; 16])
            .map_err(|e| Broken::Wire(malformed(&e)))?;
    }
    call.proceed()
        .ok_or_else(|| Broken::Wire(io::Error::other("the request has no end")))
}

/// Sends bytes of a body; `false` when the plugin answers already, or does not listen any more.
fn push(connection: &mut Connection, mut bytes: &[u8], limit: Duration) -> io::Result<bool> {
    // A socket is writable to poll(2) when three quarters of its buffer are free. Waiting for that before every piece would never fill
    // it, and have the two sides wait for each other in turns; so it is waited for once nothing goes in any more.
    let mut full = false;
    while !bytes.is_empty() {
        let wait = if full { limit } else { Duration::ZERO };
        let mut fds = [PollFd::new(
            &connection.stream,
            PollFlags::IN | PollFlags::OUT,
        )];
        match poll(&mut fds, Timespec::try_from(wait).ok().as_ref()) {
            Ok(0) if full => return Err(Limit::Each(limit).passed()),
            Ok(_) if fds[0].revents().contains(PollFlags::IN) => return Ok(false),
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match send(connection.stream.as_fd(), bytes, flags) {
            Ok(n) => (bytes, full) = (&bytes[n..], false),
            Err(Errno::AGAIN) => full = true,
            Err(Errno::INTR) => {}
            // What it said before it hung up can still be read.
            Err(Errno::PIPE | Errno::CONNRESET) => return Ok(false),
            Err(e) => return Err(e.into()),
        }
    }
    Ok(true)
}

/// Reads the head of an answer.
fn receive(
    mut connection: Connection,
    mut call: Call<RecvResponse>,
    limit: Limit,
) -> io::Result<Head> {
    let response = loop {
        let (used, response) = call
            .try_response(connection.data(), false)
            .map_err(|e| malformed(&e))?;
        connection.consume(used);
        if let Some(response) = response {
            break response;
        }
        if used == 0 && connection.fill(Some(limit))? == 0 {
            let why = "it hung up before it answered";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, why));
        }
    };
    let status = response.status();
    let (body, keep) = match call.proceed() {
        Some(RecvResponseResult::RecvBody(call)) => (Some(call), true),
        Some(RecvResponseResult::Cleanup(call)) => (None, !call.must_close_connection()),
        _ => (None, false),
    };
    Ok(Head {
        connection,
        status,
        body,
        keep,
    })
}

fn chunked(call: Option<&Call<RecvBody>>) -> bool {
    call.is_some_and(|call| call.body_mode() == BodyMode::Chunked)
}

/// The end of a connection before that of an answer, in words.
fn broken_off(e: io::Error) -> io::Error {
    match e.kind() {
        io::ErrorKind::UnexpectedEof => io::Error::new(e.kind(), "it broke its answer off"),
        _ => e,
    }
}

/// The body of an answer, read as it comes.
#[derive(Debug)]
pub(super) struct Body {
    client: Arc<Client>,
    connection: Option<Connection>,
    call: Option<Call<RecvBody>>,
    chunks: Option<Chunks>,
    keep: bool,
    limit: Limit,
    /// The call that errors name, where nobody else does.
    named: Option<String>,
}

impl Body {
    fn new(client: &Arc<Client>, head: Head, limit: Limit, named: Option<String>) -> Self {
        let mut body = Self {
            client: Arc::clone(client),
            connection: Some(head.connection),
            chunks: chunked(head.body.as_ref()).then(Chunks::default),
            call: head.body,
            keep: head.keep,
            limit,
            named,
        };
        if body.call.is_none() {
            body.over();
        }
        body
    }

    /// Everything was read: the connection can serve another call.
    fn over(&mut self) {
        if let Some(call) = self.call.take()
            && let Some(ureq_proto::client::RecvBodyResult::Cleanup(call)) = call.proceed()
        {
            self.keep &= !call.must_close_connection();
        }
        let connection = self.connection.take();
        if let Some(connection) = connection.filter(|c| self.keep && c.data().is_empty()) {
            self.client.keep(connection);
        }
    }

    /// Reads a rest that is no more than a few bytes, such as the end of the line; with more the connection is dropped.
    fn finish(mut self) {
        let mut rest = [0; 64];
        while let Ok(n @ 1..) = self.read(&mut rest) {
            if !rest[..n].trim_ascii().is_empty() {
                return;
            }
        }
    }

    fn more(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            let (Some(call), Some(connection)) = (&mut self.call, &mut self.connection) else {
                return Ok(0);
            };
            if let Some(chunks) = &mut self.chunks {
                let n = chunks
                    .read(connection, out, Some(self.limit))
                    .map_err(broken_off)?;
                if n == 0 {
                    // The call is told of an end, too.
                    call.read(b"0\r\n\r\n", &mut [0; 8])
                        .map_err(|e| malformed(&e))?;
                    self.over();
                }
                return Ok(n);
            }
            let until_closed = call.body_mode() == BodyMode::CloseDelimited;
            if call.can_proceed() && !until_closed {
                self.over();
                return Ok(0);
            }
            let (used, made) = call
                .read(connection.data(), out)
                .map_err(|e| malformed(&e))?;
            connection.consume(used);
            if made > 0 {
                return Ok(made);
            }
            if used > 0 || (call.can_proceed() && !until_closed) {
                continue;
            }
            if connection.fill(Some(self.limit))? == 0 {
                if until_closed {
                    self.over();
                    return Ok(0);
                }
                return Err(broken_off(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }
}

impl Read for Body {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        self.more(out).map_err(|e| {
            // Nothing more can come.
            self.connection = None;
            self.call = None;
            match &self.named {
                None => e,
                Some(call) => io::Error::new(e.kind(), self.client.failed(call, &e).to_string()),
            }
        })
    }
}
