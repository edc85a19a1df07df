//! `graphtest matrix`.

use std::path::PathBuf;

use clap::{Args as ClapArgs, ValueEnum};
use serde_json::{Value, json};

use super::select::{self, CellArgs};
use super::{print, usage};
use crate::graphtest::run::{Cell, Status, shell_words};
use crate::graphtest::shard::Shard;

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// A matrix file, such as ci/host.yaml [default: the cells of a plain run]
    #[arg(value_name = "FILE", conflicts_with = "matrix")]
    file: Option<PathBuf>,
    #[command(flatten)]
    cells: CellArgs,
    /// github: one line for `strategy.matrix`; json: a list
    #[arg(long, value_enum, default_value = "json")]
    format: Format,
    /// In how many jobs [default: one for each cell]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    shards: Option<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Github,
    Json,
}

pub(super) fn main(mut args: Args) -> anyhow::Result<Status> {
    if args.file.is_some() {
        args.cells.matrix = args.file.take();
    }
    let library = select::library(&[])?;
    let cases: Vec<_> = library.cases().cloned().collect();
    let cells = select::cells(&args.cells, &library, &cases, None)?;
    let of = args.shards.map_or(cells.len(), usize::from);
    let jobs = (1..=of)
        .map(|index| job(&args.cells, &cells, Shard { index, of }))
        .collect::<anyhow::Result<Vec<Value>>>()?;
    print(&match args.format {
        Format::Github => format!("{}\n", json!({ "include": jobs })),
        Format::Json => format!("{}\n", serde_json::to_string_pretty(&jobs)?),
    })
}

/// One job: its name, the arguments of `run` that are its part, and the cells in it.
fn job(args: &CellArgs, cells: &[Cell], shard: Shard) -> anyhow::Result<Value> {
    let (mine, part) = shard.take(cells.to_vec()).map_err(usage)?;
    let mut words: Vec<String> = Vec::new();
    let list = |names: Vec<String>| names.join(",");
    if let Some(file) = &args.matrix {
        words.extend(["--matrix".to_string(), file.display().to_string()]);
    }
    if !args.target.is_empty() {
        words.extend(["--target".to_string(), list(args.target.clone())]);
    }
    if !args.on.is_empty() {
        let on = args.on.iter().map(ToString::to_string).collect();
        words.extend(["--on".to_string(), list(on)]);
    }
    let shard = format!("{}/{}", part.index, part.of);
    words.extend(["--shard".to_string(), shard.clone()]);
    let cells: Vec<Value> = mine
        .iter()
        .map(|c| json!({ "target": c.target.name(), "backing": c.backing.to_string() }))
        .collect();
    let name = match &mine[..] {
        [only] => only.name(),
        _ => format!("part {} of {}", part.index, part.of),
    };
    Ok(json!({
        "name": name,
        "shard": shard,
        "args": shell_words(&words),
        "cells": cells,
    }))
}
