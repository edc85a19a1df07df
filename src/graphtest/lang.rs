//! Decoding YAML nodes into the values of the language: every error is located, and one bad key does not hide the next.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::{Schema, SchemaGenerator, json_schema};
use serde::de::DeserializeOwned;
use serde_yaml::Value;

use super::scenario::Location;
use super::vars::Vars;
use super::yaml::{self, Located, Node, NodeKind};
use crate::tree::op;

/// What decoding knows and what it finds wrong.
#[derive(Debug)]
pub(crate) struct Cx {
    /// The file.
    pub file: Arc<str>,
    /// The variables in force.
    pub vars: Vars,
    /// What was wrong so far.
    pub errors: Vec<Located>,
}

impl Cx {
    /// Starts a file.
    pub fn new(file: Arc<str>) -> Self {
        Self {
            file,
            vars: Vars::default(),
            errors: Vec::new(),
        }
    }

    /// A place in the file.
    pub fn at(&self, line: u32) -> Location {
        Location {
            file: self.file.clone(),
            line,
        }
    }

    /// Notes an error, once, however many loop turns meet it.
    pub fn wrong(&mut self, line: u32, message: impl Into<String>) {
        let error = Located {
            at: self.at(line),
            message: message.into(),
        };
        if !self.errors.contains(&error) {
            self.errors.push(error);
        }
    }

    /// Notes that something else was expected here.
    pub fn expected(&mut self, what: &str, node: &Node) {
        let node = self.resolve(node).into_owned();
        let found = match node.scalar() {
            Some(text) if text.contains("${") => match self.vars.replace(text) {
                Ok(text) => format!("`{}`", yaml::shorten(&text, 60)),
                Err(_) => node.describe(),
            },
            _ => node.describe(),
        };
        self.wrong(node.line, format!("expected {what}, found {found}"));
    }

    /// The node, or the list or mapping that it names as a whole by `${name}`.
    pub fn resolve<'n>(&self, node: &'n Node) -> Cow<'n, Node> {
        if let NodeKind::Scalar { text, .. } = &node.kind
            && let Some(named) = self.vars.structure(text)
        {
            let kind = named.kind.clone();
            return Cow::Owned(Node {
                line: node.line,
                kind,
            });
        }
        Cow::Borrowed(node)
    }

    /// The text of a scalar, variables replaced; `None` (and an error noted) when it is none.
    pub fn text(&mut self, node: &Node, what: &str) -> Option<String> {
        let Some(text) = node.scalar() else {
            self.expected(what, node);
            return None;
        };
        match self.vars.replace(text) {
            Ok(text) => Some(text),
            Err(message) => {
                self.wrong(node.line, message);
                None
            }
        }
    }

    /// The node as a value, variables replaced.
    pub fn value(&mut self, node: &Node) -> Option<Value> {
        let node = self.resolve(node);
        match &node.kind {
            NodeKind::Scalar { text, plain } => match self.vars.replace(text) {
                Ok(text) => Some(yaml::meaning(&text, *plain)),
                Err(message) => {
                    self.wrong(node.line, message);
                    None
                }
            },
            NodeKind::Seq(items) => {
                let items: Option<Vec<Value>> = items.iter().map(|n| self.value(n)).collect();
                items.map(Value::Sequence)
            }
            NodeKind::Map(pairs) => {
                let mut map = serde_yaml::Mapping::new();
                for (k, v) in pairs {
                    let key = Value::String(self.text(k, "a key")?);
                    let value = self.value(v)?;
                    map.insert(key, value);
                }
                Some(Value::Mapping(map))
            }
        }
    }

    /// Decodes through serde; the error stands at the key it names, or at the node.
    pub fn serde<T: DeserializeOwned>(&mut self, node: &Node) -> Option<T> {
        let value = self.value(node)?;
        match serde_yaml::from_value(value) {
            Ok(v) => Some(v),
            Err(e) => {
                let (key, message) = polish(&e.to_string());
                let line = key
                    .and_then(|key| match &node.kind {
                        NodeKind::Map(pairs) => {
                            let at = pairs.iter().find(|(k, _)| k.scalar() == Some(key.as_str()));
                            at.map(|(k, _)| k.line)
                        }
                        _ => None,
                    })
                    .unwrap_or(node.line);
                self.wrong(line, message);
                None
            }
        }
    }
}

/// Says serde's complaint the way this language complains; with the key it is about, when that is a wrong one.
fn polish(message: &str) -> (Option<String>, String) {
    let quoted = |after: &str| {
        let rest = message.strip_prefix(after)?;
        let (name, rest) = rest.split_once('`')?;
        Some((name.to_string(), rest.to_string()))
    };
    if let Some((key, rest)) = quoted("unknown field `") {
        let known: Vec<&str> = rest.split('`').skip(1).step_by(2).collect();
        return (Some(key.clone()), unknown("key", &key, &known));
    }
    if let Some((key, _)) = quoted("missing field `") {
        return (None, format!("expected the key `{key}`, found none"));
    }
    for kind in ["invalid type: ", "invalid value: "] {
        if let Some(rest) = message.strip_prefix(kind)
            && let Some((found, expected)) = rest.split_once(", expected ")
        {
            return (None, format!("expected {expected}, found {found}"));
        }
    }
    (None, message.to_string())
}

