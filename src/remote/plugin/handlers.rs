//! What a served plugin does on each call.

use std::io::{self, Read};
use std::sync::Arc;

use serde::de::DeserializeOwned;
use ureq_proto::http::{Method, StatusCode, Uri};

use super::http::{PIECE, percent_decode};
use super::session::Session;
use super::wire::{Able, GRAPH_DRIVER, Init, Reply, Request, WireChange};
use crate::graphdriver::{Capability, DiffStream, Driver, Error, Result};

/// The most that the body of a call may take, in bytes, but for `ApplyDiff`.
const MAX_BODY: u64 = 16 << 20;

/// What is to be sent back.
pub(super) enum Outcome {
    /// An answer in JSON.
    Json(StatusCode, Reply),
    /// An archive: what was read of it already, and the rest.
    Archive(Vec<u8>, DiffStream),
}

/// A request that is none.
struct Bad(StatusCode, String);

impl From<Error> for Outcome {
    fn from(e: Error) -> Self {
        Self::Json(StatusCode::INTERNAL_SERVER_ERROR, Reply::error(&e))
    }
}

impl From<Bad> for Outcome {
    fn from(Bad(status, why): Bad) -> Self {
        Self::Json(
            status,
            Reply {
                err: why,
                ..Reply::default()
            },
        )
    }
}

/// A request that cannot be understood; nothing is changed by it.
pub(super) fn bad(why: impl Into<String>) -> Outcome {
    Bad(StatusCode::BAD_REQUEST, why.into()).into()
}

/// Does what a request asks for. Its body need not be read to its end.
pub(super) fn handle(
    session: &Session,
    method: &Method,
    uri: &Uri,
    body: &mut dyn Read,
) -> Outcome {
    if method != Method::POST {
        let why = format!("{method} is not how plugins are called; POST is");
        return Bad(StatusCode::METHOD_NOT_ALLOWED, why).into();
    }
    let done = match uri.path().trim_start_matches('/') {
        "Plugin.Activate" => Ok(Ok(Reply {
            implements: Some(&[GRAPH_DRIVER]),
            ..Reply::default()
        })),
        "GraphDriver.Init" => json(body).map(|init| initialise(session, init)),
        "GraphDriver.Cleanup" => {
            json_or_nothing(body).map(|_| session.cleanup().map(|()| Reply::default()))
        }
        "GraphDriver.Diff" => {
            return match json(body) {
                Ok(request) => diff(session, &request).unwrap_or_else(Outcome::from),
                Err(bad) => bad.into(),
            };
        }
        "GraphDriver.ApplyDiff" => apply(session, uri.query().unwrap_or_default(), body),
        path => match path.strip_prefix("GraphDriver.") {
            Some(call) => simple(session, call, body),
            None => Err(unknown(path)),
        },
    };
    match done {
        Ok(Ok(reply)) => Outcome::Json(StatusCode::OK, reply),
        Ok(Err(e)) => e.into(),
        Err(bad) => bad.into(),
    }
}

fn unknown(path: &str) -> Bad {
    Bad(StatusCode::NOT_FOUND, format!("there is no call /{path}"))
}

fn initialise(session: &Session, init: Init) -> Result<Reply> {
    let home = init.home.clone();
    session.init(&home, init.options())?;
    Ok(Reply::default())
}

/// The calls with a small body and an answer in JSON.
fn simple(
    session: &Session,
    call: &str,
    body: &mut dyn Read,
) -> std::result::Result<Result<Reply>, Bad> {
    // What is not known is said before a body is asked for.
    let work: fn(&dyn Driver, &Request) -> Result<Reply> = match call {
        "Capabilities" => |driver, _| {
            let reproduces_exact_diffs = driver.capabilities().has(Capability::ExactDiffs);
            Ok(Reply {
                capabilities: Some(Able {
                    reproduces_exact_diffs,
                }),
                ..Reply::default()
            })
        },
        "Status" => |driver, _| {
            Ok(Reply {
                status: Some(driver.status()),
                ..Reply::default()
            })
        },
        "Create" => |driver, r| done(driver.create(&r.id, r.parent(), &r.opts())),
        "CreateReadWrite" => {
            |driver, r| done(driver.create_read_write(&r.id, r.parent(), &r.opts()))
        }
        "Remove" => |driver, r| done(driver.remove(&r.id)),
        "Get" => |driver, r| {
            let dir = driver.get(&r.id, &r.mount_label)?;
            match dir.into_os_string().into_string() {
                Ok(dir) => Ok(Reply {
                    dir: Some(dir),
                    ..Reply::default()
                }),
                Err(dir) => {
                    driver.put(&r.id)?;
                    let why = format!("the protocol cannot say the path {}", dir.display());
                    Err(Error::Other(why))
                }
            }
        },
        "Put" => |driver, r| done(driver.put(&r.id)),
        "Exists" => |driver, r| {
            Ok(Reply {
                exists: Some(driver.exists(&r.id)),
                ..Reply::default()
            })
        },
        "GetMetadata" => |driver, r| {
            Ok(Reply {
                metadata: driver.metadata(&r.id)?,
                ..Reply::default()
            })
        },
        "Changes" => |driver, r| {
            let changes = driver.changes(&r.id, r.parent())?;
            Ok(Reply {
                changes: Some(changes.iter().map(WireChange::new).collect()),
                ..Reply::default()
            })
        },
        "DiffSize" => |driver, r| sized(driver.diff_size(&r.id, r.parent())?),
        _ => return Err(unknown(&format!("{GRAPH_DRIVER}.{call}"))),
    };
    let request = match call {
        "Capabilities" | "Status" => json_or_nothing(body)?,
        _ => json(body)?,
    };
    Ok(session.driver().and_then(|driver| work(&*driver, &request)))
}

