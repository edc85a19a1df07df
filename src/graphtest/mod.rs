//! The framework: scenario language, loading, selection, running, mutants, events, reports.

mod builtin;
pub mod condition;
pub mod engine;
pub mod event;
pub mod filter;
#[cfg(feature = "vm")]
pub mod guest;
pub mod harness;
pub mod hint;
pub mod known;
mod lang;
mod limits;
pub mod load;
pub mod matrix;
pub mod mutant;
pub mod needs;
pub mod outcome;
#[cfg(feature = "plugin")]
mod plugin;
pub mod report;
pub mod requirement;
pub mod run;
pub mod scenario;
pub mod shard;
pub mod step;
pub mod target;
mod vars;
mod wire;
mod yaml;

pub use engine::{Keep, RunLimits, run_case};
pub use event::Outcome;
pub use lang::{At, OneOrMany, Turns};
pub use load::{Library, LoadError, schema};
pub use outcome::{CaseReport, Failure, Progress};
#[cfg(feature = "plugin")]
pub use plugin::PluginTarget;
pub use requirement::Requirement;
pub use scenario::{Case, Level, Location, Scenario, ScenarioId, Suite};
pub use target::{Factory, Target};
pub use wire::Wire;
pub use yaml::Located;
