//! Lending a driver to a daemon: the plugin's side of the protocol.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, fchmod};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
};
use ureq_proto::BodyMode;
use ureq_proto::http::{Response, StatusCode};
use ureq_proto::server::state::{ProvideResponse, RecvBody, SendBody};
use ureq_proto::server::{RecvRequestResult, Reply, SendResponseResult};

use super::handlers::{Outcome, bad, drain, handle};
use super::http::{Chunks, Connection, Frame, LARGE_PIECE, PIECE, Stream, chunk_head, malformed};
use super::session::{Session, Start, hold};
use crate::graphdriver::{DiffStream, Error, Result};
use crate::sync::lock;

/// How many daemons' connections there may be at a time; more wait.
const MAX_CONNECTIONS: usize = 256;

/// How long calls that are going on have to end once the server is stopped; as long again once their connections are cut.
const GRACE: Duration = Duration::from_secs(10);

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// What plugins made with Docker's own helpers say that they send.
const CONTENT_TYPE: &str = "application/vnd.docker.plugins.v1.1+json";

/// A plugin that is served on a unix socket.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    listener: UnixListener,
    socket: PathBuf,
    /// Device and inode of the socket, by which it is known whether it is still this server's.
    node: (u64, u64),
    stopped: UnixStream,
    stop: UnixStream,
    /// The lock of the directory that homes are in.
    _fence: std::fs::File,
}

/// Ends a [`Server`].
#[derive(Debug)]
pub struct Stopper(UnixStream);

impl Stopper {
    /// Has the server stop; may be called again.
    pub fn stop(&self) {
        // A full buffer is one that says it already.
        let _ = (&self.0).write_all(b"x");
    }

    /// The socket: any byte that is written to it stops the server.
    pub fn into_socket(self) -> UnixStream {
        self.0
    }
}

/// What the threads of a server share.
#[derive(Debug)]
struct Shared {
    session: Session,
    stopping: AtomicBool,
    /// The connections that are open, and whether each is at a call.
    open: Mutex<HashMap<u64, (UnixStream, bool)>>,
    /// Told whenever one is closed.
    closed: Condvar,
}

impl Server {
    /// Listens on `socket`, for homes that are `dir` or below it, which `start` starts drivers on. Nobody but this user can connect.
    ///
    /// # Errors
    /// Another server listens there or works on `dir`, something that is no socket is in the way, or the system refuses.
    pub fn bind(
        socket: &Path,
        dir: &Path,
        start: impl Fn(
            &Path,
            &crate::graphdriver::InitOptions,
        ) -> Result<Arc<dyn crate::graphdriver::Driver>>
        + Send
        + Sync
        + 'static,
    ) -> Result<Self> {
        let start: Box<Start> = Box::new(start);
        let made = |path: &Path| std::fs::create_dir_all(path).map_err(failed("make", path));
        made(dir)?;
        let dir = dir.canonicalize().map_err(failed("resolve", dir))?;
        let fence = hold(&dir)?;
        let above = match socket.parent() {
            Some(above) if !above.as_os_str().is_empty() => above.to_owned(),
            _ => PathBuf::from("."),
        };
        made(&above)?;
        let listener = take(socket)?;
        let meta = std::fs::symlink_metadata(socket).map_err(failed("look at", socket))?;
        let (stop, stopped) = UnixStream::pair().map_err(failed("make a pair for", socket))?;
        Ok(Self {
            shared: Arc::new(Shared {
                session: Session::new(start, dir),
                stopping: AtomicBool::new(false),
                open: Mutex::default(),
                closed: Condvar::new(),
            }),
            listener,
            socket: socket.to_owned(),
            node: (meta.dev(), meta.ino()),
            stopped,
            stop,
            _fence: fence,
        })
    }

    /// What ends it.
    ///
    /// # Errors
    /// No more descriptors.
    pub fn stopper(&self) -> io::Result<Stopper> {
        self.stop.try_clone().map(Stopper)
    }

    /// Serves until it is stopped; then calls that are going on end, the driver is cleaned up, and nothing stays mounted.
    ///
    /// # Errors
    /// The driver could not give back what it held, or the socket does not work any more.
    pub fn run(self) -> Result<()> {
        let served = self.accept();
        self.shared.stopping.store(true, Ordering::SeqCst);
        let ours = std::fs::symlink_metadata(&self.socket)
            .is_ok_and(|meta| (meta.dev(), meta.ino()) == self.node);
        if ours {
            let _ = std::fs::remove_file(&self.socket);
        }
        self.shared.wind_down();
        let ended = self.shared.session.end();
        served.map_err(failed("serve on", &self.socket))?;
        ended
    }

