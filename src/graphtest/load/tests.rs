use std::collections::BTreeSet;

use rstest::rstest;

use super::*;
use crate::graphtest::Turns;
use crate::graphtest::step::{Action, ErrorSpec};

const HEAD: &str = "\
suite: s
about: x
scenarios:
- id: a
  proves: [LIFE-1]
  level: must
  must: x
  catches: [exists-always]
";

fn load(text: &str) -> Result<Library, Vec<String>> {
    from_texts([("s.yaml".to_string(), text.to_string())])
        .map_err(|e| e.errors.iter().map(ToString::to_string).collect())
}

fn steps(steps: &str) -> Result<Library, Vec<String>> {
    load(&format!("{HEAD}  steps:\n{steps}"))
}

/// The example of the reference is a suite.
#[test]
fn the_reference_example_loads() {
    let readme = include_str!("../../../suites/README.md");
    let start = readme.find("```yaml\nsuite:").unwrap() + "```yaml\n".len();
    let text = &readme[start..];
    let library = load(&text[..text.find("```").unwrap()]).unwrap();
    let case = library.cases().next().unwrap();
    assert_eq!(case.label(), "whiteouts/delete-lower-file");
    assert_eq!(case.steps.len(), 8);
    assert_eq!(case.steps[3].text, "in: top");
}

/// Every verb of the language stands in the reference, and no other.
#[test]
fn the_reference_names_every_verb() {
    let readme = include_str!("../../../suites/README.md");
    let (_, steps) = readme.split_once("## Steps").unwrap();
    let (steps, ops) = steps.split_once("## Operations").unwrap();
    let (ops, _) = ops.split_once("## Archive entries").unwrap();
    let verbs = |section: &str| -> BTreeSet<String> {
        section
            .lines()
            .filter_map(|l| l.strip_prefix("| `")?.split_once(':'))
            .map(|(verb, _)| verb.to_string())
            .collect()
    };
    let all = |list: &[&str]| {
        list.iter()
            .map(ToString::to_string)
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(verbs(steps), all(Action::VERBS));
    assert_eq!(verbs(ops), all(crate::tree::op::Op::VERBS));
}

#[rstest]
#[case::verb("  - crate: x\n", "s.yaml:10: the first key of a step is its verb: ")]
#[case::verb_guess("  - crate: x\n", "did you mean `create`?")]
#[case::key("  - create: x\n    parnt: y\n", "s.yaml:11: expected one of: ")]
#[case::op(
    "  - in: x\n    do: [{fil: a}]\n",
    "s.yaml:11: unknown operation `fil`"
)]
#[case::op_line(
    "  - in: x\n    do:\n    - {file: a}\n    - {symlink: b}\n",
    "s.yaml:13: expected the key `to`, found none"
)]
#[case::op_key(
    "  - in: x\n    do:\n    - file: a\n      mdoe: '1'\n",
    "s.yaml:13: expected one of: "
)]
#[case::mode(
    "  - in: x\n    do: [{dir: d, mode: '9'}]\n",
    "expected a mode as octal text"
)]
#[case::list(
    "  - in: x\n    do: {file: a}\n",
    "s.yaml:11: expected a list, found a mapping that begins with `file`"
)]
#[case::class(
    "  - create: x\n    fails: missing\n",
    "s.yaml:11: expected one of: any, not-supported"
)]
#[case::change(
    "  - changes: x\n    are: [A a]\n",
    "s.yaml:11: expected a change such as `A /a`, `C /d` or `D /x`, found `A a`"
)]
#[case::root("  - changes: x\n    are: [C /]\n", "s.yaml:11: expected a change")]
#[case::pattern(
    "  - tree: x\n    is: [{remove: a}]\n",
    "found the unknown entry `remove`"
)]
#[case::number(
    "  - chain: x\n    length: many\n",
    "s.yaml:11: expected a whole number, found `many`"
)]
#[case::turns(
    "  - repeat: 0\n    do: [{remove: x}]\n",
    "expected between 1 and 100000 turns, found 0"
)]
#[case::variable(
    "  - create: l${n}\n",
    "s.yaml:10: unknown variable `${n}`; there are none here"
)]
#[case::index(
    "  - repeat: 2\n    do:\n    - create: l${j}\n",
    "s.yaml:12: unknown variable `${j}`; here are: i"
)]
#[case::home(
    "  - create: x\n  - home: 'a b'\n",
    "s.yaml:11: expected `home:` only as the first step"
)]
#[case::says(
    "  - create: x\n    says: y\n",
    "expected `fails:` or `may-fail:` beside `says:`"
)]
#[case::archive(
    "  - archive: x\n    entries: [{fyle: a}]\n",
    "found the unknown key `fyle` (did you mean `file`?)"
)]
#[case::source(
    "  - archive: x\n",
    "s.yaml:10: expected exactly one of entries, raw, fixture"
)]
#[case::empty("    []\n", "s.yaml:10: expected at least one step, found a list of 0")]
fn bad_steps_are_located(#[case] text: &str, #[case] message: &str) {
    let errors = steps(text).unwrap_err();
    assert!(
        errors.iter().any(|e| e.contains(message)),
        "{message:?} is not in {errors:#?}"
    );
}

