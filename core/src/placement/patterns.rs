//! The patterns of `Conflicts=`, each known once in the whole cluster however many units name it.

use std::collections::{BTreeMap, BTreeSet};

use crate::unit::Glob;

/// A pattern that some unit names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PatternId(u32);

#[derive(Debug, Default)]
pub(super) struct Patterns {
    next: u32,
    ids: BTreeMap<Glob, PatternId>,
    patterns: BTreeMap<PatternId, Pattern>,
    /// Patterns with wildcards: the only ones that must be tried one by one.
    wild: BTreeSet<PatternId>,
    /// Patterns without, by the one name that they match.
    literal: BTreeMap<Box<str>, PatternId>,
}

#[derive(Debug)]
struct Pattern {
    glob: Glob,
    named_by: usize,
}

impl Patterns {
    /// The pattern's id, and whether it is new.
    pub(super) fn acquire(&mut self, glob: &Glob) -> (PatternId, bool) {
        if let Some(id) = self.ids.get(glob) {
            if let Some(pattern) = self.patterns.get_mut(id) {
                pattern.named_by += 1;
            }
            return (*id, false);
        }
        let id = PatternId(self.next);
        self.next += 1;
        self.ids.insert(glob.clone(), id);
        self.patterns.insert(id, Pattern { glob: glob.clone(), named_by: 1 });
        if glob.is_literal() {
            self.literal.insert(glob.as_str().into(), id);
        } else {
            self.wild.insert(id);
        }
        (id, true)
    }

    /// One unit less names the pattern. Gives the pattern where none is left.
    pub(super) fn release(&mut self, id: PatternId) -> Option<Glob> {
        let pattern = self.patterns.get_mut(&id)?;
        pattern.named_by -= 1;
        if pattern.named_by > 0 {
            return None;
        }
        let glob = self.patterns.remove(&id)?.glob;
        self.ids.remove(&glob);
        self.wild.remove(&id);
        self.literal.remove(glob.as_str());
        Some(glob)
    }

    /// The patterns that match this unit name.
    pub(super) fn matching(&self, name: &str) -> BTreeSet<PatternId> {
        let wild = self.wild.iter().copied().filter(|id| self.matches(*id, name));
        wild.chain(self.literal.get(name).copied()).collect()
    }

    fn matches(&self, id: PatternId, name: &str) -> bool {
        self.patterns.get(&id).is_some_and(|pattern| pattern.glob.matches(name))
    }

    pub(super) fn glob(&self, id: PatternId) -> Option<&Glob> {
        self.patterns.get(&id).map(|pattern| &pattern.glob)
    }
}

/// What all names begin with that the pattern matches.
pub(super) fn prefix(pattern: &Glob) -> &str {
    pattern.as_str().split(['*', '?', '[', '\\']).next().unwrap_or_default()
}
