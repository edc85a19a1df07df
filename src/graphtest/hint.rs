//! What may be the matter when a scenario fails: a kernel commit or a tool's version that is known to mend it.

use std::collections::BTreeMap;

use schemars::{Schema, SchemaGenerator};

use super::condition::{Condition, Ground};
use super::lang::{Cx, Fields, Part, Raw, object};
use super::yaml::Node;

/// A hint of a scenario.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hint {
    /// Where it is worth saying.
    pub when: Condition,
    /// What is said.
    pub says: String,
}

/// The hints that are worth saying there, in one line; `None`: there are none.
pub fn said(hints: &[Hint], ground: &Ground) -> Option<String> {
    let said = hints.iter().filter(|h| h.when.holds(ground));
    let said: Vec<&str> = said.map(|h| h.says.trim()).collect();
    (!said.is_empty()).then(|| said.join("; "))
}

impl Part for Hint {
    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        let mut fields = Fields::open(node, cx, "a hint such as {when: {...}, says: ...}")?;
        let when = fields.take::<Option<Raw>>("when", cx);
        let says = fields.take("says", cx);
        fields.finish(cx);
        let when = match when? {
            None => Condition::default(),
            Some(Raw(node)) => condition(&node, cx)?,
        };
        Some(Self { when, says: says? })
    }

    fn schema(g: &mut SchemaGenerator) -> Schema {
        let text = String::schema(g);
        let status = BTreeMap::<String, String>::schema(g);
        let when = object(
            "Where it is worth saying; left out: everywhere.",
            vec![("kernels", false, text.clone()), ("status", false, status)],
        );
        object(
            "What may be the matter when the scenario fails.",
            vec![("when", false, when), ("says", true, text)],
        )
    }
}

fn condition(node: &Node, cx: &mut Cx) -> Option<Condition> {
    let mut fields = Fields::open(node, cx, "ranges such as {kernels: \"<5.19\"}")?;
    let kernels = fields.take::<Option<String>>("kernels", cx);
    let status = fields.take("status", cx);
    fields.finish(cx);
    let condition = Condition::new(&kernels?.unwrap_or_default(), &status?);
    condition.map_err(|e| cx.wrong(node.line, e)).ok()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::super::event::CellStart;
    use super::super::load::from_texts;
    use super::*;

    fn read(hints: &str) -> Result<Vec<Hint>, String> {
        let text = format!(
            "suite: s\nabout: x\nscenarios:\n- id: a\n  proves: LIFE-1\n  level: must\n  must: Holds.\n  catches: dup-create-wipes\n  \
             hints:\n{hints}\n  steps: [{{create: x}}]\n"
        );
        let library = from_texts([("s.yaml".to_string(), text)]).map_err(|e| e.to_string())?;
        Ok(library.suites[0].scenarios[0].hints.clone())
    }

    #[rstest]
    #[case("6.1.0", "1.9", Some("Linux 6.2 mends it (abc)"))]
    #[case("5.3.0", "1.14", Some("Linux 6.2 mends it (abc); old"))]
    #[case("6.6.0", "1.9", None)]
    fn hints_are_said_where_they_are_about(
        #[case] kernel: &str,
        #[case] tool: &str,
        #[case] expected: Option<&str>,
    ) {
        let hints = read(
            "  - {when: {kernels: '<6.2'}, says: Linux 6.2 mends it (abc)}\n  \
             - {when: {kernels: '<6.2', status: {Tool: '>=1.14'}}, says: old}",
        )
        .unwrap();
        let ground = Ground {
            cell: CellStart {
                target: "vfs".to_string(),
                backing: "dir".to_string(),
                kernel: kernel.to_string(),
            },
            status: [("Tool".to_string(), tool.to_string())].into(),
        };
        assert_eq!(said(&hints, &ground).as_deref(), expected);
    }

    #[rstest]
    #[case("  - {when: {kernel: '<6'}, says: x}", "s.yaml:10: expected one of: ")]
    #[case("  - {when: {kernels: '6'}, says: x}", "s.yaml:10: kernels: expected")]
    #[case("  - {when: {}}", "s.yaml:10: expected the key `says`")]
    fn what_is_wrong_in_a_hint_is_said(#[case] hints: &str, #[case] says: &str) {
        let error = read(hints).unwrap_err();
        assert!(error.contains(says), "{error}");
    }
}