#[rstest]
#[case::no_catches(
    "catches: [exists-always]",
    "catches: []",
    "s.yaml:4: expected `catches:` with at least one mutant"
)]
#[case::id("id: a", "id: A_b", "s.yaml:4: expected a id in kebab-case")]
#[case::level(
    "level: must",
    "level: often",
    "s.yaml:6: expected must, should or may, found `often`"
)]
#[case::proves(
    "proves: [LIFE-1]",
    "proves: []",
    "s.yaml:5: expected at least one requirement"
)]
#[case::need("must: x", "must: x\n  needs: [mknode]", "s.yaml:8: expected one of: ")]
#[case::missing("  must: x\n", "", "s.yaml:4: expected the key `must`, found none")]
#[case::unknown("about: x", "abuot: x", "did you mean `about`?")]
fn bad_headers_are_located(#[case] from: &str, #[case] to: &str, #[case] message: &str) {
    let text = format!("{HEAD}  steps: [{{create: x}}]\n").replace(from, to);
    let errors = load(&text).unwrap_err();
    assert!(
        errors.iter().any(|e| e.contains(message)),
        "{message:?} is not in {errors:#?}"
    );
}

#[test]
fn several_errors_are_said_at_once() {
    let errors =
        steps("  - create: x\n    rw: maybe\n  - get: x\n    time: 3\n  - fly: y\n").unwrap_err();
    let lines: Vec<&str> = errors
        .iter()
        .map(|e| e.split(": ").next().unwrap())
        .collect();
    assert_eq!(lines, ["s.yaml:11", "s.yaml:13", "s.yaml:14"]);
}

#[test]
fn an_id_twice_is_refused_and_so_is_a_suite_twice() {
    let one = format!("{HEAD}  steps: [{{create: x}}]\n");
    let again = one.split_once("scenarios:\n").unwrap().1.to_string();
    let errors = load(&format!("{one}{again}")).unwrap_err();
    assert_eq!(
        errors,
        ["s.yaml:10: expected each id once, found `s/a` again (first on line 4)"]
    );
    let two = from_texts([("a.yaml".into(), one.clone()), ("b.yaml".into(), one)]).unwrap_err();
    assert_eq!(
        two.to_string(),
        "b.yaml:1: expected a suite name of its own, found `s`, which a.yaml has"
    );
}

#[test]
fn rows_fill_in_steps() {
    let text = format!(
        "{HEAD}  needs: [mknod]
  cases:
  - {{case: two, depth: 2, why: []}}
  - {{case: far, depth: 3, why: too-deep, needs: ['depth:3'], catches: [whiteout-lost]}}
  steps:
  - chain: l
    length: ${{depth}}
    each: [{{file: 'm${{i}}', text: '${{i-1}}'}}]
  - create: over
    parent: l${{depth}}
    fails: ${{why}}
"
    );
    let library = load(&text).unwrap();
    let cases: Vec<_> = library.cases().collect();
    assert_eq!(cases[0].label(), "s/a#two");
    assert_eq!(cases[1].needs.len(), 2);
    assert_eq!(cases[1].catches, ["whiteout-lost"]);
    let Action::Chain(chain) = &cases[1].steps[0].action else {
        panic!("not a chain")
    };
    let each: &Turns<_> = &chain.each;
    assert_eq!(each.each.len(), 3);
    assert_eq!(each.each[2][0].value.path().to_string(), "m3");
    assert_eq!(each.each[2][0].at.line, 16);
    assert!(cases[0].steps[1].expect.fails.is_empty());
    let ErrorSpec::Class(class) = cases[1].steps[1].expect.fails[0] else {
        panic!("not a class")
    };
    assert_eq!(class.name(), "too-deep");
}

