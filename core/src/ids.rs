//! Identities and counters: one type each, so that none is taken for another.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::planted::{self, Fault};

/// Why a text is no 128-bit id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an id: 32 hexadecimal digits are expected (hyphens may stand between them)")]
pub struct IdError {
    text: String,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(u128);

        impl $name {
            /// The id with these 128 bits.
            pub const fn new(bits: u128) -> Self {
                Self(bits)
            }

            /// The 128 bits.
            pub const fn bits(self) -> u128 {
                self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let digits: String = text.chars().filter(|c| *c != '-').collect();
                let error = || IdError { text: text.to_owned() };
                if digits.len() != 32 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
                    return Err(error());
                }
                u128::from_str_radix(&digits, 16).map(Self).map_err(|_| error())
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;

            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.to_string()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }
    };
}

id! {
    /// A machine, as `/etc/machine-id` names it.
    MachineId
}
id! {
    /// One boot of a machine, as `/proc/sys/kernel/random/boot_id` names it.
    BootId
}
id! {
    /// A cluster: made once, when its store is made.
    ClusterId
}
id! {
    /// One command of one client, chosen by the client: a repetition under the same id finds the first one's result.
    CommandId
}
id! {
    /// An agent's own random key, kept in `/run`: tells apart machines that were cloned with their machine id.
    AgentKey
}

id! {
    /// What the agent that dials for a stream shows: random, and told to that agent alone.
    StreamKey
}

impl MachineId {
    /// The first eight digits, as fleet shows machines.
    pub fn short(self) -> String {
        format!("{:08x}", self.0 >> 96)
    }
}

/// A leader's term of office. Every leadership has a higher one than all before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Term(pub u64);

impl Term {
    /// The term that follows. None follows the last one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// What a restored backup goes on above, where this is the last term that it knows: with room for a million terms that
    /// were taken since, of which machines may hold placements that are not connected now. So no epoch is given twice.
    #[must_use]
    pub fn leap(self) -> Self {
        if planted::is(Fault::RestoreDoesNotLeap) {
            return self;
        }
        Self(self.0.saturating_add(1 << 20))
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which placement of a unit: larger than that of every earlier placement of the same unit, in the whole cluster.
///
/// The unit's processes see it as `MUSTER_EPOCH`, written `TERM.COUNTER`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch {
    /// The term in which it was decided.
    pub term: Term,
    /// Counts the placements of that term.
    pub counter: u64,
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.term, self.counter)
    }
}

/// Counts an agent's sessions with leaders; the one opened last has the highest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SessionNumber(pub u64);

/// Counts the assignments that a leader sends within one session of one term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

/// Counts the batches that a leader hands to its store within its term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommitId(pub u64);
