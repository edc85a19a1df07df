//! What is checked of a scenario as a whole, and the filesystem that it asks for.

use schemars::SchemaGenerator;

use crate::graphtest::lang::{Cx, Fields, Part, object};
use crate::graphtest::needs::{Need, NeedKind};
use crate::graphtest::scenario::OwnBacking;
use crate::graphtest::step::{Action, GuardWord, Step};
use crate::graphtest::yaml::Node;
use crate::lab::Fact;
use crate::tree::op::Size;

/// Whether this process is killed somewhere in these steps.
pub(crate) fn kills(steps: &[Step]) -> bool {
    let killed =
        |step: &Step| matches!(step.action, Action::Kill(_)) || bodies(step).into_iter().any(kills);
    steps.iter().any(killed)
}

/// The steps that a step holds.
fn bodies(step: &Step) -> Vec<&[Step]> {
    match &step.action {
        Action::Repeat(s) => s.body.each.iter().map(|b| &**b).collect(),
        Action::Parallel(s) => s.body.each.iter().map(|b| &**b).collect(),
        Action::Guard(s) => vec![&s.body],
        Action::Dataset(s) => vec![&s.body],
        Action::Restart(s) => vec![&s.then],
        Action::Kill(s) => vec![&s.body, &s.then],
        Action::Full(s) => vec![&s.body, &s.then],
        _ => Vec::new(),
    }
}

/// `home:` names the home before a driver is started on it, so it can only come first.
pub(super) fn misplaced(steps: &[Step], outermost: bool, cx: &mut Cx) {
    for (i, step) in steps.iter().enumerate() {
        if matches!(step.action, Action::Home(_)) && (i > 0 || !outermost) {
            cx.wrong(
                step.at.line,
                "expected `home:` only as the first step of a scenario",
            );
        }
        for body in bodies(step) {
            misplaced(body, false, cx);
        }
    }
}

/// What fills a filesystem, mounts it otherwise or cuts its power is for one that the scenario has to itself.
pub(super) fn needs_backing(steps: &[Step], cx: &mut Cx) {
    for step in steps {
        let limits =
            matches!(&step.action, Action::Guard(guard) if guard.what == GuardWord::Limits);
        if limits
            || matches!(
                step.action,
                Action::ForeignLimit(_)
                    | Action::DefaultSubvolume(_)
                    | Action::ReadOnlySubvolume(_)
                    | Action::Fill(_)
                    | Action::Free(_)
                    | Action::Full(_)
                    | Action::Remount(_)
                    | Action::Sync(_)
                    | Action::CutPower(_)
            )
        {
            let verb = step.action.verb();
            cx.wrong(
                step.at.line,
                format!("expected `backing:` in a scenario that has `{verb}:`, found none"),
            );
        }
        for body in bodies(step) {
            needs_backing(body, cx);
        }
    }
}

/// Whether some step starts again and again from a copy of the driver's home.
pub(super) fn copies_home(steps: &[Step]) -> bool {
    steps.iter().any(|step| {
        matches!(step.action, Action::Kill(_) | Action::Full(_))
            || bodies(step).into_iter().any(copies_home)
    })
}

/// What must be there for a filesystem of a scenario's own.
pub(super) fn needs_of(backing: &OwnBacking) -> impl Iterator<Item = Need> {
    let inodes = backing.inodes.map(|_| Fact::InodeLimit);
    std::iter::once(Fact::OwnBacking)
        .chain(inodes)
        .map(|fact| Need {
            negated: false,
            kind: NeedKind::Fact(fact),
        })
}

impl Part for OwnBacking {
    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        let node = cx.resolve(node);
        let mut fields = Fields::open(&node, cx, "a mapping such as {size: 64M}")?;
        let size = fields.take::<Option<Size>>("size", cx);
        let inodes = fields.take::<Option<u64>>("inodes", cx);
        fields.finish(cx);
        Some(Self {
            size: size?.map(|s| s.0),
            inodes: inodes?,
        })
    }
    fn schema(g: &mut SchemaGenerator) -> schemars::Schema {
        let fields = vec![
            ("size", false, Size::schema(g)),
            ("inodes", false, u64::schema(g)),
        ];
        object("A filesystem of the scenario's own.", fields)
    }
}