#[rstest]
#[case("[{case: a, x: 1}, {case: b, y: 1}]", "found a difference in: x, y")]
#[case("[{case: a}, {case: a}]", "expected each row once, found `a` again")]
#[case("[{x: 1}]", "expected the key `case`, found none")]
#[case("[]", "expected at least one row")]
fn bad_rows_are_located(#[case] rows: &str, #[case] message: &str) {
    let errors = load(&format!(
        "{HEAD}  cases: {rows}\n  steps: [{{create: x}}]\n"
    ))
    .unwrap_err();
    assert!(
        errors
            .iter()
            .any(|e| e.starts_with("s.yaml:9: ") && e.contains(message)),
        "{message:?} is not in {errors:#?}"
    );
}

#[test]
fn a_backing_of_its_own_may_differ_by_row() {
    let rows = "cases: [{case: a, n: 1k}, {case: b, n: 2M}]";
    let text = format!(
        "{HEAD}  {rows}\n  backing: {{size: '${{n}}', inodes: 70}}\n  steps: [{{fill: space}}]\n"
    );
    let library = load(&text).unwrap();
    let backings: Vec<_> = library.cases().map(|c| c.backing.unwrap()).collect();
    assert_eq!(
        backings.iter().map(|b| b.size).collect::<Vec<_>>(),
        [Some(1024), Some(2 << 20)]
    );
    assert!(backings.iter().all(|b| b.inodes == Some(70)));
    let without = text.replace("  backing: {", "  tags: [a]\n  # {");
    let errors = load(&without).unwrap_err();
    assert!(
        errors[0].contains("expected `backing:` in a scenario that has `fill:`"),
        "{errors:?}"
    );
    let errors = load(&text.replace("inodes: 70", "nodes: 70")).unwrap_err();
    assert!(errors[0].contains("unknown key `nodes`"), "{errors:?}");
}

#[test]
fn parallel_threads_have_their_numbers() {
    let library =
        steps("  - parallel: 2\n    times: 3\n    do: [{create: 'l${thread}-${i}'}]\n").unwrap();
    let case = library.cases().next().unwrap();
    let Action::Parallel(p) = &case.steps[0].action else {
        panic!("not parallel")
    };
    let texts: Vec<&str> = p.body.each.iter().map(|b| b[0].text.as_str()).collect();
    assert_eq!(
        texts,
        [
            "create: l1-1",
            "create: l1-2",
            "create: l1-3",
            "create: l2-1",
            "create: l2-2",
            "create: l2-3"
        ]
    );
}

#[test]
fn the_schema_describes_every_verb() {
    let schema = schema();
    let steps = schema["$defs"]["Step"]["oneOf"].as_array().unwrap();
    assert_eq!(steps.len(), Action::VERBS.len());
    let text = schema.to_string();
    assert!(
        text.contains("#/$defs/Step") && text.contains("#/$defs/FileOp"),
        "{text}"
    );
}

#[test]
fn a_missing_file_is_an_error_of_its_own() {
    let e = load_files(&["/nonexistent/x.yaml".into()]).unwrap_err();
    assert!(
        e.to_string()
            .starts_with("/nonexistent/x.yaml:1: expected a file that can be read"),
        "{e}"
    );
}

#[test]
fn the_limit_is_filled_in_when_it_is_known() {
    let steps = "  steps:\n  - chain: l\n    length: ${max-depth-1}\n";
    let library = load(&format!("{HEAD}  needs: [depth-limit]\n{steps}")).unwrap();
    let case = library.cases().next().unwrap();
    let by_limit = case.by_limit.as_ref().unwrap();
    let Action::Chain(chain) = &by_limit.steps(30).unwrap()[0].action else {
        panic!("not a chain")
    };
    assert_eq!(chain.length, 29);
    let e = load(&format!("{HEAD}{steps}")).unwrap_err();
    let message = "unknown variable `${max-depth-1}`; there are none here";
    assert!(e[0].contains(message), "{e:?}");
}

#[test]
fn a_limit_that_a_step_cannot_take_is_told() {
    let steps = "  steps:\n  - repeat: ${max-depth-1}\n    do: [{create: x}]\n";
    let library = load(&format!("{HEAD}  needs: [depth-limit]\n{steps}")).unwrap();
    let by_limit = library.cases().next().unwrap().by_limit.clone().unwrap();
    let e = by_limit.steps(1).unwrap_err();
    assert_eq!(
        e.errors[0].to_string(),
        "s.yaml:11: expected between 1 and 100000 turns, found 0"
    );
}
