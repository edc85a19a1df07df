//! What one driver exports, every other shows.

use std::path::Path;
use std::sync::Arc;

use super::archives::{Archive, Chunked};
use super::call::{Done, Fail};
use super::differ::archived;
use super::world::World;
use crate::graphdriver::{CreateOpts, Driver, Error, Held, ProtoDriver};
use crate::graphtest::step::ExportStep;
use crate::graphtest::target::{Target, built_in};
use crate::sys::remove::remove_tree;
use crate::tree::{Compare, ScanOptions, Tree, compare, scan};

impl World<'_> {
    /// Hands the chain of a layer, diff by diff, to every built-in driver that runs here.
    pub fn export(&mut self, s: &ExportStep) -> Done {
        let mut chain = vec![s.id.clone()];
        while let Some(parent) = chain.last().and_then(|id| self.layers.parent(id)) {
            chain.push(parent);
        }
        chain.reverse();
        let mut diffs = Vec::new();
        let mut parent: Option<&str> = None;
        for id in &chain {
            diffs.push((id.as_str(), parent, self.whole_diff(id, parent)?));
            parent = Some(id);
        }
        let expected = archived(&self.tree_of(&s.id)?, |_| true);
        let how = Compare {
            ignore_sockets: true,
            ..self.comparison()
        };
        for target in built_in() {
            let home = self.dir.join(format!("export-to-{}", target.name()));
            let Some(found) = receive(target.as_ref(), &home, &diffs, &s.id)? else {
                continue;
            };
            remove_tree(&home).map_err(|e| Fail::new(format!("{}: {e}", home.display())))?;
            let diff = compare(&expected, &archived(&found, |_| true), &how);
            if !diff.is_empty() {
                let heading = format!("{} shows another tree of {}:", target.name(), s.id);
                return Err(Fail::lines(heading, diff.lines()));
            }
        }
        Ok(())
    }
}

/// Applies the diffs on a driver of its own and returns what the last layer shows; nothing where the driver does not run.
fn receive(
    target: &dyn Target,
    home: &Path,
    diffs: &[(&str, Option<&str>, std::path::PathBuf)],
    last: &str,
) -> Done<Option<Tree>> {
    let failed = |what: &str, e: &Error| Fail::new(format!("{what} on {}: {e}", target.name()));
    let driver = match target.init(home, &[]) {
        Ok(driver) => driver,
        Err(e) if e.is_driver_not_supported() => return Ok(None),
        Err(e) => return Err(failed("start", &e)),
    };
    for (id, parent, path) in diffs {
        driver
            .create(id, *parent, &CreateOpts::default())
            .map_err(|e| failed(&format!("create {id}"), &e))?;
        let archive = Archive {
            path: path.clone(),
            effect: None,
        };
        let mut input = Chunked::new(archive.open()?, usize::MAX);
        driver
            .apply_diff(id, *parent, &mut input)
            .map_err(|e| failed(&format!("apply the diff of {id}"), &e))?;
    }
    let tree = show(&driver, last).map_err(|e| failed(&format!("get {last}"), &e));
    // What stays mounted is found when the scenario ends.
    let released = driver.cleanup().map_err(|e| failed("cleanup", &e));
    let tree = tree?;
    released?;
    Ok(Some(tree))
}

fn show(driver: &Arc<dyn Driver>, id: &str) -> Result<Tree, Error> {
    let driver: Arc<dyn ProtoDriver> = driver.clone();
    let layer = Held::get(driver, id)?;
    let tree = scan(layer.root(), &ScanOptions::default()).map_err(|e| Error::io("scan", id, e));
    layer.put()?;
    tree
}