fn done(result: Result<()>) -> Result<Reply> {
    result.map(|()| Reply::default())
}

fn sized(size: u64) -> Result<Reply> {
    let size = i64::try_from(size).map_err(|e| Error::Other(format!("the size: {e}")))?;
    Ok(Reply {
        size: Some(size),
        ..Reply::default()
    })
}

/// Begins a diff. Its first piece is read before anything is answered, so that what fails at once has a status of its own.
fn diff(session: &Session, request: &Request) -> Result<Outcome> {
    let driver = session.driver()?;
    let mut stream = driver.diff(&request.id, request.parent())?;
    let mut first = Vec::with_capacity(PIECE);
    stream
        .by_ref()
        .take(PIECE as u64)
        .read_to_end(&mut first)
        .map_err(|e| Error::Archive(crate::archive::Error::stream(e)))?;
    Ok(Outcome::Archive(first, stream))
}

fn apply(
    session: &Session,
    query: &str,
    body: &mut dyn Read,
) -> std::result::Result<Result<Reply>, Bad> {
    let value = |key: &str| -> std::result::Result<String, Bad> {
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let mut values = pairs.filter(|(k, _)| *k == key).map(|(_, v)| v);
        let text = values.next().unwrap_or_default();
        percent_decode(text).ok_or_else(|| {
            Bad(
                StatusCode::BAD_REQUEST,
                format!("{key} is not encoded as it must be: {text:?}"),
            )
        })
    };
    let (id, parent) = (value("id")?, value("parent")?);
    let parent = (!parent.is_empty()).then_some(parent);
    let driver: Result<Arc<dyn Driver>> = session.driver();
    Ok(driver.and_then(|driver| sized(driver.apply_diff(&id, parent.as_deref(), body)?)))
}

/// A body of JSON, and nothing after it.
fn json<T: DeserializeOwned>(body: &mut dyn Read) -> std::result::Result<T, Bad> {
    object(&whole(body)?)
}

/// An object; serde would take a list of its values for one, too.
fn object<T: DeserializeOwned>(bytes: &[u8]) -> std::result::Result<T, Bad> {
    let wrong = |why: String| Bad(StatusCode::BAD_REQUEST, format!("the body: {why}"));
    if !bytes.trim_ascii_start().starts_with(b"{") {
        return Err(wrong("expected a JSON object".to_owned()));
    }
    serde_json::from_slice(bytes).map_err(|e| wrong(e.to_string()))
}

/// The same for a call that says nothing: some clients send nothing at all.
fn json_or_nothing(body: &mut dyn Read) -> std::result::Result<Request, Bad> {
    let bytes = whole(body)?;
    if bytes.trim_ascii().is_empty() {
        return Ok(Request::default());
    }
    object(&bytes)
}

fn whole(body: &mut dyn Read) -> std::result::Result<Vec<u8>, Bad> {
    let mut bytes = Vec::new();
    match body.take(MAX_BODY + 1).read_to_end(&mut bytes) {
        Ok(n) if n as u64 > MAX_BODY => Err(Bad(
            StatusCode::PAYLOAD_TOO_LARGE,
            "the body is more than 16 MiB".to_owned(),
        )),
        Ok(_) => Ok(bytes),
        Err(e) => Err(Bad(StatusCode::BAD_REQUEST, format!("the body: {e}"))),
    }
}

/// Reads what a call left of its body, so that the connection can serve another one.
pub(super) fn drain(body: &mut dyn Read) -> io::Result<()> {
    io::copy(body, &mut io::sink()).map(drop)
}
