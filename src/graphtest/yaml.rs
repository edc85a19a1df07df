//! YAML with line numbers: every node knows where it stands.
//!
//! `serde_yaml` gives no position for a valid value, and a step that fails has to say where it was written. So the
//! structure comes from the events of `saphyr-parser`, which carry marks, and `serde_yaml` says what a value means.

use std::collections::BTreeMap;
use std::sync::Arc;

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_yaml::Value;

use super::scenario::Location;

/// One thing that is wrong in a file, and where.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Located {
    /// Where.
    pub at: Location,
    /// What was expected, and what was found.
    pub message: String,
}

impl std::fmt::Display for Located {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.at, self.message)
    }
}

/// A YAML node and the line it begins on (1 is the first).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    /// Its line.
    pub line: u32,
    /// What it is.
    pub kind: NodeKind,
}

/// What a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NodeKind {
    /// A scalar as it stands in the file; a plain one may mean a number, a truth value or nothing.
    Scalar {
        /// The text, quotes and line folding undone.
        text: String,
        /// Whether it stood without quotes.
        plain: bool,
    },
    /// A list.
    Seq(Vec<Node>),
    /// A mapping in the order of the file; keys are scalars and never equal.
    Map(Vec<(Node, Node)>),
}

impl Node {
    /// The text of a scalar.
    pub fn scalar(&self) -> Option<&str> {
        match &self.kind {
            NodeKind::Scalar { text, .. } => Some(text),
            _ => None,
        }
    }

    /// Short words for what this is, for messages.
    pub fn describe(&self) -> String {
        match &self.kind {
            NodeKind::Scalar { text, plain: true } if text.is_empty() || text == "~" => {
                "nothing".to_string()
            }
            NodeKind::Scalar { text, .. } => format!("`{}`", shorten(text, 60)),
            NodeKind::Seq(items) => format!("a list of {}", items.len()),
            NodeKind::Map(pairs) => match pairs.first().and_then(|(k, _)| k.scalar()) {
                Some(key) => format!("a mapping that begins with `{}`", shorten(key, 40)),
                None => "an empty mapping".to_string(),
            },
        }
    }

    /// Whether any text or key below holds `${`.
    pub fn has_variables(&self) -> bool {
        match &self.kind {
            NodeKind::Scalar { text, .. } => text.contains("${"),
            NodeKind::Seq(items) => items.iter().any(Self::has_variables),
            NodeKind::Map(pairs) => pairs
                .iter()
                .any(|(k, v)| k.has_variables() || v.has_variables()),
        }
    }
}

/// Cuts a text for a message, at a character boundary.
pub(crate) fn shorten(text: &str, chars: usize) -> String {
    let line = text.lines().next().unwrap_or_default();
    if line.chars().count() > chars {
        format!("{}...", line.chars().take(chars).collect::<String>())
    } else if line.len() < text.len() {
        format!("{line}...")
    } else {
        line.to_string()
    }
}

/// What a scalar means; a plain one as `serde_yaml` reads it, anything else is text.
pub(crate) fn meaning(text: &str, plain: bool) -> Value {
    if plain {
        match serde_yaml::from_str::<Value>(text) {
            Ok(v @ (Value::Null | Value::Bool(_) | Value::Number(_))) => return v,
            _ => return Value::String(text.to_string()),
        }
    }
    Value::String(text.to_string())
}

/// Reads one YAML document.
///
/// # Errors
/// It is not YAML, holds more than one document, tags, keys that are not scalars, or a key twice.
pub(crate) fn parse(file: &Arc<str>, text: &str) -> Result<Node, Located> {
    let mut reader = Reader {
        file,
        parser: Parser::new_from_str(text),
        anchors: BTreeMap::new(),
    };
    let mut root = None;
    loop {
        let (event, line) = reader.next()?;
        match event {
            Event::StreamEnd => break,
            Event::StreamStart | Event::DocumentEnd | Event::Nothing => {}
            Event::DocumentStart(_) => {
                if root.is_some() {
                    return Err(reader.wrong(line, "expected one document, found a second one"));
                }
                let (event, line) = reader.next()?;
                root = Some(reader.node(event, line)?);
            }
            _ => return Err(reader.wrong(line, "expected a document")),
        }
    }
    root.ok_or_else(|| reader.wrong(1, "expected a document, found an empty file"))
}

struct Reader<'a> {
    file: &'a Arc<str>,
    parser: Parser<'a, saphyr_parser::StrInput<'a>>,
    anchors: BTreeMap<usize, Node>,
}

impl<'a> Reader<'a> {
    fn wrong(&self, line: u32, message: impl Into<String>) -> Located {
        Located {
            at: Location {
                file: self.file.clone(),
                line,
            },
            message: message.into(),
        }
    }

