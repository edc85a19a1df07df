//! The numbered sentences of the contract.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::lang::{Cx, Fields, Part, Raw};
use super::yaml::{self, Located, Node};

/// One sentence of the contract.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// Its number, such as `LIFE-3`.
    pub id: String,
    /// The sentence.
    pub text: String,
    /// Why callers need it.
    pub why: Option<String>,
    /// Where it comes from.
    pub from: Vec<String>,
}

impl Part for Requirement {
    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        let mut fields = Fields::open(node, cx, "a requirement such as {id: LIFE-1, text: ...}")?;
        let id = fields.take("id", cx);
        let text = fields.take("text", cx);
        let why = fields.take("why", cx);
        let from = fields.take("from", cx);
        fields.finish(cx);
        Some(Self {
            id: id?,
            text: text?,
            why: why?,
            from: from?,
        })
    }
    fn schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "object" })
    }
}

/// Reads a file of requirements, sorted by id as numbers go.
///
/// # Errors
/// All that is wrong in it.
pub(crate) fn parse(
    file: &str,
    text: &str,
) -> Result<BTreeMap<String, Arc<Requirement>>, Vec<Located>> {
    let file: Arc<str> = file.into();
    let node = yaml::parse(&file, text).map_err(|e| vec![e])?;
    let mut cx = Cx::new(file);
    let list = Fields::open(&node, &mut cx, "a mapping with `requirements:`").and_then(|mut f| {
        let list = f.take::<Vec<Raw>>("requirements", &mut cx);
        f.finish(&mut cx);
        list
    });
    let mut all = BTreeMap::new();
    for Raw(item) in list.unwrap_or_default() {
        let Some(requirement) = Requirement::decode(&item, &mut cx) else {
            continue;
        };
        let id = requirement.id.clone();
        if all.insert(id.clone(), Arc::new(requirement)).is_some() {
            let message = format!("expected each id once, found `{id}` again");
            cx.wrong(item.line, message);
        }
    }
    if cx.errors.is_empty() {
        Ok(all)
    } else {
        Err(cx.errors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_wrong_is_said() {
        let text =
            "requirements:\n- {id: A-1, text: x}\n- {id: A-1, text: y}\n- {id: B-1, txt: y}\n";
        let errors: Vec<String> = parse("r.yaml", text)
            .unwrap_err()
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            errors,
            [
                "r.yaml:3: expected each id once, found `A-1` again",
                "r.yaml:4: expected the key `text`, found none",
                "r.yaml:4: expected one of: id, text, why, from; found the unknown key `txt` (did you mean `text`?)",
            ]
        );
    }
}
