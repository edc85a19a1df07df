//! One suite: from a tree of YAML to cases.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use schemars::SchemaGenerator;

use super::{LoadError, whole};
use crate::graphdriver::Capability;
use crate::graphtest::hint::Hint;
use crate::graphtest::lang::{At, Cx, Fields, OneOrMany, Part, Raw, unknown};
use crate::graphtest::mutant;
use crate::graphtest::needs::{Need, NeedKind};
use crate::graphtest::requirement::Requirement;
use crate::graphtest::scenario::{Case, Level, OwnBacking, Scenario, ScenarioId, Suite};
use crate::graphtest::step::Step;
use crate::graphtest::vars::Vars;
use crate::graphtest::yaml::{self, Located, Node, NodeKind};

/// The variable of the limit that a driver claims, in cases that need one.
const MAX_DEPTH: &str = "max-depth";

/// What the limit is taken for while a file is checked.
const SOME_LIMIT: u32 = 8;

/// The steps of a case as they are written, until the limit is known.
#[derive(Debug, PartialEq)]
pub struct ByLimit {
    file: Arc<str>,
    vars: Vars,
    steps: Node,
}

impl ByLimit {
    /// The steps for a driver that claims this limit.
    ///
    /// # Errors
    /// What is wrong with them for this limit.
    pub fn steps(&self, limit: u32) -> Result<Arc<[Step]>, LoadError> {
        let mut cx = Cx::new(self.file.clone());
        cx.vars = self.vars.clone();
        cx.vars.set(MAX_DEPTH, limit);
        match Vec::<Step>::decode(&self.steps, &mut cx) {
            Some(steps) if cx.errors.is_empty() => Ok(steps.into()),
            _ => Err(LoadError { errors: cx.errors }),
        }
    }
}

/// What the suites so far have said.
#[derive(Debug)]
pub(super) struct Loader {
    pub requirements: BTreeMap<String, Arc<Requirement>>,
    /// Where each suite name was first used.
    pub names: BTreeMap<String, String>,
    pub errors: Vec<Located>,
}

/// The header of a scenario before its rows are looked at.
struct Head {
    scenario: Scenario,
    needs: Vec<At<Need>>,
    rows: Option<Vec<Row>>,
    backing: Option<Node>,
    steps: Node,
}

struct Row {
    name: String,
    line: u32,
    needs: Vec<At<Need>>,
    catches: Vec<String>,
    vars: Vars,
}

impl Loader {
    pub fn suite(&mut self, file: &str, text: &str) -> Option<Suite> {
        let name: Arc<str> = file.into();
        let mut cx = Cx::new(name.clone());
        let suite = match yaml::parse(&name, text) {
            Ok(node) => self.decode(&node, &mut cx),
            Err(e) => {
                cx.errors.push(e);
                None
            }
        };
        let bad = !cx.errors.is_empty();
        self.errors.append(&mut cx.errors);
        suite.filter(|_| !bad)
    }

    fn decode(&mut self, node: &Node, cx: &mut Cx) -> Option<Suite> {
        let mut fields = Fields::open(node, cx, "a mapping with `suite:`")?;
        let name = fields.take::<At<String>>("suite", cx);
        let about = fields.take("about", cx);
        let scenarios = fields.take::<Raw>("scenarios", cx);
        fields.finish(cx);
        let (name, scenarios) = (name?, scenarios?.0);
        kebab(&name.value, name.at.line, "suite name", cx);
        if let Some(first) = self.names.insert(name.value.clone(), cx.file.to_string()) {
            cx.wrong(
                name.at.line,
                format!(
                    "expected a suite name of its own, found `{}`, which {first} has",
                    name.value
                ),
            );
        }
        let NodeKind::Seq(items) = &scenarios.kind else {
            cx.expected("a list of scenarios", &scenarios);
            return None;
        };
        if items.is_empty() {
            cx.expected("at least one scenario", &scenarios);
        }
        let mut suite = Suite {
            file: cx.file.clone(),
            name: name.value,
            about: about?,
            scenarios: Vec::new(),
            cases: Vec::new(),
        };
        let mut ids: BTreeMap<String, u32> = BTreeMap::new();
        for item in items {
            let Some(head) = self.head(item, &suite.name, cx) else {
                continue;
            };
            let (id, line) = (&head.scenario.id, head.scenario.at.line);
            if let Some(first) = ids.insert(id.0.clone(), line) {
                cx.wrong(
                    line,
                    format!("expected each id once, found `{id}` again (first on line {first})"),
                );
            }
            let cases = self.cases(head, cx);
            if let Some(first) = cases.first() {
                suite.scenarios.push(first.scenario.clone());
            }
            suite.cases.extend(cases);
        }
        Some(suite)
    }

