//! The built-in drivers.

use std::sync::LazyLock;

use crate::graphdriver::{InitFunc, Registry};

/// Every built-in driver: one line each.
const BUILT_IN: &[(&str, InitFunc)] = &[];

/// The registry of the built-in drivers. Clone it to add some.
pub fn registry() -> &'static Registry {
    static REGISTRY: LazyLock<Registry> = LazyLock::new(|| {
        let mut registry = Registry::new();
        for (name, init) in BUILT_IN {
            // Names in a constant list that are not unique would be a bug that the test below finds.
            let _ = registry.register(name, init);
        }
        registry
    });
    &REGISTRY
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_registered_once() {
        assert_eq!(registry().names().count(), BUILT_IN.len());
    }
}