    fn accept(&self) -> io::Result<()> {
        let mut next = 0;
        loop {
            let mut fds = [
                PollFd::new(&self.stopped, PollFlags::IN),
                PollFd::new(&self.listener, PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Err(Errno::INTR) => continue,
                other => other?,
            };
            if !fds[0].revents().is_empty() {
                return Ok(());
            }
            let (stream, _) = match self.listener.accept() {
                Ok(accepted) => accepted,
                // Whoever it was is gone; or there is no room for one more just now.
                Err(_) => {
                    std::thread::sleep(Duration::from_millis(10));
                    continue;
                }
            };
            next += 1;
            self.shared.serve(next, stream);
            self.shared.wait_for_room();
        }
    }
}

/// Makes the error of a failed system call.
fn failed(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |e| Error::io(op, path, e)
}

/// Binds the socket; one that nobody listens on any more is taken away.
fn take(socket: &Path) -> Result<UnixListener> {
    match std::fs::symlink_metadata(socket) {
        Ok(meta) if !meta.file_type().is_socket() => {
            let what = format!("{} is there, and no socket", socket.display());
            return Err(Error::Other(what));
        }
        Ok(meta) => match UnixStream::connect(socket) {
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                remove_dead(socket, (meta.dev(), meta.ino()))?;
            }
            Err(e) => return Err(Error::io("connect to", socket, e)),
            Ok(_) => return Err(taken(socket)),
        },
        Err(_) => {}
    }
    let refused = |e: Errno| Error::io("listen on", socket, e);
    let fd: OwnedFd = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(refused)?;
    // A socket node takes the mode of its socket: there is no moment in which others can connect.
    fchmod(&fd, Mode::RUSR | Mode::WUSR).map_err(refused)?;
    let address = SocketAddrUnix::new(socket).map_err(refused)?;
    bind(&fd, &address).map_err(refused)?;
    listen(&fd, BACKLOG).map_err(refused)?;
    Ok(fd.into())
}

fn taken(socket: &Path) -> Error {
    Error::Other(format!("another server listens on {}", socket.display()))
}

/// Takes away a socket that nobody listens on, unless it is another one by now: that is of a server which found the same.
fn remove_dead(socket: &Path, node: (u64, u64)) -> Result<()> {
    let mut aside = socket.as_os_str().to_owned();
    aside.push(format!(".{}", std::process::id()));
    let aside = PathBuf::from(aside);
    std::fs::rename(socket, &aside).map_err(failed("move away", socket))?;
    let meta = std::fs::symlink_metadata(&aside).map_err(failed("look at", &aside))?;
    if (meta.dev(), meta.ino()) == node {
        return std::fs::remove_file(&aside).map_err(failed("remove", &aside));
    }
    std::fs::rename(&aside, socket).map_err(failed("move back", socket))?;
    Err(taken(socket))
}

impl Shared {
    /// Serves a connection on a thread of its own.
    fn serve(self: &Arc<Self>, number: u64, stream: UnixStream) {
        let Ok(known) = stream.try_clone() else {
            return;
        };
        lock(&self.open).insert(number, (known, false));
        let shared = Arc::clone(self);
        let spawned = std::thread::Builder::new().spawn(move || {
            let mut connection = Connection::new(Stream::Unix(stream));
            // A daemon that hangs up, wherever it does, ends its connection and nothing else.
            let done = std::panic::AssertUnwindSafe(|| {
                while shared.one(number, &mut connection).unwrap_or(false) {}
            });
            let _ = std::panic::catch_unwind(done);
            drop(connection);
            shared.forget(number);
        });
        if spawned.is_err() {
            self.forget(number);
        }
    }

    fn forget(&self, number: u64) {
        lock(&self.open).remove(&number);
        self.closed.notify_all();
    }

    fn wait_for_room(&self) {
        self.wait(|open| open.len() < MAX_CONNECTIONS || self.stopping(), None);
    }