/// An unknown word, what is known, and what was perhaps meant.
pub(crate) fn unknown(what: &str, found: &str, known: &[&str]) -> String {
    let near = known
        .iter()
        .map(|k| (distance(found, k), k))
        .filter(|(d, k)| *d <= 1 + k.len() / 4)
        .min();
    let list = match known.len() {
        0 => "none".to_string(),
        // A long list helps nobody.
        n @ MANY.. => format!("{} and {} others", known[..3].join(", "), n - 3),
        _ => known.join(", "),
    };
    match near {
        Some((_, near)) => format!(
            "expected one of: {list}; found the unknown {what} `{found}` (did you mean `{near}`?)"
        ),
        None => format!("expected one of: {list}; found the unknown {what} `{found}`"),
    }
}

/// So many words are not listed.
const MANY: usize = 60;

/// Edit distance (Levenshtein), for short words.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let replace = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// A value of the language.
pub(crate) trait Part: Sized {
    /// Decodes; on `None` at least one error was noted.
    fn decode(node: &Node, cx: &mut Cx) -> Option<Self>;

    /// What it is when its key is left out; `None`: the key must stand.
    fn absent() -> Option<Self> {
        None
    }

    /// Its JSON Schema.
    fn schema(g: &mut SchemaGenerator) -> Schema;
}

/// Values that serde decodes and schemars describes.
macro_rules! serde_parts {
    ($($t:ty),* $(,)?) => { $(
        impl Part for $t {
            fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
                cx.serde(node)
            }
            fn schema(g: &mut SchemaGenerator) -> Schema {
                g.subschema_for::<$t>()
            }
        }
    )* };
}
serde_parts!(op::Bytes, op::Path, op::Size, op::Mode, op::Op);

impl Part for String {
    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        cx.text(node, "text")
    }
    fn schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["string", "number", "boolean"] })
    }
}

/// A scalar that Rust can parse, with its word for messages.
fn parsed<T: std::str::FromStr>(node: &Node, cx: &mut Cx, what: &str) -> Option<T> {
    let text = cx.text(node, what)?;
    let value = text.parse().ok();
    if value.is_none() {
        cx.expected(what, node);
    }
    value
}

macro_rules! numbers {
    ($($t:ty),*) => { $(
        impl Part for $t {
            fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
                parsed(node, cx, "a whole number")
            }
            fn schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": ["integer", "string"], "description": "a whole number" })
            }
        }
    )* };
}
numbers!(u32, u64);

impl Part for bool {
    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        parsed(node, cx, "true or false")
    }
    fn absent() -> Option<Self> {
        Some(false)
    }
    fn schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["boolean", "string"] })
    }
}

impl<T: Part> Part for Option<T> {
    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        T::decode(node, cx).map(Some)
    }
    fn absent() -> Option<Self> {
        Some(None)
    }
    fn schema(g: &mut SchemaGenerator) -> Schema {
        T::schema(g)
    }
}

impl<T: Part> Part for Vec<T> {
    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        let node = cx.resolve(node);
        let NodeKind::Seq(items) = &node.kind else {
            cx.expected("a list", &node);
            return None;
        };
        // Every item is tried, so that all that is wrong is said at once.
        let decoded: Vec<Option<T>> = items.iter().map(|n| T::decode(n, cx)).collect();
        decoded.into_iter().collect()
    }
    fn absent() -> Option<Self> {
        Some(Self::new())
    }
    fn schema(g: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["array", "string"], "items": T::schema(g) })
    }
}

impl<T: Part> Part for BTreeMap<String, T> {
    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        let node = cx.resolve(node);
        let NodeKind::Map(pairs) = &node.kind else {
            cx.expected("a mapping", &node);
            return None;
        };
        let decoded: Vec<Option<(String, T)>> = pairs
            .iter()
            .map(|(k, v)| cx.text(k, "a key").zip(T::decode(v, cx)))
            .collect();
        decoded.into_iter().collect()
    }
    fn absent() -> Option<Self> {
        Some(Self::new())
    }
    fn schema(g: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "object", "additionalProperties": T::schema(g) })
    }
}

/// One value or a list of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OneOrMany<T>(pub Vec<T>);

impl<T: Part> Part for OneOrMany<T> {
    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        let node = cx.resolve(node);
        match &node.kind {
            NodeKind::Seq(_) => Vec::decode(&node, cx).map(Self),
            _ => T::decode(&node, cx).map(|v| Self(vec![v])),
        }
    }
    fn absent() -> Option<Self> {
        Some(Self(Vec::new()))
    }
    fn schema(g: &mut SchemaGenerator) -> Schema {
        let one = T::schema(g);
        json_schema!({ "anyOf": [one, { "type": "array", "items": one }] })
    }
}

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct At<T> {
    /// Where.
    pub at: Location,
    /// The value.
    pub value: T,
}

