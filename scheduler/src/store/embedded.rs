//! The embedded store: one redb file in the scheduler's state directory.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use muster_core::ids::{ClusterId, MachineId, Term};
use muster_core::leader::{Change, Durable};
use muster_core::machine::Availability;
use muster_core::unit::UnitName;
use redb::{
    Builder, Database, Key, ReadTransaction, ReadableDatabase, ReadableTable, Table, TableDefinition,
    TableError, WriteTransaction,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::warn;

use super::allocating::Allocating;
use super::witness::Witness;
use super::{CommitError, Store, StoreError, lock_directory, unreadable};

/// The name of the file in the state directory.
pub const FILE_NAME: &str = "muster.redb";

/// A store that is being made; it gets [`FILE_NAME`] once it is whole.
const NEW_FILE_NAME: &str = "muster.redb.new";

/// The version of what the tables hold.
const FORMAT: &str = "1";

/// How much of the file redb may keep in memory, in bytes: little, since the leader's memory is the state and the file
/// is read at start only.
const CACHE_BYTES: usize = 4 * 1024 * 1024;

/// Text to text: [`FORMAT_KEY`], [`CLUSTER_KEY`], [`TERM_KEY`], [`COMMITS_KEY`].
const META: TableDefinition<'_, &str, &str> = TableDefinition::new("meta");
/// A unit's name to its record, as JSON.
const UNITS: TableDefinition<'_, &str, &str> = TableDefinition::new("units");
/// A unit's name to its file, byte for byte.
const FILES: TableDefinition<'_, &str, &str> = TableDefinition::new("files");
/// A machine's id to its record, as JSON.
const MACHINES: TableDefinition<'_, u128, &str> = TableDefinition::new("machines");
/// A machine's id to what an operator decided of it, as JSON.
const AVAILABILITY: TableDefinition<'_, u128, &str> = TableDefinition::new("availability");
/// A machine's id to what clients have changed of its labels, as JSON.
const LABELS: TableDefinition<'_, u128, &str> = TableDefinition::new("labels");
/// A machine's id and a unit's name to what is known of its copies there that were ended, as JSON.
const RETIRED: TableDefinition<'_, (u128, &str), &str> = TableDefinition::new("retired");
/// A command's number to its id and result, as JSON.
const COMMANDS: TableDefinition<'_, u64, &str> = TableDefinition::new("commands");

const FORMAT_KEY: &str = "format";
const CLUSTER_KEY: &str = "cluster";
const TERM_KEY: &str = "term";
/// How often changes were committed; missing in a store to which none were.
const COMMITS_KEY: &str = "commits";

/// The embedded store. It locks its state directory for as long as it exists.
#[derive(Debug)]
pub struct Embedded {
    path: PathBuf,
    cluster: ClusterId,
    /// Whether it was made when it was opened.
    made: bool,
    /// None only while it is being opened again, and after that failed.
    database: Option<Database>,
    witness: Option<Witness>,
    _directory: File,
}

impl Embedded {
    /// Opens the store in this directory. Where there is none, makes one, for a new cluster.
    ///
    /// # Errors
    /// When another process uses it, when it is no store of this version, and when the disk fails.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let lock = lock_directory(directory)?;
        let path = directory.join(FILE_NAME);
        let made = !path.try_exists().map_err(|source| io_error("look for", &path, source))?;
        if made {
            make(directory, &path, &lock)?;
        }
        let database = open_database(&path).map_err(|error| store_error(&path, error))?;
        let (format, cluster) = read_meta(&database).map_err(|error| store_error(&path, error))?;
        if format != FORMAT {
            return Err(StoreError::Format { path, found: format, known: FORMAT });
        }
        let cluster = cluster.parse().map_err(|error| StoreError::Damaged {
            path: path.clone(),
            problem: format!("cluster: {error}"),
        })?;
        Ok(Self { path, cluster, made, database: Some(database), witness: None, _directory: lock })
    }

    /// Lets a file in this directory, which must not be on the same file system, tell whether the store is as it was
    /// written last. Where it does not tell so, it tells nothing else for the time that is given: see
    /// [`Store::is_latest`].
    ///
    /// # Errors
    /// When the disk fails.
    pub fn with_witness(mut self, directory: &Path, doubt: Duration) -> Result<Self, StoreError> {
        let commits = || -> Result<u64, redb::Error> {
            let Some(database) = &self.database else { return Ok(0) };
            commits_in(&database.begin_read()?.open_table(META)?)
        };
        let commits = commits().map_err(|error| store_error(&self.path, error))?;
        self.witness = Some(Witness::open(directory, self.cluster, commits, self.made, doubt));
        Ok(self)
    }

    /// The cluster that it belongs to.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    fn database(&self) -> Result<&Database, StoreError> {
        self.database.as_ref().ok_or_else(|| {
            io_error("use", &self.path, io::Error::other("it could not be opened again after an error"))
        })
    }

    /// Tells an error after which nothing has changed, for certain, from one after which that is not known.
    fn failed(&mut self, error: redb::Error) -> CommitError {
        // Room is taken before anything is written to it (see `Allocating`): a write that lacks room has failed before
        // any of it could become durable.
        let reason = match &error {
            redb::Error::Io(source) if is_full(source) => {
                format!("{}: {source}: make room on that file system", self.path.display())
            }
            _ => return CommitError::Unknown(store_error(&self.path, error)),
        };
        // After an error redb refuses everything until the file is opened anew.
        self.database = None;
        match open_database(&self.path) {
            Ok(database) => self.database = Some(database),
            Err(error) => return CommitError::Unknown(store_error(&self.path, error)),
        }
        CommitError::Failed(reason)
    }
}

