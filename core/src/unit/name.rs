//! Unit names: what they may look like and the parts that they are made of.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The longest unit name that systemd accepts, in bytes (its `UNIT_NAME_MAX` counts the terminating NUL too).
pub const MAX_UNIT_NAME_BYTES: usize = 255;

/// The type of a unit: what stands after the last dot of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum UnitType {
    /// `.automount`
    Automount,
    /// `.device`
    Device,
    /// `.mount`
    Mount,
    /// `.path`
    Path,
    /// `.scope`
    Scope,
    /// `.service`
    Service,
    /// `.slice`
    Slice,
    /// `.socket`
    Socket,
    /// `.swap`
    Swap,
    /// `.target`
    Target,
    /// `.timer`
    Timer,
}

impl UnitType {
    /// All types that systemd has.
    pub const ALL: [UnitType; 11] = [
        UnitType::Automount,
        UnitType::Device,
        UnitType::Mount,
        UnitType::Path,
        UnitType::Scope,
        UnitType::Service,
        UnitType::Slice,
        UnitType::Socket,
        UnitType::Swap,
        UnitType::Target,
        UnitType::Timer,
    ];

    /// The suffix, without the dot.
    pub fn as_str(self) -> &'static str {
        match self {
            UnitType::Automount => "automount",
            UnitType::Device => "device",
            UnitType::Mount => "mount",
            UnitType::Path => "path",
            UnitType::Scope => "scope",
            UnitType::Service => "service",
            UnitType::Slice => "slice",
            UnitType::Socket => "socket",
            UnitType::Swap => "swap",
            UnitType::Target => "target",
            UnitType::Timer => "timer",
        }
    }

    /// The section of a unit file that is this type's own, besides `[Unit]` and `[Install]`.
    pub fn section(self) -> &'static str {
        match self {
            UnitType::Automount => "Automount",
            UnitType::Device => "Device",
            UnitType::Mount => "Mount",
            UnitType::Path => "Path",
            UnitType::Scope => "Scope",
            UnitType::Service => "Service",
            UnitType::Slice => "Slice",
            UnitType::Socket => "Socket",
            UnitType::Swap => "Swap",
            UnitType::Target => "Target",
            UnitType::Timer => "Timer",
        }
    }

    /// Whether Muster can place units of this type.
    ///
    /// # Errors
    /// The reason why not, for the two types that systemd does not start from a file.
    pub fn schedulable(self) -> Result<(), &'static str> {
        match self {
            UnitType::Device => {
                Err("device units come from the kernel's devices and cannot be started from a file")
            }
            UnitType::Scope => {
                Err("scope units are made by running programs and cannot be started from a file")
            }
            _ => Ok(()),
        }
    }

    /// Whether systemd accepts templates and instances of this type.
    pub fn may_template(self) -> bool {
        matches!(
            self,
            UnitType::Path | UnitType::Service | UnitType::Socket | UnitType::Target | UnitType::Timer
        )
    }

    fn from_suffix(suffix: &str) -> Option<UnitType> {
        UnitType::ALL.into_iter().find(|unit_type| unit_type.as_str() == suffix)
    }
}

impl fmt::Display for UnitType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Types that systemd had once: names with them are refused with a reason of their own.
const RETIRED_TYPES: [&str; 2] = ["busname", "snapshot"];

/// Why a text is no unit name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitNameError {
    /// There is nothing.
    #[error("unit name cannot be empty")]
    Empty,
    /// Longer than [`MAX_UNIT_NAME_BYTES`].
    #[error("unit name exceeds maximum length ({MAX_UNIT_NAME_BYTES})")]
    TooLong,
    /// No dot, hence no type.
    #[error("unit name must contain \".\"")]
    NoDot,
    /// A dot, but no type after it.
    #[error("unit name cannot end in \".\"")]
    EndsInDot,
    /// Nothing before the dot.
    #[error("unit name must not be only a type: {0:?} has nothing before the \".\"")]
    NoStem(String),
    /// What stands after the last dot is no type.
    #[error("invalid unit type: {0:?}")]
    InvalidType(String),
    /// What stands after the last dot was a type once.
    #[error("invalid unit type: {0:?} (systemd no longer has {0} units)")]
    RetiredType(String),
    /// An `@` in a name whose type has no templates.
    #[error("invalid unit type for template: {0:?}")]
    NotForTemplates(String),
    /// A character that unit names cannot have.
    #[error("invalid character {0:?} in unit name")]
    InvalidCharacter(char),
    /// No prefix before the `@`.
    #[error("unit name cannot start in \"@\"")]
    StartsWithAt,
    /// An instance was asked of something that is neither a template nor an instance.
    #[error("{0} is not a template")]
    NotATemplate(String),
    /// An instance was asked for without a name.
    #[error("the instance of {0} cannot be empty")]
    EmptyInstance(String),
}

/// The name of a unit, such as `web.service`, `web@.service` (a template) or `web@1.service` (an instance of it).
///
/// Cheap to clone. Valid by construction, as systemd sees it: at most 255 bytes, a known type after the last dot,
/// before it only ASCII letters, digits and `: - _ . @ \`. Template and instance are split at the first `@`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitName(Arc<str>);

