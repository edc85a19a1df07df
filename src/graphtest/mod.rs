//! The framework: scenario language, loading, selection, running, mutants, events, reports.

pub mod event;
pub mod report;
