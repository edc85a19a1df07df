//! Where a plugin listens, and finding it by its name.

use std::fmt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Where a plugin listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// `host:port`.
    Tcp(String),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Tcp(host) => write!(f, "tcp://{host}"),
        }
    }
}

/// Where daemons look for sockets.
const SOCKETS: &str = "run/docker/plugins";
/// Where they look for files that name an address, in this order.
const SPECS: [&str; 2] = ["etc/docker/plugins", "usr/lib/docker/plugins"];

#[derive(Deserialize)]
struct Spec {
    #[serde(rename = "Addr", alias = "addr", default)]
    addr: String,
}

/// The address that is meant: a path or a URL is one itself; anything else is a name, looked for as daemons do: `NAME.sock` and
/// `NAME/NAME.sock` below `/run/docker/plugins`, then `.spec` and `.json` files below `/etc/docker/plugins` and
/// `/usr/lib/docker/plugins`.
///
/// # Errors
/// There is none of the name, its file names no address, or an address of another kind (`https`), in words.
pub fn discover(text: &str) -> Result<Address, String> {
    discover_below(Path::new("/"), text)
}

fn discover_below(root: &Path, text: &str) -> Result<Address, String> {
    if text.contains("://") {
        return of_url(text);
    }
    if text.contains('/') {
        let path = std::path::absolute(text).map_err(|e| format!("{text}: {e}"))?;
        return Ok(Address::Unix(path));
    }
    if text.is_empty() {
        return Err("a plugin is named by its socket or its name".to_owned());
    }
    let places = |dir: &str, ending: &str| {
        let (dir, file) = (root.join(dir), format!("{text}.{ending}"));
        [dir.join(&file), dir.join(text).join(&file)]
    };
    let is_socket =
        |path: &PathBuf| std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
    if let Some(path) = places(SOCKETS, "sock").into_iter().find(is_socket) {
        return Ok(Address::Unix(path));
    }
    for dir in SPECS {
        for ending in ["spec", "json"] {
            for path in places(dir, ending) {
                let content = match std::fs::read_to_string(&path) {
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                    read => read.map_err(|e| format!("{}: {e}", path.display()))?,
                };
                return of_file(&content, ending)
                    .map_err(|why| format!("{}: {why}", path.display()));
            }
        }
    }
    Err(format!(
        "there is no plugin {text}: neither a socket below /{SOCKETS} nor a .spec or .json file below /{} or /{}",
        SPECS[0], SPECS[1]
    ))
}

fn of_file(content: &str, ending: &str) -> Result<Address, String> {
    if ending == "spec" {
        return of_url(content.trim());
    }
    let spec: Spec = serde_json::from_str(content).map_err(|e| e.to_string())?;
    of_url(&spec.addr)
}

fn of_url(url: &str) -> Result<Address, String> {
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err(format!("{url:?} has no scheme, such as unix://"));
    };
    match scheme {
        "unix" if rest.starts_with('/') => Ok(Address::Unix(rest.into())),
        "tcp" | "http" if !rest.is_empty() => {
            Ok(Address::Tcp(rest.trim_end_matches('/').to_owned()))
        }
        "https" => Err(format!("{url}: plugins behind TLS are not supported")),
        _ => Err(format!("{url:?} is no address of a plugin")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("unix:///run/x.sock", Some(Address::Unix("/run/x.sock".into())))]
    #[case("/run/x.sock", Some(Address::Unix("/run/x.sock".into())))]
    #[case("tcp://127.0.0.1:80", Some(Address::Tcp("127.0.0.1:80".into())))]
    #[case("http://h:1/", Some(Address::Tcp("h:1".into())))]
    #[case("https://h:1", None)]
    #[case("unix://x", None)]
    #[case("ftp://h", None)]
    #[case("no-such-plugin-here", None)]
    #[case("", None)]
    fn addresses(#[case] text: &str, #[case] address: Option<Address>) {
        assert_eq!(discover(text).ok(), address, "{text}");
    }

    #[test]
    fn a_name_is_looked_for_where_daemons_look() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let found = || discover_below(root.path(), "p");
        let tcp = |text: &str| Ok(Address::Tcp(text.to_owned()));
        assert!(found().is_err());
        write(
            "usr/lib/docker/plugins/p/p.json",
            r#"{"Name": "q", "Addr": "tcp://h:4"}"#,
        );
        assert_eq!(found(), tcp("h:4"));
        write("usr/lib/docker/plugins/p.spec", " http://h:3\n");
        assert_eq!(found(), tcp("h:3"));
        write(
            "etc/docker/plugins/p.json",
            r#"{"Addr": "tcp://h:2", "TLSConfig": null}"#,
        );
        assert_eq!(found(), tcp("h:2"));
        write("etc/docker/plugins/p/p.spec", "tcp://h:1");
        assert_eq!(found(), tcp("h:1"));
        // A file of that name is no socket.
        write("run/docker/plugins/p.sock", "");
        assert_eq!(found(), tcp("h:1"));
        std::fs::create_dir_all(root.path().join("run/docker/plugins/p")).unwrap();
        let socket = root.path().join("run/docker/plugins/p/p.sock");
        let _listener = UnixListener::bind(&socket).unwrap();
        assert_eq!(found(), Ok(Address::Unix(socket)));
        write("etc/docker/plugins/q.json", "{");
        assert!(discover_below(root.path(), "q").is_err_and(|e| e.contains("q.json")));
    }
}