impl UnitName {
    /// Reads a whole unit name, type included.
    ///
    /// # Errors
    /// What is wrong with it, in fleet's words where fleet had them.
    pub fn parse(name: &str) -> Result<UnitName, UnitNameError> {
        if name.is_empty() {
            return Err(UnitNameError::Empty);
        }
        if name.len() > MAX_UNIT_NAME_BYTES {
            return Err(UnitNameError::TooLong);
        }
        let (stem, suffix) = name.rsplit_once('.').ok_or(UnitNameError::NoDot)?;
        if suffix.is_empty() {
            return Err(UnitNameError::EndsInDot);
        }
        let Some(unit_type) = UnitType::from_suffix(suffix) else {
            let suffix = suffix.to_owned();
            return Err(if RETIRED_TYPES.contains(&suffix.as_str()) {
                UnitNameError::RetiredType(suffix)
            } else {
                UnitNameError::InvalidType(suffix)
            });
        };
        if stem.is_empty() {
            return Err(UnitNameError::NoStem(name.to_owned()));
        }
        if let Some(bad) = stem.chars().find(|c| !is_name_char(*c)) {
            return Err(UnitNameError::InvalidCharacter(bad));
        }
        if stem.starts_with('@') {
            return Err(UnitNameError::StartsWithAt);
        }
        if stem.contains('@') && !unit_type.may_template() {
            return Err(UnitNameError::NotForTemplates(suffix.to_owned()));
        }
        Ok(UnitName(name.into()))
    }

    /// The unit that an argument on a command line means: the last part of a path, with `.service` appended when it
    /// ends in no unit type.
    ///
    /// # Errors
    /// As [`UnitName::parse`].
    pub fn from_argument(argument: &str) -> Result<UnitName, UnitNameError> {
        let base = argument.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        let has_type = base.rsplit_once('.').is_some_and(|(_, suffix)| {
            UnitType::from_suffix(suffix).is_some() || RETIRED_TYPES.contains(&suffix)
        });
        if has_type || base.is_empty() {
            UnitName::parse(base)
        } else {
            UnitName::parse(&format!("{base}.service"))
        }
    }

    /// The whole name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The type, from what stands after the last dot.
    pub fn unit_type(&self) -> UnitType {
        // A name has a known type by construction.
        UnitType::from_suffix(self.split().1).unwrap_or(UnitType::Service)
    }

    /// Whether this is a template: `web@.service`.
    pub fn is_template(&self) -> bool {
        let prefix = self.stem().strip_suffix('@');
        prefix.is_some_and(|prefix| !prefix.contains('@'))
    }

    /// Whether this is an instance of a template: `web@1.service`.
    pub fn is_instance(&self) -> bool {
        self.instance().is_some()
    }

    /// Of an instance, its template.
    pub fn template(&self) -> Option<UnitName> {
        self.instance()?;
        Some(UnitName(format!("{}@.{}", self.prefix(), self.split().1).into()))
    }

    /// The instance with that name of this template (or of the template of this instance).
    ///
    /// # Errors
    /// When this is neither template nor instance, or `instance` does not fit into a unit name.
    pub fn instance_of(&self, instance: &str) -> Result<UnitName, UnitNameError> {
        if !self.stem().contains('@') {
            return Err(UnitNameError::NotATemplate(self.to_string()));
        }
        if instance.is_empty() {
            return Err(UnitNameError::EmptyInstance(self.to_string()));
        }
        UnitName::parse(&format!("{}@{instance}.{}", self.prefix(), self.split().1))
    }

    /// What stands before the first `@`, or the [stem](UnitName::stem) when there is none (systemd's `%p`).
    pub fn prefix(&self) -> &str {
        let stem = self.stem();
        stem.split_once('@').map_or(stem, |(prefix, _)| prefix)
    }

    /// Of an instance, what stands between the first `@` and the type (systemd's `%i`), escaped as it stands there.
    pub fn instance(&self) -> Option<&str> {
        let (_, instance) = self.stem().split_once('@')?;
        (!instance.is_empty()).then_some(instance)
    }

    /// The name without its type (systemd's `%N`).
    pub fn stem(&self) -> &str {
        self.split().0
    }

    fn split(&self) -> (&str, &str) {
        // A name has a dot by construction.
        self.0.rsplit_once('.').unwrap_or((&self.0, ""))
    }
}

fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, ':' | '-' | '_' | '.' | '@' | '\\')
}

impl fmt::Display for UnitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for UnitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

impl FromStr for UnitName {
    type Err = UnitNameError;

    fn from_str(name: &str) -> Result<UnitName, UnitNameError> {
        UnitName::parse(name)
    }
}

impl AsRef<str> for UnitName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

// The order of names is the order of their text, so maps can be searched by text.
impl std::borrow::Borrow<str> for UnitName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl Serialize for UnitName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for UnitName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<UnitName, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        UnitName::parse(&text).map_err(|error| serde::de::Error::custom(format_args!("{text:?}: {error}")))
    }
}