impl<T: Part> Part for At<T> {
    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        let at = cx.at(node.line);
        T::decode(node, cx).map(|value| Self { at, value })
    }
    fn schema(g: &mut SchemaGenerator) -> Schema {
        T::schema(g)
    }
}

/// What a loop does: its turns, each decoded with the loop's variables.
#[derive(Clone, Debug, PartialEq)]
pub struct Turns<T> {
    node: Option<Node>,
    /// One list for each turn; turns that do the same share it.
    pub each: Vec<Arc<[T]>>,
}

/// Decodes the body of a loop once for each turn, `set` giving the variables of turn 0, 1, 2, ...
pub(crate) fn unroll<T: Part>(
    body: &mut Turns<T>,
    turns: usize,
    cx: &mut Cx,
    set: impl Fn(usize, &mut Vars),
) {
    let Some(node) = body.node.take() else { return };
    let outer = cx.vars.clone();
    let varied = node.has_variables();
    let before = cx.errors.len();
    for turn in 0..turns {
        if !varied && let Some(first) = body.each.first() {
            let same = first.clone();
            body.each.push(same);
            continue;
        }
        set(turn, &mut cx.vars);
        let decoded: Option<Vec<T>> = Vec::decode(&node, cx);
        cx.vars = outer.clone();
        match decoded {
            Some(decoded) => body.each.push(decoded.into()),
            None => break,
        }
        if cx.errors.len() > before {
            break;
        }
    }
}

impl<T: Part> Part for Turns<T> {
    fn decode(node: &Node, _: &mut Cx) -> Option<Self> {
        Some(Self {
            node: Some(node.clone()),
            each: Vec::new(),
        })
    }
    fn absent() -> Option<Self> {
        Some(Self {
            node: None,
            each: Vec::new(),
        })
    }
    fn schema(g: &mut SchemaGenerator) -> Schema {
        Vec::<T>::schema(g)
    }
}

/// A node kept as it is, to be decoded later.
pub(crate) struct Raw(pub Node);

impl Part for Raw {
    fn decode(node: &Node, _: &mut Cx) -> Option<Self> {
        Some(Self(node.clone()))
    }
    fn schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({})
    }
}

/// A mapping being taken apart key by key.
pub(crate) struct Fields<'n> {
    line: u32,
    pairs: Vec<(String, &'n Node, u32)>,
    known: Vec<&'static str>,
}

impl<'n> Fields<'n> {
    /// Opens a mapping; keys have their variables replaced.
    pub fn open(node: &'n Node, cx: &mut Cx, what: &str) -> Option<Self> {
        let NodeKind::Map(pairs) = &node.kind else {
            cx.expected(what, node);
            return None;
        };
        let mut open = Vec::new();
        for (k, v) in pairs {
            open.push((cx.text(k, "a key")?, v, k.line));
        }
        Some(Self {
            line: node.line,
            pairs: open,
            known: Vec::new(),
        })
    }

    /// The first key.
    pub fn first(&self) -> Option<(&str, &'n Node, u32)> {
        self.pairs
            .first()
            .map(|(k, v, line)| (k.as_str(), *v, *line))
    }

    /// Takes a key.
    pub fn take<T: Part>(&mut self, key: &'static str, cx: &mut Cx) -> Option<T> {
        self.known.push(key);
        if let Some(i) = self.pairs.iter().position(|(k, _, _)| k == key) {
            let (_, node, _) = self.pairs.remove(i);
            return T::decode(node, cx);
        }
        let value = T::absent();
        if value.is_none() {
            cx.wrong(self.line, format!("expected the key `{key}`, found none"));
        }
        value
    }

    /// Takes whatever key is left over, with its value.
    pub fn rest(&mut self) -> Vec<(String, &'n Node, u32)> {
        std::mem::take(&mut self.pairs)
    }

    /// Notes every key that nothing took.
    pub fn finish(self, cx: &mut Cx) {
        for (key, _, line) in &self.pairs {
            cx.wrong(*line, unknown("key", key, &self.known));
        }
    }
}

/// A schema of a mapping from the schemas of its keys: name, whether it must stand, schema.
pub(crate) fn object(about: &str, fields: Vec<(&str, bool, Schema)>) -> Schema {
    let required: Vec<&str> = fields.iter().filter(|f| f.1).map(|f| f.0).collect();
    let properties: serde_json::Map<String, serde_json::Value> = fields
        .iter()
        .map(|(k, _, s)| (k.to_string(), s.clone().into()))
        .collect();
    json_schema!({
        "type": "object", "description": about.trim(), "properties": properties,
        "required": required, "additionalProperties": false,
    })
}