impl Store for Embedded {
    fn is_latest(&self) -> bool {
        self.witness.as_ref().is_some_and(Witness::is_sure)
    }

    fn take_term(&mut self, above: Term) -> Result<Term, CommitError> {
        let database = self.database().map_err(CommitError::Unknown)?;
        let take = || -> Result<_, redb::Error> {
            let transaction = database.begin_write()?;
            let taken = {
                let mut meta = transaction.open_table(META)?;
                let last = term_in(&meta)?;
                let term = last.max(above).next();
                meta.insert(TERM_KEY, term.to_string().as_str())?;
                (last, term, count_commit(&mut meta)?)
            };
            transaction.commit()?;
            Ok(taken)
        };
        let (last, term, commits) = take().map_err(|error| self.failed(error))?;
        if let Some(witness) = &mut self.witness {
            // There was a term that this store does not know of.
            if above > last {
                witness.doubt();
            }
            witness.committed(commits);
        }
        Ok(term)
    }

    fn load(&mut self) -> Result<Durable, StoreError> {
        let database = self.database()?;
        let transaction = || -> Result<_, redb::Error> { Ok(database.begin_read()?) };
        transaction()
            .and_then(|transaction| load(&transaction, self.cluster))
            .map_err(|error| store_error(&self.path, error))
    }

    fn commit(&mut self, term: Term, changes: Vec<Change>) -> Result<(), CommitError> {
        let database = self.database().map_err(CommitError::Unknown)?;
        match commit(database, term, changes) {
            Ok(Ok(commits)) => {
                if let Some(witness) = &mut self.witness {
                    witness.committed(commits);
                }
                Ok(())
            }
            Ok(Err(later)) => Err(CommitError::Refused { ours: term, later }),
            Err(error) => Err(self.failed(error)),
        }
    }

    fn replace(&mut self, durable: Durable, above: Term) -> Result<(), CommitError> {
        let database = self.database().map_err(CommitError::Unknown)?;
        let commits = replace(database, &durable, above).map_err(|error| self.failed(error))?;
        self.cluster = durable.cluster;
        if let Some(witness) = &mut self.witness {
            witness.replaced(durable.cluster, commits);
        }
        Ok(())
    }
}

/// Puts this in place of everything, and gives how often was committed by now.
fn replace(database: &Database, durable: &Durable, above: Term) -> Result<u64, redb::Error> {
    let transaction = database.begin_write()?;
    transaction.delete_table(UNITS)?;
    transaction.delete_table(FILES)?;
    transaction.delete_table(MACHINES)?;
    transaction.delete_table(AVAILABILITY)?;
    transaction.delete_table(LABELS)?;
    transaction.delete_table(RETIRED)?;
    transaction.delete_table(COMMANDS)?;
    apply(&transaction, durable.changes_after(None).map(|(_, change)| change))?;
    let commits = {
        let mut meta = transaction.open_table(META)?;
        let term = term_in(&meta)?.max(above);
        meta.insert(TERM_KEY, term.to_string().as_str())?;
        meta.insert(CLUSTER_KEY, durable.cluster.to_string().as_str())?;
        count_commit(&mut meta)?
    };
    transaction.commit()?;
    Ok(commits)
}

