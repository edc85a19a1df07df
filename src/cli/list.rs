//! `graphtest list`.

use clap::{Args as ClapArgs, ValueEnum};
use serde_json::{Value, json};

use super::print;
use super::select::{self, ScenarioArgs};
use crate::graphdriver::Capability;
use crate::graphtest::mutant;
use crate::graphtest::run::Status;
use crate::graphtest::target::built_in;
use crate::lab::{Backing, Fact};

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// What to list
    #[arg(value_enum)]
    what: What,
    #[command(flatten)]
    scenarios: ScenarioArgs,
    /// How
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum What {
    /// The built-in drivers
    Drivers,
    /// What a driver's home can live on
    Backings,
    /// The kernels that guests can have
    Kernels,
    /// The scenarios; filters, levels and tags select as in `run`
    Scenarios,
    /// The sentences of the contract
    Requirements,
    /// What drivers may claim and places may have
    Capabilities,
    /// The deliberate bugs that test the suites
    Mutants,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// One line each
    Text,
    /// A JSON array of objects
    Json,
}

pub(super) fn main(args: &Args) -> anyhow::Result<Status> {
    let items = items(args)?;
    match args.format {
        Format::Json => print(&(serde_json::to_string_pretty(&items)? + "\n")),
        Format::Text => print(&items.iter().map(line).collect::<String>()),
    }
}

/// The name, padded, and whatever follows it.
fn line(item: &Value) -> String {
    let text = |key: &str| item[key].as_str().unwrap_or_default();
    let (name, about) = (text("name"), text("about"));
    let level = if item["level"].is_null() {
        String::new()
    } else {
        format!("{:<7}", text("level"))
    };
    if about.is_empty() {
        format!("{name}\n")
    } else {
        format!("{name:<40} {level}{about}\n")
    }
}

fn items(args: &Args) -> anyhow::Result<Vec<Value>> {
    Ok(match args.what {
        What::Drivers => built_in()
            .iter()
            .map(|t| json!({"name": t.name()}))
            .collect(),
        What::Backings => Backing::all()
            .iter()
            .map(|b| {
                let missing = b.not_installed();
                let about = match &missing {
                    None => b.about().to_string(),
                    Some(why) => format!("{} ({why})", b.about()),
                };
                json!({"name": b.to_string(), "about": about, "missing": missing})
            })
            .collect(),
        What::Kernels => super::vm::list()?,
        What::Scenarios => scenarios(args)?,
        What::Requirements => {
            let library = select::library(&[])?;
            let one = |r: &crate::graphtest::Requirement| json!({"name": r.id, "about": r.text, "why": r.why, "from": r.from});
            library.requirements.values().map(|r| one(r)).collect()
        }
        What::Capabilities => {
            let claims = Capability::ALL
                .iter()
                .map(|c| json!({"name": c.name(), "about": c.about(), "of": "driver"}));
            let facts = Fact::ALL
                .iter()
                .map(|f| json!({"name": f.name(), "about": f.about(), "of": "place"}));
            claims.chain(facts).collect()
        }
        What::Mutants => mutant::ALL
            .iter()
            .map(|m| json!({"name": m.name, "about": m.about}))
            .collect(),
    })
}

fn scenarios(args: &Args) -> anyhow::Result<Vec<Value>> {
    let library = select::library(&args.scenarios.suite)?;
    let cases = select::cases(&library, &args.scenarios)?;
    let one = |case: &crate::graphtest::Case| {
        let s = &case.scenario;
        json!({
            "name": case.label(), "id": s.id.to_string(), "case": case.name, "level": s.level.name(), "about": s.must,
            "requirements": s.proves, "tags": s.tags, "from": s.from, "catches": s.catches, "at": s.at.to_string(),
            "needs": case.needs.iter().map(ToString::to_string).collect::<Vec<_>>(),
        })
    };
    Ok(cases.iter().map(|c| one(c)).collect())
}
