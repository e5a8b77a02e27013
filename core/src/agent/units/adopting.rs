//! Units that are taken over from the machine as they run, and handed back to it.
//!
//! Both go the same way: files are moved, PID 1 reloads (once for many units), and it is looked whether it has them. Every
//! step can be done again, so that it does not matter where an agent was killed.

use super::{LAST_READ, RETRY, Units, Unsaved};
use crate::agent::io::{Adopted, Event, Held, Released, Write};
use crate::agent::unit::{Doing, Files, Unit, Want, Writing};
use crate::ids::Epoch;
use crate::state::{Phase, Target};
use crate::time::Time;
use crate::unit::{ContentHash, UnitName};

impl Writing {
    /// The copy once its files are in the place of the machine's own. What runs of it runs on.
    pub(super) fn adopted(self) -> Held {
        let (phase, target) = (Phase::Launched, Target::Launched);
        Held { phase, target, settled: true, adopting: true, ..self.held() }
    }
}

impl Units {
    pub(super) fn adopt(&mut self, name: UnitName) {
        let Some(unit) = self.units.get_mut(&name) else { return };
        let Some(Want::Hold(wanted)) = &unit.want else { return };
        let (epoch, hash, exclusive) = (wanted.epoch, wanted.hash, wanted.exclusive);
        let content = wanted.content.clone();
        unit.doing = Doing::Adopting(Writing { epoch, hash, target: wanted.target, exclusive });
        self.outdated.remove(&name);
        // The next agent must know that what runs is not to be started from files that came after it.
        self.unsaved = Unsaved::NowNeeded;
        self.out.adopts.push(Write { name, epoch, exclusive, hash, content, fresh: true });
    }

    pub fn adopted(&mut self, now: Time, name: UnitName, outcome: Adopted) {
        let Some(unit) = self.units.get_mut(&name) else { return };
        let Doing::Adopting(writing) = unit.doing else { return };
        unit.doing = Doing::Nothing;
        match outcome {
            Adopted::Moved => {
                let again = unit.files == Files::Reloaded && unit.held.is_some();
                unit.held = Some(writing.adopted());
                self.unsaved = Unsaved::NowNeeded;
                if again {
                    // A reload did not help. The next one comes with time.
                    unit.files = Files::Replaced;
                    unit.doing = Doing::Pausing;
                    return self.read_later(now, &name, LAST_READ);
                }
                unit.files = Files::Outdated;
                self.outdated.insert(name.clone());
            }
            Adopted::Done { active } => {
                let phase = if active { Phase::Launched } else { Phase::Loaded };
                unit.held = Some(Held { adopting: false, phase, ..writing.adopted() });
                unit.files = Files::Current;
                (unit.verified, unit.stopped) = (true, false);
                if let Some(Want::Hold(wanted)) = &mut unit.want {
                    wanted.content = None;
                }
                self.unsaved = Unsaved::NowNeeded;
                self.out.events.push(Event::Adopted(name.clone(), writing.epoch));
                self.read(now, &name);
            }
            Adopted::Refused(reason) => {
                unit.held = None;
                self.unsaved = Unsaved::NowNeeded;
                self.refuse(&name, writing.epoch, reason);
            }
            Adopted::Unanswered => {
                unit.doing = Doing::Pausing;
                return self.read_later(now, &name, RETRY);
            }
        }
        self.changed.insert(name.clone());
        self.due.insert(name);
    }

    /// The leader has the unit handed back to the machine, up to this epoch.
    pub(super) fn release(&mut self, name: UnitName, epoch: Epoch) {
        let unit = self.units.entry(name.clone()).or_insert_with(|| Unit::new(None));
        if unit.epoch().is_some_and(|newest| newest > epoch)
            && unit.held.as_ref().is_none_or(|held| held.epoch > epoch)
        {
            return self.report_gone(name, epoch);
        }
        if !matches!(unit.doing, Doing::Writing(..) | Doing::Adopting(..)) {
            // A reboot may have come before its files were back: the machine is to have them all the same.
            unit.held.get_or_insert(Held::found(epoch, ContentHash::of(b""), None));
        }
        unit.want = Some(Want::Remove(epoch));
        unit.release = true;
        self.unsaved = Unsaved::NowNeeded;
        self.due.insert(name);
    }

    pub fn released(&mut self, now: Time, name: UnitName, outcome: Released) {
        let Some(unit) = self.units.get_mut(&name) else { return };
        if unit.doing != Doing::Releasing {
            return;
        }
        unit.doing = Doing::Nothing;
        match outcome {
            Released::Moved if unit.files == Files::Reloaded => {
                unit.files = Files::Replaced;
                unit.doing = Doing::Pausing;
                self.read_later(now, &name, LAST_READ);
            }
            Released::Moved => {
                unit.files = Files::Outdated;
                self.outdated.insert(name.clone());
            }
            Released::Done => {
                // What a reboot has ended on the way is to run as it did.
                if unit.held.as_ref().is_some_and(|held| held.phase == Phase::Loaded) {
                    self.out.starts.push(name.clone());
                }
                self.out.events.push(Event::Released(name.clone()));
                self.confirmed(name.clone());
            }
            Released::Failed(reason) => {
                unit.doing = Doing::Pausing;
                let why = format!("its own files cannot be put back: {reason}");
                self.out.events.push(Event::ReleaseFailed(name.clone(), reason));
                self.hinder(&name, Some(why));
                self.read_later(now, &name, RETRY);
            }
            Released::Unanswered => {
                unit.doing = Doing::Pausing;
                self.read_later(now, &name, RETRY);
            }
        }
        self.due.insert(name);
    }
}
