//! A map from unit names.

#![expect(
    clippy::disallowed_types,
    reason = "only looked up in, never iterated; and its hasher has a fixed seed"
)]

use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;

use foldhash::fast::FixedState;

use crate::unit::UnitName;

/// A map from unit names, in the order of the names where it is iterated.
///
/// A decision on one unit looks its name up some ten times, and comparing names all the way down a `BTreeMap` would be
/// half of its cost.
#[derive(Debug)]
pub(crate) struct ByName<V> {
    names: BTreeSet<UnitName>,
    values: HashMap<UnitName, V, FixedState>,
}

impl<V> Default for ByName<V> {
    fn default() -> Self {
        Self { names: BTreeSet::new(), values: HashMap::default() }
    }
}

impl<V> ByName<V> {
    pub(crate) fn get(&self, name: &UnitName) -> Option<&V> {
        self.values.get(name)
    }

    pub(crate) fn get_mut(&mut self, name: &UnitName) -> Option<&mut V> {
        self.values.get_mut(name)
    }

    pub(crate) fn contains_key(&self, name: &UnitName) -> bool {
        self.values.contains_key(name)
    }

    pub(crate) fn insert(&mut self, name: UnitName, value: V) {
        if self.values.insert(name.clone(), value).is_none() {
            self.names.insert(name);
        }
    }

    pub(crate) fn remove(&mut self, name: &UnitName) -> Option<V> {
        let value = self.values.remove(name)?;
        self.names.remove(name);
        Some(value)
    }

    pub(crate) fn len(&self) -> usize {
        self.names.len()
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &UnitName> {
        self.names.iter()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&UnitName, &V)> {
        self.names.iter().filter_map(|name| Some((name, self.values.get(name)?)))
    }

    /// The names that begin so.
    pub(crate) fn starting_with(&self, prefix: &str) -> impl Iterator<Item = &UnitName> {
        let names = self.names.range::<str, _>((Bound::Included(prefix), Bound::Unbounded));
        names.take_while(move |name| name.as_str().starts_with(prefix))
    }
}
