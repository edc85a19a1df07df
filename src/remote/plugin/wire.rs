//! What goes over the wire as JSON.
//!
//! Go reads members whatever their case, passes over those it does not know, and takes `null` for the zero value; so does this.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::graphdriver::{Change, ChangeKind, CreateOpts, Error, ErrorClass, IdMap, InitOptions};
use crate::tree::TreePath;

/// What the plugin must say that it implements.
pub(super) const GRAPH_DRIVER: &str = "GraphDriver";

/// `null` is the zero value.
fn zero<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(d: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or_default())
}

/// The body of `GraphDriver.Init`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Init {
    /// The directory of the driver's state.
    #[serde(rename = "Home", deserialize_with = "zero")]
    pub home: String,
    /// Options `key=value`; daemons send `null` for none.
    #[serde(rename = "Opts")]
    pub opts: Option<Vec<String>>,
    /// Uid maps; daemons send `null` for none.
    #[serde(rename = "UIDMaps")]
    pub uid_maps: Option<Vec<Map>>,
    /// Gid maps.
    #[serde(rename = "GIDMaps")]
    pub gid_maps: Option<Vec<Map>>,
}

/// A run of ids. The names are those of Go's tags, which is what daemons send; the manual shows others.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Map {
    #[serde(alias = "ContainerID")]
    container_id: u32,
    #[serde(alias = "HostID")]
    host_id: u32,
    #[serde(alias = "Size")]
    size: u32,
}

impl Init {
    /// For a driver on a home.
    pub fn new(home: &str, init: &InitOptions) -> Self {
        let some = |maps: &[IdMap]| {
            let map = |m: &IdMap| Map {
                container_id: m.container_id,
                host_id: m.host_id,
                size: m.size,
            };
            (!maps.is_empty()).then(|| maps.iter().map(map).collect())
        };
        Self {
            home: home.to_owned(),
            opts: (!init.options.is_empty()).then(|| init.options.clone()),
            uid_maps: some(&init.id_maps.uids),
            gid_maps: some(&init.id_maps.gids),
        }
    }

    /// What the driver is to be started with.
    pub fn options(self) -> InitOptions {
        let maps = |maps: Option<Vec<Map>>| {
            let map = |m: Map| IdMap {
                container_id: m.container_id,
                host_id: m.host_id,
                size: m.size,
            };
            maps.unwrap_or_default().into_iter().map(map).collect()
        };
        let mut init = InitOptions::new(self.opts.unwrap_or_default());
        init.id_maps.uids = maps(self.uid_maps);
        init.id_maps.gids = maps(self.gid_maps);
        init
    }
}

/// The body of every other call with one; what is empty is left out.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Request {
    #[serde(
        rename = "ID",
        deserialize_with = "zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub id: String,
    #[serde(
        rename = "Parent",
        deserialize_with = "zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub parent: String,
    #[serde(
        rename = "MountLabel",
        deserialize_with = "zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub mount_label: String,
    #[serde(
        rename = "StorageOpt",
        deserialize_with = "zero",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub storage_opt: BTreeMap<String, String>,
}

impl Request {
    /// About one layer.
    pub fn id(id: &str) -> Self {
        Self::of(id, None)
    }

    /// About a layer and its parent.
    pub fn of(id: &str, parent: Option<&str>) -> Self {
        Self {
            id: id.to_owned(),
            parent: parent.unwrap_or_default().to_owned(),
            ..Self::default()
        }
    }

    /// The parent; an empty one is none.
    pub fn parent(&self) -> Option<&str> {
        (!self.parent.is_empty()).then_some(self.parent.as_str())
    }

    /// What is asked for beyond id and parent.
    pub fn opts(&self) -> CreateOpts {
        CreateOpts {
            mount_label: self.mount_label.clone(),
            storage_opt: self.storage_opt.clone(),
        }
    }
}

