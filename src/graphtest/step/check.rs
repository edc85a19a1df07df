//! What is done to a step once all its keys are known.

use super::{Action, Expect, InStep, OverlayOfStep};
use crate::graphtest::lang::{self, Cx};

/// The most turns a loop may have.
const MAX_TURNS: u64 = 100_000;

/// Decodes the bodies of loops, whose variables are known only now.
pub(super) fn unroll_body(action: &mut Action, line: u32, cx: &mut Cx) {
    let turns = match action {
        Action::Chain(s) => u64::from(s.length),
        Action::Repeat(s) => u64::from(s.times),
        Action::Parallel(s) => u64::from(s.threads) * u64::from(s.times.unwrap_or(1)),
        _ => return,
    };
    if turns == 0 || turns > MAX_TURNS {
        cx.wrong(
            line,
            format!("expected between 1 and {MAX_TURNS} turns, found {turns}"),
        );
        return;
    }
    let turns = turns as usize;
    match action {
        Action::Chain(s) => lang::unroll(&mut s.each, turns, cx, |i, v| v.set("i", i + 1)),
        Action::Repeat(s) => {
            let index = s.index.clone().unwrap_or_else(|| "i".to_string());
            lang::unroll(&mut s.body, turns, cx, |i, v| v.set(&index, i + 1));
        }
        Action::Parallel(s) => {
            let times = s.times.unwrap_or(1) as usize;
            lang::unroll(&mut s.body, turns, cx, |i, v| {
                v.set("thread", i / times + 1);
                v.set("i", i % times + 1);
            });
        }
        _ => {}
    }
}

/// What the types cannot say.
pub(super) fn whole(action: &Action, expect: &Expect, line: u32, cx: &mut Cx) {
    if !expect.says.is_empty() && expect.fails.is_empty() && expect.may_fail.is_empty() {
        cx.wrong(
            line,
            "expected `fails:` or `may-fail:` beside `says:`, found neither",
        );
    }
    let one_of = |cx: &mut Cx, names: &str, given: &[bool]| {
        if given.iter().filter(|g| **g).count() != 1 {
            cx.wrong(line, format!("expected exactly one of {names}"));
        }
    };
    match action {
        Action::Archive(s) => one_of(
            cx,
            "entries, raw, fixture",
            &[s.entries.is_some(), s.raw.is_some(), s.fixture.is_some()],
        ),
        Action::Corrupt(s) => one_of(
            cx,
            "truncate, remove, text, twice, from, empty",
            &[
                s.truncate.is_some(),
                s.remove,
                s.text.is_some(),
                s.twice.is_some(),
                s.from.is_some(),
                s.empty,
            ],
        ),
        Action::Select(s) => one_of(
            cx,
            "chooses, fails",
            &[s.chooses.is_some(), !expect.fails.is_empty()],
        ),
        Action::Request(s) => {
            if s.body.is_some() && s.archive.is_some() {
                cx.wrong(line, "expected `body` or `archive`, found both");
            }
            let object = |text: &str| serde_json::from_str::<serde_json::Map<_, _>>(text);
            if let Some(Err(e)) = s.gives.as_deref().map(object) {
                cx.wrong(
                    line,
                    format!("expected an object in JSON after `gives:`: {e}"),
                );
            }
        }
        Action::Tree(s) if s.is.is_some() && !(s.holds.is_empty() && s.lacks.is_empty()) => {
            cx.wrong(
                line,
                "expected `is` alone, found `holds` or `lacks` beside it",
            );
        }
        Action::In(InStep { ops, .. }) | Action::OverlayOf(OverlayOfStep { ops, .. })
            if ops.is_empty() =>
        {
            cx.wrong(
                line,
                "expected at least one operation after `do:`, found none",
            );
        }
        Action::Subvolumes(s) if s.paths.is_empty() => {
            cx.wrong(line, "expected paths after `paths:`, found none");
        }
        Action::Dataset(s)
            if s.snapshot.is_none() && s.child.is_none() && !s.destroyed && s.body.is_empty() =>
        {
            cx.wrong(
                line,
                "expected what is done with the dataset, found nothing",
            );
        }
        Action::Repeat(s) if s.body.each.is_empty() => {
            cx.wrong(line, "expected steps after `do:`, found none");
        }
        Action::Parallel(s) if s.body.each.is_empty() => {
            cx.wrong(line, "expected steps after `do:`, found none");
        }
        _ => {}
    }
}
