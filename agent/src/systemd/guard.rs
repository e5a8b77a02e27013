//! The start and the end of the guard of exclusive units.

use std::time::{Duration, Instant};

use muster_core::agent::LEASE;
use muster_core::time::Time;
use muster_core::unit::UnitName;
use muster_daemon::clock;
use rustix::process::Pid;

use super::calls::{Caller, text};
use super::proxy::NAME;
use crate::guard::{FENCE, Pet, START_MIN, check_clock};

/// How long the guard's start may take in all, and how often it is looked at meanwhile.
const START_MAX: Duration = Duration::from_secs(3);
const START_LOOK: Duration = Duration::from_millis(20);

impl Caller {
    /// Starts the guard to last until that moment.
    pub(super) async fn arm_guard(&self, until: Time) -> Result<(), String> {
        let outcome = self.try_arm(until).await;
        if outcome.is_err() {
            // Nobody else is to start it then.
            let _ = self.files.guard().clear_end();
        }
        outcome
    }

    async fn try_arm(&self, until: Time) -> Result<(), String> {
        let guard = self.files.guard();
        let unwritten = |error| format!("cannot write its files: {error}");
        let deadline = Instant::now() + START_MAX;
        let left = until.since(clock::now());
        if left <= START_MIN {
            return Err(format!("only {left:?} of the lease are left, and its start may take {START_MIN:?}"));
        }
        check_clock()?;
        guard.write_files().map_err(unwritten)?;
        // Nothing is left of the units that it waits for: they were seen to end. That it does not run is as well.
        let _ = self.manager.stop_unit(FENCE, "replace").await;
        guard.grant(until).map_err(unwritten)?;
        // Not in place of another job: it would call off a suspend that has begun.
        self.manager.start_unit(LEASE, "fail").await.map_err(|error| text(&error))?;
        let process = self.guard_process(deadline).await?;
        guard.set_process(process).map_err(unwritten)?;
        match guard.pet(until) {
            Ok(Pet::Done) => Ok(()),
            Ok(Pet::Lost) => Err(format!("{LEASE} has ended already")),
            Err(error) => Err(format!("cannot tell {LEASE} how long the lease is: {error}")),
        }
    }

    /// Waits for the guard to run: its process.
    async fn guard_process(&self, deadline: Instant) -> Result<Pid, String> {
        let lease = UnitName::parse(LEASE).map_err(|error| error.to_string())?;
        loop {
            let listed = self.manager.list_units_by_names(&[LEASE]).await.map_err(|error| text(&error))?;
            let (active, job) =
                listed.first().map_or(("unknown", 0), |unit| (unit.active.as_str(), unit.job));
            if active == "active" {
                let process = self.get(&lease, &format!("{NAME}.Service"), "MainPID").await;
                let process = process.and_then(u32::try_from).map_err(|error| text(&error))?;
                if let Some(process) = i32::try_from(process).ok().and_then(Pid::from_raw) {
                    return Ok(process);
                }
            }
            if job == 0 || deadline <= Instant::now() {
                return Err(format!("{LEASE} does not start; it is {active}"));
            }
            tokio::time::sleep(START_LOOK).await;
        }
    }

    /// Ends the guard, without a fence.
    pub(super) async fn disarm_guard(&self) {
        // That it does not run any more is as well, and what is not stopped ends with the lease.
        if let Err(error) = self.manager.stop_unit(LEASE, "replace").await {
            tracing::debug!(error = text(&error), "{LEASE} is not stopped");
        }
        if let Err(error) = self.files.guard().clear_end() {
            tracing::warn!(%error, "cannot remove the end of the lease");
        }
    }
}