    fn stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Waits until the connections are as they are wanted; `false` when that takes too long.
    fn wait(
        &self,
        wanted: impl Fn(&HashMap<u64, (UnixStream, bool)>) -> bool,
        time: Option<Duration>,
    ) -> bool {
        let until = time.map(|time| Instant::now() + time);
        let mut open = lock(&self.open);
        while !wanted(&open) {
            let left = match until {
                None => Duration::from_secs(1),
                Some(until) => until.saturating_duration_since(Instant::now()),
            };
            if left.is_zero() {
                return false;
            }
            let waited = self.closed.wait_timeout(open, left);
            open = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Ends the connections: those that wait for a call at once, the others after it, or after a time.
    fn wind_down(&self) {
        for (stream, busy) in lock(&self.open).values() {
            if !busy {
                let _ = stream.shutdown(Shutdown::Read);
            }
        }
        if self.wait(HashMap::is_empty, Some(GRACE)) {
            return;
        }
        for (stream, _) in lock(&self.open).values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.wait(HashMap::is_empty, Some(GRACE));
    }

    fn busy(&self, number: u64, busy: bool) {
        if let Some((_, is)) = lock(&self.open).get_mut(&number) {
            *is = busy;
        }
    }

    /// One call; `false` when the connection is at its end.
    fn one(&self, number: u64, connection: &mut Connection) -> io::Result<bool> {
        let mut reply = Reply::new().map_err(|e| malformed(&e))?;
        let request = loop {
            let (used, request) = match reply.try_request(connection.data()) {
                Ok(tried) => tried,
                Err(e) => return refuse(connection, &format!("this is no HTTP: {e}")),
            };
            connection.consume(used);
            if let Some(request) = request {
                break request;
            }
            match connection.fill(None) {
                Ok(0) => return Ok(false),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                    return refuse(connection, &e.to_string());
                }
                Err(e) => return Err(e),
            }
        };
        self.busy(number, true);
        let headers = request.headers();
        let lengthless =
            !headers.contains_key("content-length") && !headers.contains_key("transfer-encoding");
        let mut body = Incoming::new(connection, reply, lengthless)?;
        let outcome = handle(&self.session, request.method(), request.uri(), &mut body);
        // Whoever sends a body is not listening before its end.
        drain(&mut body)?;
        let reply = body.end()?;
        let close = answer(connection, reply, outcome)?;
        self.busy(number, false);
        Ok(!close && !self.stopping())
    }
}

/// Says that something is no request, which has no more than an end.
fn refuse(connection: &mut Connection, why: &str) -> io::Result<bool> {
    let Outcome::Json(_, reply) = bad(why) else {
        return Ok(false);
    };
    let body = serde_json::to_vec(&reply)?;
    let head = format!(
        "HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    connection.stream.write_all(head.as_bytes())?;
    connection.stream.write_all(&body)?;
    Ok(false)
}

/// The body of a request, read as it comes.
struct Incoming<'c> {
    connection: &'c mut Connection,
    state: State,
    chunks: Option<Chunks>,
}

/// Where a request is at. (The other one is between two states.)
enum State {
    Body(Reply<RecvBody>),
    Over(Reply<ProvideResponse>),
}

impl<'c> Incoming<'c> {
    fn new(
        connection: &'c mut Connection,
        reply: Reply<ureq_proto::server::state::RecvRequest>,
        lengthless: bool,
    ) -> io::Result<Self> {
        let state = match reply.proceed() {
            Some(RecvRequestResult::RecvBody(mut reply)) => {
                if lengthless {
                    // A request that says no length has no body (RFC 9112, 6.3); ureq-proto waits for chunks.
                    reply
                        .read(b"0\r\n\r\n", &mut [0; 8])
                        .map_err(|e| malformed(&e))?;
                }
                State::Body(reply)
            }
            Some(RecvRequestResult::Send100(reply)) => {
                let mut out = [0; 64];
                let (n, reply) = reply.accept(&mut out).map_err(|e| malformed(&e))?;
                connection.stream.write_all(&out[..n])?;
                State::Body(reply)
            }
            Some(RecvRequestResult::ProvideResponse(reply)) => State::Over(reply),
            None => return Err(io::Error::other("the request has no end")),
        };
        let chunked = match &state {
            State::Body(reply) => !lengthless && reply.body_mode() == BodyMode::Chunked,
            State::Over(_) => false,
        };
        Ok(Self {
            connection,
            state,
            chunks: chunked.then(Chunks::default),
        })
    }

