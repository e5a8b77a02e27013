//! Units and machines for tests.

use muster_core::command::{ClusterStatus, CopyRole, CopyStatus, MachineStatus, UnitStatus, Waiting};
use muster_core::ids::{AgentKey, BootId, ClusterId, Epoch, MachineId, Term};
use muster_core::machine::{Availability, Capacity, MachineRecord, MachineState, Pressure};
use muster_core::state::{DesiredState, Failure, Observation, Phase, UnitState};
use muster_core::unit::{Bytes, ContentHash, MilliCpu, UnitName};

use crate::output::Machines;

/// Three machines: up, up, unreachable.
pub fn cluster() -> ClusterStatus {
    ClusterStatus {
        cluster: ClusterId::new(1),
        term: Term(3),
        machines: vec![
            machine(1, "198.18.0.101", MachineState::Up),
            machine(2, "", MachineState::Up),
            machine(3, "198.18.0.103", MachineState::Unreachable),
        ],
        brake: None,
    }
}

pub fn machines() -> Machines {
    Machines::of(&cluster())
}

/// `11111111...` for 1, and so on.
pub fn machine_id(digit: u128) -> MachineId {
    MachineId::new(digit * 0x1111_1111_1111_1111_1111_1111_1111_1111)
}

fn machine(digit: u128, address: &str, state: MachineState) -> MachineStatus {
    let labels: &[(&str, &str)] = if digit == 1 { &[("zone", "a"), ("disk", "ssd")] } else { &[] };
    MachineStatus {
        id: machine_id(digit),
        record: MachineRecord {
            address: address.to_owned(),
            labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            capacity: Capacity { cpu: MilliCpu(2000), memory: Bytes(4 << 30) },
            version: "0.1.0".to_owned(),
            boot: BootId::new(digit),
            key: AgentKey::new(digit),
            restarting: false,
            leaving: false,
            lease: std::time::Duration::from_secs(5),
            grace: std::time::Duration::ZERO,
        },
        state,
        availability: Availability::Open,
        last_heard_ms: (digit != 2).then_some(if state == MachineState::Up { 400 } else { 12_700 }),
        units: 2,
        orphans: 0,
        left: Vec::new(),
        reserved: Capacity { cpu: MilliCpu(500), memory: Bytes(256 << 20) },
        pressure: if digit == 1 {
            Pressure { cpu: Some(1234), memory: Some(0), io: Some(7) }
        } else {
            Pressure::default()
        },
        rival: None,
        host_answers: None,
    }
}

pub fn unit_name(name: &str) -> UnitName {
    UnitName::parse(name).expect("a unit name")
}

/// A unit without copies.
pub fn unit(name: &str, desired: DesiredState) -> UnitStatus {
    UnitStatus {
        name: unit_name(name),
        known: true,
        hash: ContentHash::of(name.as_bytes()),
        content: None,
        description: format!("What {name} does"),
        desired,
        global: false,
        copies: Vec::new(),
        waiting: None,
        trouble: None,
        done: false,
    }
}

/// The unit with one more copy.
pub fn with_copy(
    mut unit: UnitStatus,
    machine: u128,
    role: CopyRole,
    seen: impl Into<Option<Observation>>,
) -> UnitStatus {
    let epoch = Epoch { term: Term(3), counter: 10 + unit.copies.len() as u64 };
    unit.copies.push(CopyStatus { machine: machine_id(machine), epoch, role, observation: seen.into() });
    unit
}

/// The unit, which no machine takes.
pub fn with_waiting(mut unit: UnitStatus, reason: &str, machines: &[(u128, &str)]) -> UnitStatus {
    let machines = machines.iter().map(|(digit, why)| (machine_id(*digit), (*why).to_owned())).collect();
    unit.waiting = Some(Waiting { reason: reason.to_owned(), machines });
    unit
}

/// A copy in that phase, of which systemd says `active` and `sub`.
pub fn held(phase: Phase, active: &str, sub: &str) -> Observation {
    let state = UnitState { load: "loaded".to_owned(), active: active.to_owned(), sub: sub.to_owned() };
    Observation::Held { phase, state: Some(state) }
}

/// A unit that runs on machine 1.
pub fn running(name: &str) -> UnitStatus {
    with_copy(
        unit(name, DesiredState::Launched),
        1,
        CopyRole::Current,
        held(Phase::Launched, "active", "running"),
    )
}

pub fn failure(reason: &str) -> Failure {
    Failure { result: "exit-code".to_owned(), reason: reason.to_owned() }
}

/// One of each sort of unit.
pub fn zoo() -> Vec<UnitStatus> {
    let start_failed = Phase::StartFailed(failure("Job for broken.service failed: exit-code"));
    let mut everywhere = with_copy(
        running("everywhere.service"),
        2,
        CopyRole::Current,
        held(Phase::Starting, "activating", "start-pre"),
    );
    everywhere.global = true;
    let mut forgotten = with_copy(
        unit("forgotten.service", DesiredState::Inactive),
        1,
        CopyRole::Stopping,
        held(Phase::Stopping, "deactivating", "stop-sigterm"),
    );
    forgotten.known = false;
    forgotten.description = String::new();
    let mut orphan = with_copy(
        unit("orphan.service", DesiredState::Inactive),
        2,
        CopyRole::Orphaned,
        held(Phase::Launched, "active", "running"),
    );
    orphan.known = false;
    let mut template = unit("web@.service", DesiredState::Inactive);
    template.description = String::new();
    vec![
        with_copy(
            unit("broken.service", DesiredState::Launched),
            2,
            CopyRole::Current,
            held(start_failed, "failed", "failed"),
        ),
        everywhere,
        forgotten,
        with_copy(
            unit("loaded.socket", DesiredState::Loaded),
            1,
            CopyRole::Current,
            held(Phase::Loaded, "inactive", "dead"),
        ),
        with_copy(running("moved.service"), 3, CopyRole::Stopping, None),
        orphan,
        with_copy(
            unit("refused.service", DesiredState::Launched),
            2,
            CopyRole::Current,
            Observation::Refused("the machine has a unit of this name of its own".to_owned()),
        ),
        with_copy(unit("silent.service", DesiredState::Launched), 1, CopyRole::Current, None),
        with_waiting(
            unit("wide.service", DesiredState::Launched),
            "no machine takes the unit",
            &[(1, "conflicts with loaded.socket"), (2, "lacks the label zone=b"), (3, "is unreachable")],
        ),
        template,
    ]
}