    fn next(&mut self) -> Result<(Event<'a>, u32), Located> {
        match self.parser.next() {
            Some(Ok((event, span))) => Ok((event, line(span.start.line()))),
            Some(Err(e)) => Err(self.wrong(
                line(e.marker().line()),
                format!("expected YAML, found an error in it: {}", e.info()),
            )),
            None => Ok((Event::StreamEnd, 1)),
        }
    }

    fn node(&mut self, event: Event<'a>, line: u32) -> Result<Node, Located> {
        let tagged = match &event {
            Event::Scalar(_, _, _, tag)
            | Event::SequenceStart(_, tag)
            | Event::MappingStart(_, tag) => tag.as_ref().map(ToString::to_string),
            _ => None,
        };
        if let Some(tag) = tagged {
            return Err(self.wrong(
                line,
                format!("expected a value without a tag, found `{tag}`"),
            ));
        }
        let (anchor, kind) = match event {
            Event::Scalar(text, style, anchor, _) => {
                let plain = style == ScalarStyle::Plain;
                let text = text.into_owned();
                (anchor, NodeKind::Scalar { text, plain })
            }
            Event::SequenceStart(anchor, _) => (anchor, NodeKind::Seq(self.items()?)),
            Event::MappingStart(anchor, _) => (anchor, NodeKind::Map(self.pairs()?)),
            Event::Alias(id) => {
                let target = self.anchors.get(&id).cloned();
                return target
                    .ok_or_else(|| self.wrong(line, "expected an anchor that is closed before"));
            }
            other => return Err(self.wrong(line, format!("expected a value, found {other:?}"))),
        };
        let node = Node { line, kind };
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn items(&mut self) -> Result<Vec<Node>, Located> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(items),
                (event, line) => items.push(self.node(event, line)?),
            }
        }
    }

    fn pairs(&mut self) -> Result<Vec<(Node, Node)>, Located> {
        let mut pairs: Vec<(Node, Node)> = Vec::new();
        loop {
            let key = match self.next()? {
                (Event::MappingEnd, _) => return Ok(pairs),
                (event, line) => self.node(event, line)?,
            };
            let Some(name) = key.scalar() else {
                return Err(self.wrong(
                    key.line,
                    format!("expected a key, found {}", key.describe()),
                ));
            };
            if let Some((first, _)) = pairs.iter().find(|(k, _)| k.scalar() == Some(name)) {
                let message = format!(
                    "expected each key once, found `{name}` again (first on line {})",
                    first.line
                );
                return Err(self.wrong(key.line, message));
            }
            let (event, line) = self.next()?;
            let value = self.node(event, line)?;
            pairs.push((key, value));
        }
    }
}

fn line(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn read(text: &str) -> Result<Node, String> {
        parse(&"x.yaml".into(), text).map_err(|e| e.to_string())
    }

    #[test]
    fn nodes_know_their_lines() {
        let node = read("a: 1\nb:\n  - c\n  - {d: e}\n").unwrap();
        let NodeKind::Map(pairs) = node.kind else {
            panic!("not a mapping")
        };
        assert_eq!(pairs[1].0.line, 2);
        let NodeKind::Seq(items) = &pairs[1].1.kind else {
            panic!("not a list")
        };
        assert_eq!((items[0].line, items[1].line), (3, 4));
    }

    #[rstest]
    #[case(
        "a: 1\na: 2\n",
        "x.yaml:2: expected each key once, found `a` again (first on line 1)"
    )]
    #[case("", "x.yaml:1: expected a document, found an empty file")]
    #[case("a: !tag x", "x.yaml:1: expected a value without a tag, found `!tag`")]
    #[case("[a]: b", "x.yaml:1: expected a key, found a list of 1")]
    #[case(
        "--- a\n--- b\n",
        "x.yaml:2: expected one document, found a second one"
    )]
    fn bad_files_are_located(#[case] text: &str, #[case] message: &str) {
        assert_eq!(read(text).unwrap_err(), message);
    }

    #[test]
    fn broken_yaml_names_the_line() {
        let e = read("a:\n  - b\n c: [\n").unwrap_err();
        assert!(
            e.starts_with("x.yaml:3: expected YAML, found an error"),
            "{e}"
        );
    }

    #[rstest]
    #[case("12", true, Value::Number(12.into()))]
    #[case("12", false, Value::String("12".into()))]
    #[case("true", true, Value::Bool(true))]
    #[case("D /a", true, Value::String("D /a".into()))]
    #[case(".wh.a", true, Value::String(".wh.a".into()))]
    fn plain_scalars_mean_what_yaml_says(
        #[case] text: &str,
        #[case] plain: bool,
        #[case] value: Value,
    ) {
        assert_eq!(meaning(text, plain), value);
    }

    #[test]
    fn aliases_are_copies() {
        let node = read("a: &x [1, 2]\nb: *x\n").unwrap();
        let NodeKind::Map(pairs) = node.kind else {
            panic!("not a mapping")
        };
        assert_eq!(pairs[0].1, pairs[1].1);
    }
}
