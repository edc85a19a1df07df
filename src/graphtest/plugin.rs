//! A plugin in another process as a target.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::target::Target;
use super::wire::Wire;
use crate::graphdriver::{Driver, InitOptions, Result};
use crate::remote::plugin::Plugin;

/// A Docker graph-driver plugin; its homes must be directories that it sees where we see them.
#[derive(Debug)]
pub struct PluginTarget {
    plugin: Plugin,
    name: String,
    layout: Option<String>,
}

impl PluginTarget {
    /// A target under the name that the person gave it, with the layout of a built-in driver where the person says so.
    pub fn new(name: impl Into<String>, plugin: Plugin, layout: Option<String>) -> Self {
        Self {
            plugin,
            name: name.into(),
            layout,
        }
    }
}

impl Target for PluginTarget {
    fn name(&self) -> &str {
        &self.name
    }

    fn init(&self, home: &Path, options: &[String]) -> Result<Arc<dyn Driver>> {
        self.plugin.start(home, &InitOptions::new(options))
    }

    fn layout(&self) -> Option<&str> {
        self.layout.as_deref()
    }

    fn elsewhere(&self) -> bool {
        true
    }

    fn dial(&self) -> Option<io::Result<Wire>> {
        let wire = |socket| Wire {
            socket,
            limit: self.plugin.limit(),
        };
        Some(self.plugin.dial().map(wire))
    }
}