    fn head(&self, node: &Node, suite: &str, cx: &mut Cx) -> Option<Head> {
        let mut fields = Fields::open(node, cx, "a scenario, which begins with `id:`")?;
        let id = fields.take::<At<String>>("id", cx);
        let proves = fields.take::<At<OneOrMany<At<String>>>>("proves", cx);
        let level = fields.take::<Level>("level", cx);
        let must = fields.take::<String>("must", cx);
        let from = fields.take::<Vec<String>>("from", cx);
        let tags = fields.take::<Vec<String>>("tags", cx);
        let hints = fields.take::<Vec<Hint>>("hints", cx);
        let needs = fields.take::<Vec<At<Need>>>("needs", cx);
        let catches = fields.take::<Option<At<OneOrMany<At<String>>>>>("catches", cx);
        let backing = fields.take::<Option<Raw>>("backing", cx);
        let cases = fields.take::<Option<Raw>>("cases", cx);
        let steps = fields.take::<Raw>("steps", cx);
        fields.finish(cx);
        let rows = match cases {
            Some(Some(raw)) => Some(Self::rows(&raw.0, cx)),
            _ => None,
        };
        if let Some(id) = &id {
            kebab(&id.value, id.at.line, "id", cx);
        }
        if let Some(proves) = &proves {
            self.check_proves(proves, cx);
        }
        let catches = catches?;
        let own: Vec<At<String>> = catches.map(|c| c.value.0).unwrap_or_default();
        for mutant in &own {
            known_mutant(&mutant.value, mutant.at.line, cx);
        }
        let in_rows = rows.iter().flatten().any(|r| !r.catches.is_empty());
        if own.is_empty() && !in_rows {
            cx.wrong(
                node.line,
                "expected `catches:` with at least one mutant, found none: a scenario that catches nothing is not a test",
            );
        }
        let id = id?;
        Some(Head {
            scenario: Scenario {
                id: ScenarioId(format!("{suite}/{}", id.value)),
                at: cx.at(node.line),
                proves: proves?.value.0.into_iter().map(|p| p.value).collect(),
                level: level?,
                must: must?,
                from: from?,
                tags: tags?,
                hints: hints?,
                catches: own.into_iter().map(|m| m.value).collect(),
            },
            needs: needs?,
            rows,
            backing: backing?.map(|raw| raw.0),
            steps: steps?.0,
        })
    }

    fn check_proves(&self, proves: &At<OneOrMany<At<String>>>, cx: &mut Cx) {
        if proves.value.0.is_empty() {
            cx.wrong(
                proves.at.line,
                "expected at least one requirement after `proves:`, found none",
            );
        }
        for id in &proves.value.0 {
            // Until the requirements are written down there is nothing to hold a scenario to.
            if !self.requirements.is_empty() && !self.requirements.contains_key(&id.value) {
                let near: Vec<&str> = self
                    .requirements
                    .keys()
                    .map(String::as_str)
                    .filter(|k| k.split('-').next() == id.value.split('-').next())
                    .collect();
                cx.wrong(id.at.line, unknown("requirement", &id.value, &near));
            }
        }
    }

    fn rows(node: &Node, cx: &mut Cx) -> Vec<Row> {
        let NodeKind::Seq(items) = &node.kind else {
            cx.expected("a list of rows such as {case: two, depth: 2}", node);
            return Vec::new();
        };
        if items.is_empty() {
            cx.expected("at least one row", node);
        }
        let mut rows: Vec<Row> = Vec::new();
        for item in items {
            let Some(row) = Self::row(item, cx) else {
                continue;
            };
            if rows.iter().any(|r| r.name == row.name) {
                cx.wrong(
                    row.line,
                    format!("expected each row once, found `{}` again", row.name),
                );
            }
            if let Some(first) = rows.first() {
                let keys = |r: &Row| r.vars.0.keys().cloned().collect::<BTreeSet<_>>();
                let (a, b) = (keys(first), keys(&row));
                if a != b {
                    let odd: Vec<String> = a.symmetric_difference(&b).cloned().collect();
                    cx.wrong(
                        row.line,
                        format!(
                            "expected the same keys in every row, found a difference in: {}",
                            odd.join(", ")
                        ),
                    );
                }
            }
            rows.push(row);
        }
        rows
    }

