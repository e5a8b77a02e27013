//! What of `org.freedesktop.systemd1(5)` is used.

use serde::Deserialize;
use zbus::{OwnedObjectPath, Type};

/// The bus name of systemd.
pub(super) const NAME: &str = "org.freedesktop.systemd1";
/// The interface that all units have.
pub(super) const UNIT: &str = "org.freedesktop.systemd1.Unit";

/// One unit of the answer to `ListUnitsByNames`.
#[derive(Debug, Deserialize, Type)]
pub(super) struct ListedUnit {
    _name: String,
    _description: String,
    pub load: String,
    pub active: String,
    pub sub: String,
    _following: String,
    _path: OwnedObjectPath,
    /// 0 when there is none.
    pub job: u32,
    _job_type: String,
    _job_path: OwnedObjectPath,
}

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
pub(super) trait Manager {
    /// Has systemd send signals.
    fn subscribe(&self) -> zbus::Result<()>;
    /// Starts a unit; gives the object path of the job.
    fn start_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    /// Stops a unit; gives the object path of the job.
    fn stop_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    /// Has systemd forget that a unit failed.
    fn reset_failed_unit(&self, name: &str) -> zbus::Result<()>;
    /// Has systemd read all unit files again.
    fn reload(&self) -> zbus::Result<()>;
    /// The states of units, in the order of the names; systemd loads those that are not loaded.
    fn list_units_by_names(&self, names: &[&str]) -> zbus::Result<Vec<ListedUnit>>;

    /// What systemd as a whole is doing: `running`, `stopping` …
    #[zbus(property(emits_changed_signal = "false"))]
    fn system_state(&self) -> zbus::Result<String>;
    /// Something that costs nothing to answer.
    #[zbus(property(emits_changed_signal = "false"))]
    fn version(&self) -> zbus::Result<String>;
}