/// Commits, and gives how often that was done by now; or the later term for which it was refused.
fn commit(database: &Database, term: Term, changes: Vec<Change>) -> Result<Result<u64, Term>, redb::Error> {
    let transaction = database.begin_write()?;
    let counted = {
        let mut meta = transaction.open_table(META)?;
        let stored = term_in(&meta)?;
        if stored == term { Ok(count_commit(&mut meta)?) } else { Err(stored) }
    };
    if counted.is_err() {
        transaction.abort()?;
        return Ok(counted);
    }
    apply(&transaction, changes)?;
    transaction.commit()?;
    Ok(counted)
}

/// Counts one more commit.
fn count_commit(meta: &mut Table<'_, &'static str, &'static str>) -> Result<u64, redb::Error> {
    let commits = commits_in(meta)? + 1;
    meta.insert(COMMITS_KEY, commits.to_string().as_str())?;
    Ok(commits)
}

fn commits_in(meta: &impl ReadableTable<&'static str, &'static str>) -> Result<u64, redb::Error> {
    number_in(meta, COMMITS_KEY, "0")
}

fn apply(
    transaction: &WriteTransaction,
    changes: impl IntoIterator<Item = Change>,
) -> Result<(), redb::Error> {
    let mut units = transaction.open_table(UNITS)?;
    let mut files = transaction.open_table(FILES)?;
    let mut machines = transaction.open_table(MACHINES)?;
    let mut availability = transaction.open_table(AVAILABILITY)?;
    let mut labels = transaction.open_table(LABELS)?;
    let mut retired = transaction.open_table(RETIRED)?;
    let mut commands = transaction.open_table(COMMANDS)?;
    for change in changes {
        match change {
            Change::PutUnit(name, unit) => {
                units.insert(name.as_str(), to_json(&unit)?.as_str())?;
            }
            Change::PutFile(name, content) => {
                files.insert(name.as_str(), &*content)?;
            }
            Change::DeleteUnit(name) => {
                units.remove(name.as_str())?;
                files.remove(name.as_str())?;
            }
            Change::PutMachine(id, record) => {
                machines.insert(id.bits(), to_json(&record)?.as_str())?;
            }
            Change::PutAvailability(id, Availability::Open) => {
                availability.remove(id.bits())?;
            }
            Change::PutAvailability(id, decided) => {
                availability.insert(id.bits(), to_json(&decided)?.as_str())?;
            }
            Change::PutLabels(id, edits) => {
                labels.insert(id.bits(), to_json(&edits)?.as_str())?;
            }
            Change::PutRetired(machine, name, record) => {
                retired.insert((machine.bits(), name.as_str()), to_json(&record)?.as_str())?;
            }
            Change::DeleteRetired(machine, name) => {
                retired.remove((machine.bits(), name.as_str()))?;
            }
            Change::PutCommand(number, command) => {
                commands.insert(number, to_json(&command)?.as_str())?;
            }
            Change::DeleteCommand(number) => {
                commands.remove(number)?;
            }
        }
    }
    Ok(())
}

fn load(transaction: &ReadTransaction, cluster: ClusterId) -> Result<Durable, redb::Error> {
    let mut durable = Durable::new(cluster);
    each(transaction, UNITS, |name, record| {
        durable.units.insert(unit_name(name)?, from_json(record)?);
        Ok(())
    })?;
    each(transaction, FILES, |name, content| {
        durable.files.insert(unit_name(name)?, content.into());
        Ok(())
    })?;
    each(transaction, MACHINES, |id, record| {
        durable.machines.insert(MachineId::new(id), from_json(record)?);
        Ok(())
    })?;
    each(transaction, AVAILABILITY, |id, decided| {
        durable.availability.insert(MachineId::new(id), from_json(decided)?);
        Ok(())
    })?;
    each(transaction, LABELS, |id, edits| {
        durable.labels.insert(MachineId::new(id), from_json(edits)?);
        Ok(())
    })?;
    each(transaction, RETIRED, |(machine, name), record| {
        durable.retired.insert((MachineId::new(machine), unit_name(name)?), from_json(record)?);
        Ok(())
    })?;
    each(transaction, COMMANDS, |number, command| {
        durable.commands.insert(number, from_json(command)?);
        Ok(())
    })?;
    Ok(durable)
}