    fn row(node: &Node, cx: &mut Cx) -> Option<Row> {
        let mut fields = Fields::open(node, cx, "a row such as {case: two, depth: 2}")?;
        let name = fields.take::<At<String>>("case", cx);
        let needs = fields.take::<Vec<At<Need>>>("needs", cx);
        let catches = fields.take::<OneOrMany<At<String>>>("catches", cx);
        let mut vars = Vars::default();
        for (key, value, _) in fields.rest() {
            vars.0.insert(key, value.clone());
        }
        let name = name?;
        kebab(&name.value, name.at.line, "row name", cx);
        vars.set("case", &name.value);
        let catches = catches?.0;
        for mutant in &catches {
            known_mutant(&mutant.value, mutant.at.line, cx);
        }
        Some(Row {
            line: node.line,
            name: name.value,
            needs: needs?,
            catches: catches.into_iter().map(|m| m.value).collect(),
            vars,
        })
    }

    fn cases(&self, head: Head, cx: &mut Cx) -> Vec<Arc<Case>> {
        let scenario = Arc::new(head.scenario);
        let rows: Vec<Option<Row>> = match head.rows {
            Some(rows) => rows.into_iter().map(Some).collect(),
            None => vec![None],
        };
        let mut cases = Vec::new();
        for row in rows {
            let (name, own, catches, vars) = match row {
                Some(r) => (Some(r.name), r.needs, r.catches, r.vars),
                None => (None, Vec::new(), Vec::new(), Vars::default()),
            };
            let needs = head.needs.iter().chain(&own);
            let mut needs: Vec<Need> = needs.map(|n| n.value.clone()).collect();
            let by_limit = needs.iter().any(Need::is_depth_limit).then(|| ByLimit {
                file: cx.file.clone(),
                vars: vars.clone(),
                steps: head.steps.clone(),
            });
            let before = cx.errors.len();
            cx.vars = vars;
            if by_limit.is_some() {
                cx.vars.set(MAX_DEPTH, SOME_LIMIT);
            }
            let steps = Vec::<Step>::decode(&head.steps, cx);
            let backing = head.backing.as_ref().map(|b| OwnBacking::decode(b, cx));
            cx.vars = Vars::default();
            let (Some(steps), Some(backing)) = (steps, backing.map_or(Some(None), |b| b.map(Some)))
            else {
                // The next row would say much the same again.
                if cx.errors.len() > before {
                    break;
                }
                continue;
            };
            if steps.is_empty() {
                cx.expected("at least one step", &head.steps);
            }
            whole::misplaced(&steps, true, cx);
            match &backing {
                Some(backing) => needs.extend(whole::needs_of(backing)),
                None => whole::needs_backing(&steps, cx),
            }
            if whole::copies_home(&steps) {
                needs.push(Need {
                    negated: false,
                    kind: NeedKind::Capability(Capability::HomeHoldsAll),
                });
            }
            cases.push(Arc::new(Case {
                scenario: scenario.clone(),
                name,
                needs,
                catches,
                backing,
                steps: steps.into(),
                by_limit: by_limit.map(Arc::new),
            }));
        }
        cases
    }
}

fn kebab(name: &str, line: u32, what: &str, cx: &mut Cx) {
    let good = !name.is_empty()
        && name.split('-').all(|part| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        });
    if !good {
        cx.wrong(
            line,
            format!("expected a {what} in kebab-case (a-z, 0-9, single `-`), found `{name}`"),
        );
    }
}

fn known_mutant(name: &str, line: u32, cx: &mut Cx) {
    if mutant::find(name).is_none() {
        let known: Vec<&str> = mutant::ALL.iter().map(|m| m.name).collect();
        cx.wrong(line, unknown("mutant", name, &known));
    }
}

/// Words that parse from text, with the parser's own message.
macro_rules! from_str_parts {
    ($($t:ty),*) => { $(
        impl Part for $t {
            fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
                let text = cx.text(node, "text")?;
                match text.parse() {
                    Ok(value) => Some(value),
                    Err(message) => {
                        let message: String = message;
                        cx.wrong(node.line, message);
                        None
                    }
                }
            }
            fn schema(g: &mut SchemaGenerator) -> schemars::Schema {
                String::schema(g)
            }
        }
    )* };
}
from_str_parts!(Level, Need);