    /// After the whole body.
    fn end(self) -> io::Result<Reply<ProvideResponse>> {
        match self.state {
            State::Over(reply) => Ok(reply),
            State::Body(reply) if reply.is_ended() => reply.proceed().map_err(|e| malformed(&e)),
            State::Body(_) => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl Read for Incoming<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let State::Body(reply) = &mut self.state else {
            return Ok(0);
        };
        if out.is_empty() {
            return Ok(0);
        }
        loop {
            if reply.is_ended() {
                return Ok(0);
            }
            if let Some(chunks) = &mut self.chunks {
                let n = chunks.read(self.connection, out, None).map_err(hung_up)?;
                if n == 0 {
                    // The call is told of an end, too.
                    reply
                        .read(b"0\r\n\r\n", &mut [0; 8])
                        .map_err(|e| malformed(&e))?;
                }
                return Ok(n);
            }
            let (used, made) = reply
                .read(self.connection.data(), out)
                .map_err(|e| malformed(&e))?;
            self.connection.consume(used);
            if made > 0 {
                return Ok(made);
            }
            if used == 0 && !reply.is_ended() && self.connection.fill(None)? == 0 {
                return Err(hung_up(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }
}

/// The end of a connection before that of a request, in words.
fn hung_up(e: io::Error) -> io::Error {
    match e.kind() {
        io::ErrorKind::UnexpectedEof => {
            io::Error::new(e.kind(), "the other side hung up in the middle of it")
        }
        _ => e,
    }
}

/// Sends what is to be sent back; `true` when the connection is to be closed after it.
fn answer(
    connection: &mut Connection,
    reply: Reply<ProvideResponse>,
    outcome: Outcome,
) -> io::Result<bool> {
    let (status, json, archive) = match outcome {
        Outcome::Json(status, reply) => (status, Some(serde_json::to_vec(&reply)?), None),
        Outcome::Archive(first, rest) => (StatusCode::OK, None, Some((first, rest))),
    };
    let mut response = Response::builder().status(status);
    response = match &json {
        Some(json) => response
            .header("content-type", CONTENT_TYPE)
            .header("content-length", json.len()),
        None => response
            .header("content-type", "application/x-tar")
            .header("transfer-encoding", "chunked"),
    };
    let response = response.body(()).map_err(io::Error::other)?;
    let mut reply = reply.provide(response).map_err(|e| malformed(&e))?;
    let mut out = vec![0; 512];
    let head = reply.write(&mut out).map_err(|e| malformed(&e))?;
    out.truncate(head);
    let reply = match reply.proceed() {
        SendResponseResult::Cleanup(reply) => {
            connection.stream.write_all(&out)?;
            return Ok(reply.must_close_connection());
        }
        SendResponseResult::SendBody(reply) => reply,
    };
    let reply = match archive {
        Some((first, rest)) => {
            connection.stream.write_all(&out)?;
            stream(connection, reply, &first, rest)?
        }
        None => {
            let mut reply = reply;
            let json = json.unwrap_or_default();
            out.resize(head + json.len(), 0);
            reply
                .write(&json, &mut out[head..])
                .map_err(|e| malformed(&e))?;
            connection.stream.write_all(&out)?;
            reply
        }
    };
    Ok(reply.proceed().must_close_connection())
}

/// Sends an archive. When it breaks, the connection is closed without the last chunk: nobody takes it for the whole.
fn stream(
    connection: &mut Connection,
    mut reply: Reply<SendBody>,
    first: &[u8],
    mut rest: DiffStream,
) -> io::Result<Reply<SendBody>> {
    let mut frame = Frame::new();
    if !first.is_empty() {
        frame.piece()[..first.len()].copy_from_slice(first);
        connection.stream.write_all(frame.chunk(first.len()))?;
    }
    loop {
        if pass_on(connection, &mut rest, &mut frame)? {
            continue;
        }
        let n = read(&mut rest, frame.piece())?;
        if n == 0 {
            // What is held for it, such as a mount, is given back before the caller knows of the end.
            drop(rest);
            connection.stream.write_all(frame.chunk(0))?;
            reply.write(&[], &mut [0; 8]).map_err(|e| malformed(&e))?;
            return Ok(reply);
        }
        connection.stream.write_all(frame.chunk(n))?;
    }
}

/// Sends the data of a file that comes next as a chunk without reading it; `false` when there is none that is worth it.
fn pass_on(
    connection: &mut Connection,
    rest: &mut DiffStream,
    frame: &mut Frame,
) -> io::Result<bool> {
    let Some(mut run) = rest.run().filter(|run| run.len() >= PIECE as u64) else {
        return Ok(false);
    };
    let socket = &mut connection.stream;
    let mut left = run.len().min(LARGE_PIECE);
    socket.write_all(chunk_head(left).as_bytes())?;
    // An error is that of a filesystem without sendfile(2), or one that reading or writing meets again. The socket may keep pages of
    // the file until the other side reads: what is written to them meanwhile is sent, as it is when a read comes a little later.
    while left > 0
        && let Ok(n @ 1..) = run.send(socket.as_fd(), left)
    {
        left -= n;
    }
    // The chunk's size was said already: what could not be sent so, such as the rest of a file that shrank, is read.
    while left > 0 {
        let most = PIECE.min(left as usize);
        let n = read(rest, &mut frame.piece()[..most])?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        socket.write_all(&frame.piece()[..n])?;
        left -= n as u64;
    }
    socket.write_all(b"\r\n")?;
    Ok(true)
}

/// Reads, again when interrupted.
fn read(from: &mut impl Read, into: &mut [u8]) -> io::Result<usize> {
    loop {
        match from.read(into) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}
