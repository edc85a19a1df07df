//! Following what really happened.

use super::{Known, Model, Prediction};
use crate::sys::errno;
use crate::tree::build::{DirTimes, Failure, Outcome};
use crate::tree::op::Op;

/// A prediction that reality did not keep.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("operation {}: {predicted} expected, {found}", index + 1)]
pub struct Disagreement {
    /// The operation's place in the list, from 0.
    pub index: usize,
    /// What the model says.
    pub predicted: String,
    /// What happened.
    pub found: String,
}

impl Model {
    /// Carries out a list of operations of which the outcomes are known, and makes the model what the tree must now be: what the
    /// model leaves open, or the operation itself (`may-fail:`, `fails:`), is taken as it happened; a failed operation changes nothing but
    /// what the same failure changes here.
    ///
    /// Returns where the outcomes are not what the model says.
    pub fn follow(&mut self, ops: &[Op], outcomes: &[Outcome]) -> Vec<Disagreement> {
        let mut times = DirTimes::default();
        let mut disagreements = Vec::new();
        for (index, (op, outcome)) in ops.iter().zip(outcomes).enumerate() {
            let said = match outcome {
                Ok(()) => {
                    times.follow(op);
                    self.follow_success(op)
                }
                Err(failure) => self.follow_failure(op, failure),
            };
            if let Err((predicted, found)) = said {
                disagreements.push(Disagreement {
                    index,
                    predicted,
                    found,
                });
            }
        }
        self.set_dir_times(&times);
        disagreements
    }

    fn follow_success(&mut self, op: &Op) -> Result<(), (String, String)> {
        self.part_links(op);
        self.open_times_above(op);
        let mut prediction = self.step(op, Known::Nothing);
        if matches!(prediction, Prediction::Unpredicted(_)) {
            prediction = self.step(op, Known::Success);
        }
        match prediction {
            Prediction::Fails(e) => Err((errno::name(e), "it succeeded".to_string())),
            Prediction::Done | Prediction::Unpredicted(_) => Ok(()),
        }
    }

    fn follow_failure(&mut self, op: &Op, failure: &Failure) -> Result<(), (String, String)> {
        let Failure::Errno(found) = failure else {
            // Judged by what the operation says; the model has nothing to add.
            return Ok(());
        };
        let before = self.clone();
        let prediction = self.step(op, Known::Nothing);
        if prediction == Prediction::Fails(*found) {
            return Ok(());
        }
        // The doubt may have passed, and the failure be a later one of the same operation, such as the chmod of a new file.
        let doubtful = matches!(prediction, Prediction::Unpredicted(_));
        if doubtful && self.step(op, Known::DoubtsPassed) == Prediction::Fails(*found) {
            return Ok(());
        }
        *self = before;
        let allowed = op.fails().iter().chain(op.may_fail());
        let stated = allowed
            .into_iter()
            .any(|name| name == "any" || errno::from_name(name) == Some(*found));
        match prediction {
            _ if stated => Ok(()),
            Prediction::Unpredicted(_) => Ok(()),
            Prediction::Done => Err((
                "success".to_string(),
                format!("found: {}", errno::name(*found)),
            )),
            Prediction::Fails(e) => {
                Err((errno::name(e), format!("found: {}", errno::name(*found))))
            }
        }
    }
}