/// Calls `take` with everything in a table; what it finds wrong is reported with the table and the key.
fn each<K: Key + 'static>(
    transaction: &ReadTransaction,
    definition: TableDefinition<'_, K, &'static str>,
    mut take: impl for<'a> FnMut(K::SelfType<'a>, &str) -> Result<(), String>,
) -> Result<(), redb::Error> {
    let table = match transaction.open_table(definition) {
        // It is made with the first entry.
        Err(TableError::TableDoesNotExist(_)) => return Ok(()),
        table => table?,
    };
    for entry in table.iter()? {
        let (key, value) = entry?;
        take(key.value(), value.value()).map_err(|problem| {
            let key = format!("{:?}", key.value());
            redb::Error::Corrupted(format!("table {definition}, key {key}: {problem}"))
        })?;
    }
    Ok(())
}

fn unit_name(text: &str) -> Result<UnitName, String> {
    UnitName::parse(text).map_err(|error| error.to_string())
}

fn from_json<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_str(text).map_err(|error| unreadable(&error))
}

fn to_json(value: &impl Serialize) -> Result<String, redb::Error> {
    serde_json::to_string(value).map_err(|error| redb::Error::Io(error.into()))
}

fn term_in(meta: &impl ReadableTable<&'static str, &'static str>) -> Result<Term, redb::Error> {
    number_in(meta, TERM_KEY, "").map(Term)
}

fn number_in(
    meta: &impl ReadableTable<&'static str, &'static str>,
    key: &str,
    missing: &str,
) -> Result<u64, redb::Error> {
    let text = meta.get(key)?.map_or_else(|| missing.to_owned(), |text| text.value().to_owned());
    text.parse().map_err(|error| redb::Error::Corrupted(format!("{key} {text:?}: {error}")))
}

/// Format version and cluster.
fn read_meta(database: &Database) -> Result<(String, String), redb::Error> {
    let transaction = database.begin_read()?;
    let meta = match transaction.open_table(META) {
        Err(redb::TableError::TableDoesNotExist(_)) => {
            return Err(redb::Error::Corrupted("it has no table \"meta\"".to_owned()));
        }
        meta => meta?,
    };
    let value = |key| -> Result<String, redb::Error> {
        let missing = || redb::Error::Corrupted(format!("it has no {key}"));
        Ok(meta.get(key)?.ok_or_else(missing)?.value().to_owned())
    };
    Ok((value(FORMAT_KEY)?, value(CLUSTER_KEY)?))
}

/// Makes an empty store for a new cluster. A crash leaves either no store or a whole one.
fn make(directory: &Path, path: &Path, lock: &File) -> Result<(), StoreError> {
    let new = directory.join(NEW_FILE_NAME);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error("remove", &new, error)),
        _ => {}
    }
    let fill = || -> Result<(), redb::Error> {
        let database = open_database(&new)?;
        let transaction = database.begin_write()?;
        {
            let mut meta = transaction.open_table(META)?;
            let cluster = ClusterId::new(uuid::Uuid::new_v4().as_u128());
            meta.insert(FORMAT_KEY, FORMAT)?;
            meta.insert(CLUSTER_KEY, cluster.to_string().as_str())?;
            meta.insert(TERM_KEY, "0")?;
        }
        // The tables must exist before they are read.
        apply(&transaction, Vec::new())?;
        transaction.commit()?;
        Ok(())
    };
    fill().map_err(|error| store_error(&new, error))?;
    fs::rename(&new, path).map_err(|source| io_error("rename", &new, source))?;
    lock.sync_all().map_err(|source| io_error("sync the directory", directory, source))
}

fn open_database(path: &Path) -> Result<Database, redb::Error> {
    let shown = path.display().to_string();
    let backend = Allocating::open(path)?;
    let mut builder = Builder::new();
    builder
        .set_cache_size(CACHE_BYTES)
        .set_repair_callback(move |_| warn!(path = %shown, "checking after a crash"));
    Ok(builder.create_with_backend(backend)?)
}

/// Whether the file system has no room.
fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

fn io_error(doing: &'static str, path: &Path, source: io::Error) -> StoreError {
    StoreError::Io { doing, path: path.to_owned(), source }
}

fn store_error(path: &Path, error: redb::Error) -> StoreError {
    let damaged = |problem| StoreError::Damaged { path: path.to_owned(), problem };
    match error {
        redb::Error::Io(source) if source.kind() == io::ErrorKind::InvalidData => damaged(source.to_string()),
        redb::Error::Io(source) => io_error("use", path, source),
        redb::Error::DatabaseAlreadyOpen => StoreError::Locked { path: path.to_owned() },
        redb::Error::Corrupted(problem) => damaged(problem),
        other => damaged(other.to_string()),
    }
}
