//! The framework: scenario language, loading, selection, running, mutants, events, reports.
