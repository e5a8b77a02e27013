//! What survives: intent and decisions, and the changes to them that a store commits.
//!
//! Who reads what a later version has written must not leave out of account what it does not know: a field that it does not
//! know is an error, as a change is. So a new field is not written while it has its default (`skip_serializing_if`): the
//! version before can go on with a state in which nothing new was used.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Bound, Deref};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use litemap::LiteMap;
use serde::{Deserialize, Serialize};

use crate::command::CommandResult;
use crate::ids::{ClusterId, CommandId, Epoch, MachineId};
use crate::machine::{Availability, LabelEdits, MachineRecord};
use crate::state::DesiredState;
use crate::unit::{ContentHash, Options, UnitFile, UnitName};

/// Everything that a store holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Durable {
    /// Which cluster this is.
    pub cluster: ClusterId,
    /// The units that the cluster knows.
    pub units: BTreeMap<UnitName, StoredUnit>,
    /// The files of those units, byte for byte.
    pub files: BTreeMap<UnitName, StoredFile>,
    /// The machines that ever were part of the cluster.
    pub machines: BTreeMap<MachineId, MachineRecord>,
    /// What was decided of machines, where it is not [`Availability::Open`].
    pub availability: BTreeMap<MachineId, Availability>,
    /// What clients have changed of machines' labels; such a machine need not have joined.
    pub labels: BTreeMap<MachineId, LabelEdits>,
    /// Copies that were ended by a decision and that their machine has not said to be gone: of this epoch or older.
    pub retired: BTreeMap<(MachineId, UnitName), Retired>,
    /// The results of recent commands, by the order in which they were given.
    pub commands: BTreeMap<u64, StoredCommand>,
}

impl Durable {
    /// The state of a new cluster.
    pub fn new(cluster: ClusterId) -> Self {
        Self {
            cluster,
            units: BTreeMap::new(),
            files: BTreeMap::new(),
            machines: BTreeMap::new(),
            availability: BTreeMap::new(),
            labels: BTreeMap::new(),
            retired: BTreeMap::new(),
            commands: BTreeMap::new(),
        }
    }

    /// Applies one change, as a store does.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::PutUnit(name, unit) => {
                self.units.insert(name, unit);
            }
            Change::PutFile(name, content) => {
                self.files.insert(name, content);
            }
            Change::DeleteUnit(name) => {
                self.units.remove(&name);
                self.files.remove(&name);
            }
            Change::PutMachine(id, record) => {
                self.machines.insert(id, record);
            }
            Change::PutAvailability(id, Availability::Open) => {
                self.availability.remove(&id);
            }
            Change::PutAvailability(id, availability) => {
                self.availability.insert(id, availability);
            }
            Change::PutLabels(id, edits) => {
                self.labels.insert(id, edits);
            }
            Change::PutRetired(machine, name, retired) => {
                self.retired.insert((machine, name), retired);
            }
            Change::DeleteRetired(machine, name) => {
                self.retired.remove(&(machine, name));
            }
            Change::PutCommand(number, command) => {
                self.commands.insert(number, command);
            }
            Change::DeleteCommand(number) => {
                self.commands.remove(&number);
            }
        }
    }
}

/// Where in the state a list of its changes has come to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A unit's record.
    Unit(UnitName),
    /// A unit's file.
    File(UnitName),
    /// A machine's record.
    Machine(MachineId),
    /// What was decided of a machine.
    Availability(MachineId),
    /// What clients have changed of a machine's labels.
    Labels(MachineId),
    /// A copy that was ended.
    Retired(MachineId, UnitName),
    /// A command's result.
    Command(u64),
}

impl Durable {
    /// The state as changes that make it out of nothing, in the order of [`Place`]: those that come after this place.
    pub fn changes_after<'a>(
        &'a self,
        after: Option<&Place>,
    ) -> impl Iterator<Item = (Place, Change)> + use<'a> {
        // The last key of the section that the place is in; sections before it are done.
        let (mut unit, mut file, mut machine, mut decided, mut labels, mut retired, mut command) =
            (None, None, None, None, None, None, None);
        let section = match after.cloned() {
            None => 0,
            Some(Place::Unit(name)) => (0, unit = Some(name)).0,
            Some(Place::File(name)) => (1, file = Some(name)).0,
            Some(Place::Machine(id)) => (2, machine = Some(id)).0,
            Some(Place::Availability(id)) => (3, decided = Some(id)).0,
            Some(Place::Labels(id)) => (4, labels = Some(id)).0,
            Some(Place::Retired(id, name)) => (5, retired = Some((id, name))).0,
            Some(Place::Command(number)) => (6, command = Some(number)).0,
        };
        let units = rest(&self.units, section == 0, unit)
            .map(|(name, unit)| (Place::Unit(name.clone()), Change::PutUnit(name.clone(), unit.clone())));
        let files = rest(&self.files, section <= 1, file)
            .map(|(name, file)| (Place::File(name.clone()), Change::PutFile(name.clone(), file.clone())));
        let machines = rest(&self.machines, section <= 2, machine)
            .map(|(id, record)| (Place::Machine(*id), Change::PutMachine(*id, record.clone())));
        let availability = rest(&self.availability, section <= 3, decided)
            .map(|(id, decided)| (Place::Availability(*id), Change::PutAvailability(*id, *decided)));
        let labels = rest(&self.labels, section <= 4, labels)
            .map(|(id, edits)| (Place::Labels(*id), Change::PutLabels(*id, edits.clone())));
        let retired = rest(&self.retired, section <= 5, retired).map(|((id, name), retired)| {
            (Place::Retired(*id, name.clone()), Change::PutRetired(*id, name.clone(), *retired))
        });
        let commands = rest(&self.commands, true, command)
            .map(|(number, command)| (Place::Command(*number), Change::PutCommand(*number, command.clone())));
        units.chain(files).chain(machines).chain(availability).chain(labels).chain(retired).chain(commands)
    }
}

