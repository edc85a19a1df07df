//! Calls of the driver whose outcome a step states, and what is said when it is another.

use super::state::HomeState;
use super::world::World;
use crate::graphdriver::{Driver, Error, ErrorClass};
use crate::graphtest::scenario::Location;
use crate::graphtest::step::{ErrorSpec, Expect, Step};
use crate::tree::op::Op;

/// Why a case fails.
#[derive(Debug)]
pub(crate) struct Fail {
    /// The step, or the operation in it; the innermost that is known.
    pub place: Option<(Location, String)>,
    /// What was expected and what was found.
    pub detail: Vec<String>,
    /// Whether it is a call that failed as calls do when there is no room, and not a finding about what a call did.
    pub no_room: bool,
}

/// What a step gives.
pub(crate) type Done<T = ()> = Result<T, Fail>;

/// How many lines of detail a failure has at most.
const MAX_LINES: usize = 12;

impl Fail {
    /// One line.
    pub fn new(line: impl Into<String>) -> Self {
        Self::lines(line, [])
    }

    /// A heading and what belongs to it.
    pub fn lines(heading: impl Into<String>, lines: impl IntoIterator<Item = String>) -> Self {
        let mut detail = vec![heading.into()];
        let mut more = 0;
        for line in lines {
            if detail.len() < MAX_LINES {
                detail.push(format!("  {line}"));
            } else {
                more += 1;
            }
        }
        if more > 0 {
            detail.push(format!("  ... and {more} more"));
        }
        Self {
            place: None,
            detail,
            no_room: false,
        }
    }

    /// The same for a call of the driver. That the disk is full is no fault of what was asked for, so the error must not say so;
    /// a program that a driver runs gives a text instead of an errno.
    pub fn of_call(mut self, e: &Error) -> Self {
        self.no_room = matches!(e.class(), ErrorClass::Other | ErrorClass::Unclassified);
        self
    }

    /// The same, at a place unless a more exact one is known.
    pub fn or_at(mut self, place: Option<(Location, String)>) -> Self {
        self.place = self.place.or(place);
        self
    }

    /// The same, in a step.
    pub fn in_step(self, step: &Step) -> Self {
        self.or_at(Some((step.at.clone(), step.text.clone())))
    }

    /// The same, in an operation of a step.
    pub fn in_op(self, at: &Location, op: &Op) -> Self {
        let text = format!("{}: {}", op.verb(), op.path());
        self.or_at(Some((at.clone(), text)))
    }

    /// The same with words before its first line.
    pub fn context(mut self, words: &str) -> Self {
        if let Some(first) = self.detail.first_mut() {
            *first = format!("{words}: {first}");
        }
        self
    }
}

/// Words for a driver's error: its class and its text.
pub(crate) fn describe(e: &Error) -> String {
    format!("{e} ({})", e.class().name())
}

fn names(specs: &[ErrorSpec]) -> String {
    let names: Vec<&str> = specs.iter().map(|s| s.name()).collect();
    names.join(" or ")
}

impl Expect {
    /// Whether the call may fail at all.
    pub(super) fn can_fail(&self) -> bool {
        !self.fails.is_empty() || !self.may_fail.is_empty()
    }

    /// Judges what came of a call: `Some` is success, `None` a failure as stated.
    pub(super) fn judge<T>(&self, what: &str, result: Result<T, Error>) -> Done<Option<T>> {
        let e = match result {
            Ok(_) if !self.fails.is_empty() => {
                return Err(Fail::new(format!(
                    "{what}: expected an error ({}), it succeeded",
                    names(&self.fails)
                )));
            }
            Ok(value) => return Ok(Some(value)),
            Err(e) => e,
        };
        let covered = |specs: &[ErrorSpec]| specs.iter().any(|s| s.covers(e.class()));
        if !covered(&self.fails) && !covered(&self.may_fail) {
            let expected = match (self.fails.as_slice(), self.may_fail.as_slice()) {
                ([], []) => "success".to_string(),
                ([], may) => format!("success, or an error ({})", names(may)),
                (fails, _) => format!("an error ({})", names(fails)),
            };
            let fail = Fail::new(format!(
                "{what}: expected {expected}, found: {}",
                describe(&e)
            ));
            return Err(fail.of_call(&e));
        }
        let text = e.to_string();
        match self.says.iter().find(|s| !text.contains(s.as_str())) {
            Some(words) => Err(Fail::new(format!(
                "{what}: expected the error to say {words:?}, found: {text}"
            ))),
            None => Ok(None),
        }
    }
}

impl World<'_> {
    /// A call that must succeed.
    pub fn must<T>(
        &self,
        what: &str,
        call: impl FnOnce(&dyn Driver) -> Result<T, Error>,
    ) -> Done<T> {
        let driver = self.driver()?;
        call(&*driver).map_err(|e| {
            let fail = Fail::new(format!("{what}: expected success, found: {}", describe(&e)));
            fail.of_call(&e)
        })
    }

    /// A call that a step states the outcome of. When it fails as stated, the driver's home must be as it was.
    pub fn call<T>(
        &self,
        expect: &Expect,
        what: &str,
        call: impl FnOnce(&dyn Driver) -> Result<T, Error>,
    ) -> Done<Option<T>> {
        // While other threads work, the home changes without this call.
        let watched = expect.can_fail() && !self.concurrent;
        let before = watched.then(|| HomeState::of(&self.home)).transpose()?;
        let driver = self.driver()?;
        let done = expect.judge(what, call(&*driver))?;
        if let (None, Some(before)) = (&done, before) {
            before
                .compare(&self.home)
                .map_err(|f| f.context(&format!("{what} failed, as stated, but did harm")))?;
        }
        Ok(done)
    }
}
