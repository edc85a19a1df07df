//! `graphtest clean`.

use anyhow::Context;

use super::print;
use crate::graphtest::run::Status;
use crate::lab::{clean, state_dir};

pub(super) fn main() -> anyhow::Result<Status> {
    let state = state_dir().context("cannot find the state directory")?;
    let cleaned = clean(&state).with_context(|| format!("cannot read {}", state.display()))?;
    let mut text = String::new();
    for dir in &cleaned.given_back {
        text.push_str(&format!("given back: {dir}\n"));
    }
    for left in &cleaned.left {
        text.push_str(&format!("left: {left}\n"));
    }
    if cleaned.running > 0 {
        text.push_str(&format!("{} still running, left alone\n", cleaned.running));
    }
    if text.is_empty() {
        text.push_str("nothing to give back\n");
    }
    print(&text)?;
    Ok(if cleaned.left.is_empty() {
        Status::Good
    } else {
        Status::Left
    })
}