fn rest<K: Ord, V>(
    map: &BTreeMap<K, V>,
    wanted: bool,
    after: Option<K>,
) -> impl Iterator<Item = (&K, &V)> + use<'_, K, V> {
    let from = after.map_or(Bound::Unbounded, Bound::Excluded);
    wanted.then(|| map.range((from, Bound::Unbounded))).into_iter().flatten()
}

/// A unit's record: what was asked for and what was decided. Its file stands beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredUnit {
    /// What was asked for.
    pub desired: DesiredState,
    /// Counts submissions: of two units the smaller one was submitted first.
    pub order: u64,
    /// What was decided: on which machines it is placed, and which placement each is. A unit that is not global has
    /// one machine at most.
    pub placements: LiteMap<MachineId, Epoch>,
    /// Whether it has run to its end, as a one-shot unit does: it is not started again by itself.
    #[serde(default)]
    pub done: bool,
}

/// A unit's file, byte for byte.
///
/// What a leader needs to know of it is found out once, and shared by all clones: who follows a leader does so as files
/// come, and has it when it takes office (100,000 files take most of half a second).
#[derive(Clone, Serialize, Deserialize)]
#[serde(from = "Arc<str>", into = "Arc<str>")]
pub struct StoredFile(Arc<ReadOnce>);

struct ReadOnce {
    text: Arc<str>,
    reading: OnceLock<Reading>,
}

/// What the leader keeps of a unit file.
#[derive(Clone)]
pub(super) struct Reading {
    pub(super) hash: ContentHash,
    pub(super) description: Box<str>,
    pub(super) options: Arc<Options>,
}

impl StoredFile {
    /// The text.
    pub fn text(&self) -> &Arc<str> {
        &self.0.text
    }

    /// Reads it as the file of this unit, unless that was done before.
    pub fn read(&self, name: &UnitName) {
        self.reading(name);
    }

    /// A file in the store was checked when it was submitted; should a later version refuse one all the same, its unit is
    /// kept and has no options.
    pub(super) fn reading(&self, name: &UnitName) -> &Reading {
        self.0.reading.get_or_init(|| Reading::of(name, &self.0.text))
    }
}

impl Reading {
    pub(super) fn of(name: &UnitName, text: &str) -> Self {
        let hash = ContentHash::of(text.as_bytes());
        let Ok(file) = UnitFile::parse(text.as_bytes()) else {
            return Self { hash, description: Box::default(), options: Arc::default() };
        };
        let options = Options::parse(name, &file).map(|parsed| parsed.options).unwrap_or_default();
        let description = file.value("Unit", "Description");
        let description = description.map(|text| text.into_owned().into_boxed_str()).unwrap_or_default();
        Self { hash, description, options: Arc::new(options) }
    }
}

impl From<Arc<str>> for StoredFile {
    fn from(text: Arc<str>) -> Self {
        Self(Arc::new(ReadOnce { text, reading: OnceLock::new() }))
    }
}

impl From<&str> for StoredFile {
    fn from(text: &str) -> Self {
        Arc::<str>::from(text).into()
    }
}

impl From<String> for StoredFile {
    fn from(text: String) -> Self {
        Arc::<str>::from(text).into()
    }
}

impl From<StoredFile> for Arc<str> {
    fn from(file: StoredFile) -> Self {
        Self::clone(&file.0.text)
    }
}

impl Deref for StoredFile {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0.text
    }
}

impl PartialEq for StoredFile {
    fn eq(&self, other: &Self) -> bool {
        self.0.text == other.0.text
    }
}

impl Eq for StoredFile {}

impl fmt::Debug for StoredFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.text.fmt(f)
    }
}

/// A copy of a unit that was ended by a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retired {
    /// Of this epoch or an older one.
    pub epoch: Epoch,
    /// Where it was exclusive: how long after the lease of its machine it has ended, whoever is alive.
    #[serde(default)]
    pub exclusive: Option<Duration>,
}

/// A command's result, kept so that a repetition of the command finds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredCommand {
    /// The command.
    pub id: CommandId,
    /// What it was answered.
    pub result: CommandResult,
}

impl StoredCommand {
    /// Of how many units the result tells.
    pub(super) fn outcomes(&self) -> usize {
        self.result.as_ref().map_or(0, Vec::len)
    }
}

/// One change of the durable state. A batch of them is committed whole or not at all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// A unit's record is new or other.
    PutUnit(UnitName, StoredUnit),
    /// A unit's file is new or other.
    PutFile(UnitName, StoredFile),
    /// A unit is forgotten, with its file.
    DeleteUnit(UnitName),
    /// A machine's record is new or other.
    PutMachine(MachineId, MachineRecord),
    /// An operator decided this of a machine.
    PutAvailability(MachineId, Availability),
    /// Clients have changed this of a machine's labels, in all.
    PutLabels(MachineId, LabelEdits),
    /// A copy on this machine was ended by a decision.
    PutRetired(MachineId, UnitName, Retired),
    /// That copy is gone.
    DeleteRetired(MachineId, UnitName),
    /// A command's result, under the number that orders commands.
    PutCommand(u64, StoredCommand),
    /// A command's result is old enough to be forgotten.
    DeleteCommand(u64),
}