/// An answer as a server gives it. `Err` is always there, as with plugins made with Docker's own helpers.
#[derive(Debug, Default, Serialize)]
pub(super) struct Reply {
    #[serde(rename = "Err")]
    pub err: String,
    #[serde(rename = "Class", skip_serializing_if = "Option::is_none")]
    pub class: Option<&'static str>,
    #[serde(rename = "Dir", skip_serializing_if = "Option::is_none")]
    pub dir: Option<String>,
    #[serde(rename = "Exists", skip_serializing_if = "Option::is_none")]
    pub exists: Option<bool>,
    #[serde(rename = "Status", skip_serializing_if = "Option::is_none")]
    pub status: Option<Vec<(String, String)>>,
    #[serde(rename = "Changes", skip_serializing_if = "Option::is_none")]
    pub changes: Option<Vec<WireChange>>,
    #[serde(rename = "Size", skip_serializing_if = "Option::is_none")]
    pub size: Option<i64>,
    #[serde(rename = "Metadata", skip_serializing_if = "Option::is_none")]
    pub metadata: Option<BTreeMap<String, String>>,
    #[serde(rename = "Capabilities", skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Able>,
    #[serde(rename = "Implements", skip_serializing_if = "Option::is_none")]
    pub implements: Option<&'static [&'static str]>,
}

impl Reply {
    /// Of an error.
    pub fn error(e: &Error) -> Self {
        Self {
            err: e.to_string(),
            class: Some(e.class().name()),
            ..Self::default()
        }
    }
}

/// What a plugin says that it can.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Able {
    #[serde(
        rename = "ReproducesExactDiffs",
        alias = "reproducesexactdiffs",
        alias = "reproducesExactDiffs",
        deserialize_with = "zero"
    )]
    pub reproduces_exact_diffs: bool,
}

/// One changed path.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct WireChange {
    /// Absolute within the layer; what is no UTF-8 in it is replaced, as Go does.
    #[serde(rename = "Path", alias = "path", deserialize_with = "zero")]
    path: String,
    #[serde(rename = "Kind", alias = "kind", deserialize_with = "zero")]
    kind: u64,
    /// The path itself, in base64, where it is no UTF-8.
    #[serde(rename = "PathBytes", skip_serializing_if = "Option::is_none")]
    bytes: Option<String>,
}

impl WireChange {
    /// As it goes over the wire.
    pub fn new(change: &Change) -> Self {
        let mut bytes = vec![b'/'];
        bytes.extend_from_slice(change.path.as_bytes());
        let path = String::from_utf8_lossy(&bytes).into_owned();
        let lossy = path.as_bytes() != bytes;
        Self {
            path,
            kind: change.kind as u64,
            bytes: lossy.then(|| BASE64_STANDARD.encode(&bytes)),
        }
    }

    /// As it is meant; the error says what is wrong with it.
    pub fn change(self) -> Result<Change, String> {
        let kind = match self.kind {
            0 => ChangeKind::Modify,
            1 => ChangeKind::Add,
            2 => ChangeKind::Delete,
            other => return Err(format!("{:?} has the kind {other}", self.path)),
        };
        let bytes = match &self.bytes {
            None => self.path.as_bytes().to_vec(),
            Some(text) => BASE64_STANDARD
                .decode(text)
                .map_err(|e| format!("PathBytes of {:?}: {e}", self.path))?,
        };
        match bytes.strip_prefix(b"/") {
            Some(path) if !path.is_empty() => Ok(Change {
                path: TreePath(path.to_vec()),
                kind,
            }),
            _ => Err(format!("{:?} is no absolute path in a layer", self.path)),
        }
    }
}

/// An answer as a client reads it: whatever is there of what any call can answer.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub err: String,
    pub class: Option<ErrorClass>,
    pub dir: String,
    pub exists: bool,
    pub status: Vec<Vec<String>>,
    pub changes: Vec<WireChange>,
    pub size: i64,
    pub metadata: Option<BTreeMap<String, String>>,
    pub capabilities: Able,
    pub implements: Vec<String>,
}

impl<'de> Deserialize<'de> for Answer {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(Members)
    }
}

struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = Answer;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_unit<E>(self) -> Result<Answer, E> {
        Ok(Answer::default())
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Answer, M::Error> {
        fn value<'de, M: MapAccess<'de>, T: Deserialize<'de> + Default>(
            map: &mut M,
        ) -> Result<T, M::Error> {
            Ok(map.next_value::<Option<T>>()?.unwrap_or_default())
        }
        let mut answer = Answer::default();
        while let Some(key) = map.next_key::<String>()? {
            match key.to_ascii_lowercase().as_str() {
                "err" => answer.err = value(&mut map)?,
                "class" => answer.class = value::<_, String>(&mut map)?.parse().ok(),
                "dir" => answer.dir = value(&mut map)?,
                "exists" => answer.exists = value(&mut map)?,
                "status" => answer.status = value(&mut map)?,
                "changes" => answer.changes = value(&mut map)?,
                "size" => answer.size = value(&mut map)?,
                "metadata" => answer.metadata = map.next_value()?,
                "capabilities" => answer.capabilities = value(&mut map)?,
                "implements" => answer.implements = value(&mut map)?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("null")]
    #[case("{}")]
    #[case(r#"{"Err": null, "Status": null, "Changes": null, "Metadata": null, "Capabilities": null, "Size": null}"#)]
    #[case(r#"{"Err": "", "Other": {"deep": [1, {"er": 2}]}, "Dir": null}"#)]
    fn nothing_said_is_nothing(#[case] text: &str) {
        let answer: Answer = serde_json::from_str(text).unwrap();
        assert!(answer.err.is_empty() && answer.dir.is_empty() && answer.metadata.is_none());
        assert!(answer.status.is_empty() && answer.changes.is_empty() && answer.size == 0);
    }

    #[test]
    fn members_are_read_whatever_their_case() {
        let text = r#"{"err": "no", "DIR": "/d", "changes": [{"path": "/a", "kind": 2}], "Size": 7,
            "status": [["k", "v"]], "capabilities": {"reproducesExactDiffs": true}}"#;
        let answer: Answer = serde_json::from_str(text).unwrap();
        assert_eq!(
            (answer.err.as_str(), answer.dir.as_str(), answer.size),
            ("no", "/d", 7)
        );
        assert!(answer.capabilities.reproduces_exact_diffs);
        let change = answer.changes.into_iter().next().unwrap().change().unwrap();
        assert_eq!(change.to_string(), "D /a");
    }

    #[test]
    fn a_path_comes_through_whatever_its_bytes() {
        for path in [&b"a/b"[..], b"\xff\xfe", "ä".as_bytes()] {
            let change = Change {
                path: TreePath(path.to_vec()),
                kind: ChangeKind::Add,
            };
            let text = serde_json::to_string(&WireChange::new(&change)).unwrap();
            let back: WireChange = serde_json::from_str(&text).unwrap();
            assert_eq!(back.change().unwrap(), change);
        }
    }

    #[rstest]
    #[case(r#"{"Path": "a", "Kind": 1}"#)]
    #[case(r#"{"Path": "/", "Kind": 1}"#)]
    #[case(r#"{"Path": "/a", "Kind": 3}"#)]
    #[case(r#"{}"#)]
    fn a_change_that_is_none_is_told(#[case] text: &str) {
        let change: WireChange = serde_json::from_str(text).unwrap();
        assert!(change.change().is_err());
    }

    #[rstest]
    #[case(
        r#"{"Home": "/h", "Opts": null, "UIDMaps": null, "GIDMaps": null}"#,
        0,
        0
    )]
    #[case(r#"{"Home": "/h", "Opts": [], "UIDMaps": [], "GIDMaps": []}"#, 0, 0)]
    #[case(r#"{"Home": "/h", "Opts": ["a=b"], "UIDMaps": [{"container_id": 0, "host_id": 5, "size": 9}]}"#, 1, 1)]
    #[case(
        r#"{"Home": "/h", "UIDMaps": [{"ContainerID": 0, "HostID": 5, "Size": 9}]}"#,
        0,
        1
    )]
    fn inits_of_every_daemon_are_read(
        #[case] text: &str,
        #[case] opts: usize,
        #[case] maps: usize,
    ) {
        let init = serde_json::from_str::<Init>(text).unwrap().options();
        assert_eq!((init.options.len(), init.id_maps.uids.len()), (opts, maps));
        assert!(
            init.id_maps
                .uids
                .iter()
                .all(|m| m.host_id == 5 && m.size == 9)
        );
    }
}
