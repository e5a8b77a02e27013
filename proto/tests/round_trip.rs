//! Whatever the core says arrives as it was said, in as many parts as it takes.

use std::sync::Arc;
use std::time::Duration;

use muster_core::command::{
    BrakeStatus, ClusterStatus, Command, CommandError, CommandResult, CopyRole, CopyStatus, Done, LabelEdit,
    Left, MachineCommand, MachineStatus, Page, RivalStatus, Rows, UnitArgument, UnitError, UnitErrorKind,
    UnitOutcome, UnitStatus, Verb, Waiting,
};
use muster_core::ids::{
    AgentKey, BootId, ClusterId, CommandId, Epoch, MachineId, Revision, SessionNumber, StreamKey, Term,
};
use muster_core::machine::{Availability, Capacity, Drain, Labels, MachineRecord, MachineState, Pressure};
use muster_core::message::{
    Assignment, Assignments, FromAgent, Goodbye, HeldUnit, Hello, LeaderMessage, Refused, Removal,
    ReportedChange, ToAgent, UnitReport, Welcome,
};
use muster_core::state::{DesiredState, Failure, Observation, Phase, Target, UnitState};
use muster_core::stream::StreamKind;
use muster_core::unit::{Bytes, ContentHash, MilliCpu, UnitName};
use muster_proto::{
    CommandRequestError, EtcdAnswer, EtcdMember, FileToWrite, FromAgentParts, Journal, MAX_PART_UNITS,
    PART_BYTES, RegisteredScheduler, SchedulerRole, SchedulerStatus, StoreStatus, StreamRequest,
    ToAgentParts, Work, command_response, split_from_agent, split_to_agent, unit_parts, v1,
};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use prost::Message;

fn unit_name() -> impl Strategy<Value = UnitName> {
    "[a-z]{1,8}(@[a-z0-9]{0,3})?\\.(service|socket|timer)".prop_map(|name| name.parse().expect("a name"))
}

fn epoch() -> impl Strategy<Value = Epoch> {
    (any::<u64>(), any::<u64>()).prop_map(|(term, counter)| Epoch { term: Term(term), counter })
}

fn hash() -> impl Strategy<Value = ContentHash> {
    any::<[u8; 32]>().prop_map(ContentHash::from_bytes)
}

fn content() -> impl Strategy<Value = Arc<str>> {
    ".{0,40}".prop_map(Arc::from)
}

fn duration() -> impl Strategy<Value = Duration> {
    any::<u64>().prop_map(Duration::from_micros)
}

fn target() -> impl Strategy<Value = Target> {
    select(vec![Target::Loaded, Target::Launched])
}

fn labels() -> impl Strategy<Value = Labels> {
    btree_map("[a-z]{1,5}", ".{0,5}", 0..3)
}

fn capacity() -> impl Strategy<Value = Capacity> {
    (any::<u64>(), any::<u64>())
        .prop_map(|(cpu, memory)| Capacity { cpu: MilliCpu(cpu), memory: Bytes(memory) })
}

fn failure() -> impl Strategy<Value = Failure> {
    (".{0,5}", ".{0,9}").prop_map(|(result, reason)| Failure { result, reason })
}

fn observation() -> impl Strategy<Value = Observation> {
    let phase = prop_oneof![
        Just(Phase::Loaded),
        Just(Phase::Starting),
        Just(Phase::Launched),
        Just(Phase::Stopping),
        failure().prop_map(Phase::StartFailed),
        failure().prop_map(Phase::Failed),
        failure().prop_map(Phase::StopFailed),
    ];
    let state =
        (".{0,5}", ".{0,5}", ".{0,5}").prop_map(|(load, active, sub)| UnitState { load, active, sub });
    prop_oneof![
        (phase, option::of(state)).prop_map(|(phase, state)| Observation::Held { phase, state }),
        ".{0,9}".prop_map(Observation::Refused),
    ]
}

prop_compose! {
    fn held_unit()(name in unit_name(), epoch in epoch(), hash in hash(), target in target(), observation in observation())
        -> HeldUnit {
        HeldUnit { name, epoch, hash, target, observation }
    }
}

prop_compose! {
    fn hello()(
        cluster in option::of(any::<u128>()),
        ids in any::<[u128; 3]>(),
        numbers in any::<[u64; 2]>(),
        texts in [".{0,9}", ".{0,9}"],
        labels in labels(),
        capacity in capacity(),
        pid1_age in duration(),
        leaving in any::<bool>(),
        streams in option::of(vec(select(StreamKind::ALL.to_vec()), 0..3)),
        units in vec(held_unit(), 0..4),
    ) -> Hello {
        let [address, version] = texts;
        Hello {
            cluster: cluster.map(ClusterId::new),
            machine: MachineId::new(ids[0]),
            boot: BootId::new(ids[1]),
            key: AgentKey::new(ids[2]),
            session: SessionNumber(numbers[0]),
            term: Term(numbers[1]),
            address,
            labels,
            capacity,
            version,
            pid1_age,
            leaving,
            streams: streams.map(|kinds| kinds.into_iter().collect()),
            units,
        }
    }
}

fn report() -> impl Strategy<Value = UnitReport> {
    let change = prop_oneof![
        observation().prop_map(ReportedChange::Observed),
        Just(ReportedChange::Gone),
        epoch().prop_map(ReportedChange::Stale),
    ];
    (unit_name(), epoch(), change).prop_map(|(name, epoch, change)| UnitReport { name, epoch, change })
}

fn pressure() -> impl Strategy<Value = Pressure> {
    any::<[Option<u32>; 3]>().prop_map(|[cpu, memory, io]| Pressure { cpu, memory, io })
}

fn from_agent() -> impl Strategy<Value = FromAgent> {
    prop_oneof![
        hello().prop_map(FromAgent::Hello),
        select(vec![Goodbye::Restart, Goodbye::Shutdown]).prop_map(FromAgent::Goodbye),
        (any::<u64>(), duration(), pressure())
            .prop_map(|(number, pid1_age, pressure)| { FromAgent::Heartbeat { number, pid1_age, pressure } }),
        vec(report(), 1..4).prop_map(FromAgent::Report),
        Just(FromAgent::SnapshotWanted),
    ]
}

fn stream_request() -> impl Strategy<Value = StreamRequest> {
    let journal = (unit_name(), option::of(any::<u32>()), option::of(".{0,9}"), ".{0,9}", any::<bool>());
    let work = prop_oneof![
        journal.prop_map(|(unit, lines, since, output, follow)| {
            Work::Journal(Journal { unit, lines, since, output, follow })
        }),
        unit_name().prop_map(Work::Status),
        any::<u16>().prop_map(Work::Port),
        ".{0,9}".prop_map(Work::Socket),
        ".{0,9}".prop_map(Work::ReadFile),
        (".{0,9}", ".{0,9}", any::<u32>()).prop_map(|(path, name, mode)| Work::WriteFile(FileToWrite {
            path,
            name,
            mode
        })),
    ];
    (any::<u128>(), work).prop_map(|(machine, work)| StreamRequest { machine: MachineId::new(machine), work })
}

prop_compose! {
    fn assignment()(
        name in unit_name(), epoch in epoch(), hash in hash(), content in option::of(content()), target in target(),
        exclusive in option::of(duration()),
    ) -> Assignment {
        Assignment { name, epoch, hash, content, target, exclusive }
    }
}

prop_compose! {
    fn assignments()(
        snapshot in any::<bool>(),
        revision in any::<u64>(),
        hold in vec(assignment(), 0..4),
        remove in vec((unit_name(), epoch()), 0..4),
    ) -> Assignments {
        let remove = remove.into_iter().map(|(name, epoch)| Removal { name, epoch }).collect();
        Assignments { snapshot, revision: Revision(revision), hold, remove }
    }
}

fn to_agent() -> impl Strategy<Value = ToAgent> {
    let body = prop_oneof![
        (any::<u128>(), duration(), duration()).prop_map(|(cluster, heartbeat_interval, lease_ttl)| {
            LeaderMessage::Welcome(Welcome {
                cluster: ClusterId::new(cluster),
                heartbeat_interval,
                lease_ttl,
            })
        }),
        any::<u64>().prop_map(|number| LeaderMessage::HeartbeatAck { number }),
        assignments().prop_map(LeaderMessage::Assignments),
        any::<[u128; 2]>().prop_map(|[theirs, ours]| {
            LeaderMessage::Refused(Refused::OtherCluster {
                theirs: ClusterId::new(theirs),
                ours: ClusterId::new(ours),
            })
        }),
        any::<u64>().prop_map(|term| LeaderMessage::Refused(Refused::HigherTermSeen(Term(term)))),
        Just(LeaderMessage::Refused(Refused::LeaseEnded)),
        Just(LeaderMessage::Refused(Refused::Replaced)),
        option::of(duration()).prop_map(|lease| LeaderMessage::Farewell { lease }),
        duration().prop_map(|age| LeaderMessage::Refused(Refused::SystemdSilent(age))),
        ".{0,9}".prop_map(|address| LeaderMessage::Refused(Refused::IdInUse { address })),
        Just(LeaderMessage::Probe),
        any::<u128>().prop_map(|key| LeaderMessage::OpenStream(StreamKey::new(key))),
    ];
    (any::<u64>(), any::<u64>(), body).prop_map(|(term, session, body)| ToAgent {
        term: Term(term),
        session: SessionNumber(session),
        body,
    })
}

fn command() -> impl Strategy<Value = Command> {
    let verbs =
        [Verb::Submit, Verb::Load, Verb::Start, Verb::Stop, Verb::Unload, Verb::Destroy, Verb::Restart];
    let argument =
        (unit_name(), option::of(content())).prop_map(|(name, content)| UnitArgument { name, content });
    (any::<u128>(), select(verbs.to_vec()), vec(argument, 0..4), any::<bool>())
        .prop_map(|(id, verb, units, replace)| Command { id: CommandId::new(id), verb, units, replace })
}

fn desired() -> impl Strategy<Value = DesiredState> {
    select(vec![DesiredState::Inactive, DesiredState::Loaded, DesiredState::Launched])
}

/// All results but [`CommandError::NotLeader`], which is a gRPC status.
fn command_result() -> impl Strategy<Value = CommandResult> {
    let done = [
        Done::Created,
        Done::Replaced,
        Done::Changed,
        Done::Unchanged,
        Done::KeptOtherContent,
        Done::Destroyed,
    ];
    let outcome = (unit_name(), select(done.to_vec()), vec(".{0,9}", 0..3))
        .prop_map(|(name, done, warnings)| UnitOutcome { name, done, warnings });
    let kind = prop_oneof![
        Just(UnitErrorKind::NotFound),
        vec(".{0,9}", 0..3).prop_map(UnitErrorKind::Invalid),
        ".{0,9}".prop_map(UnitErrorKind::Template),
        ".{0,9}".prop_map(UnitErrorKind::Inactive),
        (desired(), ".{0,9}").prop_map(|(desired, verb)| UnitErrorKind::InUse(desired, verb)),
    ];
    let error = (unit_name(), kind).prop_map(|(name, kind)| UnitError { name, kind });
    prop_oneof![
        vec(outcome, 0..4).prop_map(Ok),
        vec(error, 0..4).prop_map(|errors| Err(CommandError::Units(errors))),
        ".{0,9}".prop_map(|reason| Err(CommandError::Store(reason))),
    ]
}

prop_compose! {
    fn copy()(
        machine in any::<u128>(),
        epoch in epoch(),
        role in select(vec![CopyRole::Current, CopyRole::Stopping, CopyRole::Orphaned]),
        observation in option::of(observation()),
    ) -> CopyStatus {
        CopyStatus { machine: MachineId::new(machine), epoch, role, observation }
    }
}

prop_compose! {
    fn unit_status()(
        name in unit_name(),
        flags in any::<[bool; 3]>(),
        hash in hash(),
        content in option::of(content()),
        description in ".{0,9}",
        desired in desired(),
        copies in vec(copy(), 0..3),
        waiting in option::of((".{0,9}", vec((any::<u128>(), ".{0,9}"), 0..3))),
        trouble in option::of(".{0,9}"),
    ) -> UnitStatus {
        let waiting = waiting.map(|(reason, machines)| Waiting {
            reason,
            machines: machines.into_iter().map(|(machine, reason)| (MachineId::new(machine), reason)).collect(),
        });
        let [known, global, done] = flags;
        UnitStatus { name, known, hash, content, description, desired, global, copies, waiting, trouble, done }
    }
}

fn availability() -> impl Strategy<Value = Availability> {
    prop_oneof![
        Just(Availability::Open),
        Just(Availability::Cordoned),
        any::<(u64, u32)>().prop_map(|(timeout_ms, max_parallel)| {
            Availability::Draining(Drain { timeout_ms, max_parallel })
        }),
    ]
}

prop_compose! {
    fn machine_status()(
        ids in any::<[u128; 3]>(),
        texts in [".{0,9}", ".{0,9}"],
        labels in labels(),
        capacities in [capacity(), capacity()],
        state in select(vec![
            MachineState::Up, MachineState::Degraded, MachineState::Awaited, MachineState::Unreachable,
        ]),
        last_heard_ms in option::of(any::<u64>()),
        [units, orphans] in any::<[usize; 2]>(),
        left in vec((unit_name(), ".{0,9}", any::<bool>()), 0..3),
        availability in availability(),
        [leaving, restarting] in any::<[bool; 2]>(),
        [lease, grace] in [duration(), duration()],
        pressure in pressure(),
        rival in option::of((".{0,9}", any::<u128>(), any::<u64>())),
        host_answers in option::of(any::<bool>()),
    ) -> MachineStatus {
        let [address, version] = texts;
        let [capacity, reserved] = capacities;
        let record = MachineRecord {
            address,
            labels,
            capacity,
            version,
            boot: BootId::new(ids[1]),
            key: AgentKey::new(ids[2]),
            restarting,
            leaving,
            lease,
            grace,
        };
        MachineStatus {
            id: MachineId::new(ids[0]),
            record,
            state,
            availability,
            last_heard_ms,
            units,
            orphans,
            left: left.into_iter().map(|(unit, why, stops)| Left { unit, why, stops }).collect(),
            reserved,
            pressure,
            rival: rival.map(|(address, boot, last_heard_ms)| {
                RivalStatus { address, boot: BootId::new(boot), last_heard_ms }
            }),
            host_answers,
        }
    }
}

/// Through the bytes on the wire, not only through the generated types.
fn wire<M: Message + Default>(message: &M) -> M {
    M::decode(message.encode_to_vec().as_slice()).expect("what was encoded can be decoded")
}

fn hear_agent(said: FromAgent) -> Vec<FromAgent> {
    let mut parts = FromAgentParts::default();
    let messages = split_from_agent(said);
    messages.iter().filter_map(|part| parts.push(wire(part)).expect("a part that makes sense")).collect()
}

fn hear_leader(said: ToAgent) -> Vec<ToAgent> {
    let mut parts = ToAgentParts::default();
    let messages = split_to_agent(said);
    messages.iter().filter_map(|part| parts.push(wire(part)).expect("a part that makes sense")).collect()
}

fn etcd_member() -> impl Strategy<Value = EtcdMember> {
    let answer = (".{0,5}", any::<u64>(), option::of(any::<u64>()), any::<bool>(), vec("[A-Z]{1,5}", 0..2))
        .prop_map(|(version, db_bytes, quota_bytes, leads, alarms)| EtcdAnswer {
            version,
            db_bytes,
            quota_bytes,
            leads,
            alarms,
        });
    (".{0,5}", option::of(".{0,5}"), option::of(answer)).prop_map(|(endpoint, problem, answer)| EtcdMember {
        endpoint,
        problem,
        answer,
    })
}

fn scheduler_status() -> impl Strategy<Value = SchedulerStatus> {
    let roles = vec![SchedulerRole::Leading, SchedulerRole::Following, SchedulerRole::Waiting];
    let registered =
        (".{0,5}", ".{0,5}").prop_map(|(address, version)| RegisteredScheduler { address, version });
    let store =
        prop_oneof![Just(StoreStatus::Embedded), vec(etcd_member(), 0..3).prop_map(StoreStatus::Etcd)];
    let who = (".{0,5}", ".{0,5}", option::of(any::<u128>()), select(roles));
    let leader = (any::<u64>(), option::of(".{0,5}"), option::of(any::<u64>()), any::<u64>());
    (who, leader, vec(registered, 0..3), store).prop_map(|(who, leader, registered, store)| SchedulerStatus {
        address: who.0,
        version: who.1,
        cluster: who.2.map(ClusterId::new),
        role: who.3,
        term: Term(leader.0),
        leader: leader.1,
        since_ms: leader.2,
        behind: leader.3,
        registered,
        store,
    })
}

proptest! {
    #[test]
    fn what_a_scheduler_says_of_itself(status in scheduler_status()) {
        let arrived = SchedulerStatus::try_from(wire(&v1::SchedulerStatus::from(status.clone())));
        prop_assert_eq!(arrived, Ok(status));
    }

    #[test]
    fn what_an_agent_says(said in from_agent()) {
        prop_assert_eq!(hear_agent(said.clone()), vec![said]);
    }

    #[test]
    fn what_a_leader_says(said in to_agent()) {
        prop_assert_eq!(hear_leader(said.clone()), vec![said]);
    }

    #[test]
    fn what_is_wanted_of_a_machine(request in stream_request()) {
        let arrived = StreamRequest::try_from(wire(&v1::StreamRequest::from(request.clone())));
        prop_assert_eq!(arrived, Ok(request));
    }

    #[test]
    fn a_command(command in command()) {
        let request = v1::CommandRequest::from(command.clone());
        prop_assert_eq!(Command::try_from(wire(&request)), Ok(command));
    }

    #[test]
    fn a_result(result in command_result()) {
        let response = command_response(result.clone()).expect("no status");
        prop_assert_eq!(CommandResult::try_from(wire(&response)), Ok(result));
    }

    #[test]
    fn the_status_of_units(units in vec(unit_status(), 0..4)) {
        let parts: Vec<_> = unit_parts(units.clone()).map(|part| wire(&part)).collect();
        prop_assert_eq!(parts.len(), 1);
        let arrived: Result<Vec<_>, _> =
            parts.into_iter().flat_map(|part| part.units).map(UnitStatus::try_from).collect();
        prop_assert_eq!(arrived, Ok(units));
    }

    #[test]
    fn a_change_of_machines(
        id in any::<u128>(),
        machines in vec(any::<u128>(), 0..4),
        availability in availability(),
    ) {
        let machines = machines.into_iter().map(MachineId::new).collect();
        let command = MachineCommand { id: CommandId::new(id), machines, availability };
        prop_assert_eq!(MachineCommand::try_from(wire(&v1::MachinesChange::from(command.clone()))), Ok(command));
    }

    #[test]
    fn changes_of_labels(edits in vec((any::<u128>(), ".*", option::of(".*")), 0..4)) {
        let edit = |(machine, key, value)| LabelEdit { machine: MachineId::new(machine), key, value };
        let edits: Vec<LabelEdit> = edits.into_iter().map(edit).collect();
        prop_assert_eq!(Vec::try_from(wire(&v1::LabelEdits::from(edits.clone()))), Ok(edits));
    }

    #[test]
    fn a_page(
        skip in any::<usize>(),
        most in any::<usize>(),
        states in option::of((option::of(unit_name()), option::of(any::<u128>()))),
    ) {
        let rows = states.map_or(Rows::Units, |(unit, machine)| {
            Rows::States { unit, machine: machine.map(MachineId::new) }
        });
        let page = Page { rows, skip, most };
        prop_assert_eq!(Page::try_from(wire(&v1::PageRequest::from(page.clone()))), Ok(page));
    }

    #[test]
    fn of_what_machines_it_is_asked_what_is_left(machines in vec(any::<u128>(), 0..4)) {
        let machines: Vec<MachineId> = machines.into_iter().map(MachineId::new).collect();
        prop_assert_eq!(wire(&v1::MachinesRequest::of(&machines)).machines(), Ok(machines));
    }

    #[test]
    fn a_release_of_the_brake(released in option::of(vec(any::<u128>(), 0..4))) {
        let released: Option<Vec<MachineId>> =
            released.map(|machines| machines.into_iter().map(MachineId::new).collect());
        prop_assert_eq!(wire(&v1::ReleaseBrakeResponse::from(released.clone())).released(), Ok(released));
    }

    #[test]
    fn the_status_of_machines(
        cluster in any::<u128>(),
        term in any::<u64>(),
        machines in vec(machine_status(), 0..4),
        brake in option::of((vec(any::<u128>(), 0..3), any::<u64>(), any::<u64>())),
    ) {
        let brake = brake.map(|(ids, held_ms, left_ms)| BrakeStatus {
            machines: ids.into_iter().map(MachineId::new).collect(),
            held_ms,
            left_ms,
        });
        let status = ClusterStatus { cluster: ClusterId::new(cluster), term: Term(term), machines, brake };
        prop_assert_eq!(ClusterStatus::try_from(wire(&v1::ClusterStatus::from(status.clone()))), Ok(status));
    }
}

fn name(number: usize) -> UnitName {
    format!("unit-{number}.service").parse().expect("a name")
}

fn large_assignments() -> ToAgent {
    let text: Arc<str> = "x".repeat(300_000).into();
    let hold = |number| Assignment {
        name: name(number),
        epoch: Epoch::default(),
        hash: ContentHash::of(text.as_bytes()),
        content: Some(text.clone()),
        target: Target::Launched,
        exclusive: None,
    };
    let remove = |number| Removal { name: name(number), epoch: Epoch::default() };
    let assignments = Assignments {
        snapshot: true,
        revision: Revision(7),
        hold: (0..20).map(hold).collect(),
        remove: (0..60_000).map(remove).collect(),
    };
    ToAgent { term: Term(3), session: SessionNumber(9), body: LeaderMessage::Assignments(assignments) }
}

#[test]
fn large_assignments_come_in_parts_and_whole() {
    let said = large_assignments();
    let parts = split_to_agent(said.clone());
    // 3 files of 300 kB in each of 6 parts and 2 in the last, which has room for removals too.
    assert_eq!(parts.len(), 8, "6 MB of files and 1 MB of removals");
    for part in &parts {
        assert!(part.encoded_len() <= 2 * PART_BYTES + 100, "a part of {} bytes", part.encoded_len());
    }
    assert_eq!(hear_leader(said.clone()), [said]);
}

#[test]
fn a_file_of_the_largest_size_is_one_part() {
    let mut said = large_assignments();
    if let LeaderMessage::Assignments(assignments) = &mut said.body {
        assignments.remove.clear();
        assignments.hold.truncate(2);
        for hold in &mut assignments.hold {
            hold.content = Some("x".repeat(muster_core::unit::MAX_UNIT_FILE_BYTES).into());
        }
    }
    assert_eq!(split_to_agent(said.clone()).len(), 2);
    assert_eq!(hear_leader(said.clone()), [said]);
}

#[test]
fn a_long_hello_comes_in_parts_and_whole() {
    let unit = |number| HeldUnit {
        name: name(number),
        epoch: Epoch::default(),
        hash: ContentHash::of(b""),
        target: Target::Launched,
        observation: Observation::Refused("x".repeat(1000)),
    };
    let hello = Hello {
        cluster: None,
        machine: MachineId::new(1),
        boot: BootId::new(2),
        key: AgentKey::new(3),
        session: SessionNumber(1),
        term: Term(0),
        address: String::new(),
        labels: Labels::new(),
        capacity: Capacity::default(),
        version: String::new(),
        pid1_age: Duration::ZERO,
        leaving: false,
        streams: None,
        units: (0..5_000).map(unit).collect(),
    };
    let said = FromAgent::Hello(hello);
    assert_eq!(split_from_agent(said.clone()).len(), 6, "5 MB and more");
    assert_eq!(hear_agent(said.clone()), [said]);
}

#[test]
fn a_long_report_comes_as_several() {
    let report = |number| UnitReport {
        name: name(number),
        epoch: Epoch::default(),
        change: ReportedChange::Observed(Observation::Refused("x".repeat(1000))),
    };
    let reports: Vec<_> = (0..5_000).map(report).collect();
    let heard = hear_agent(FromAgent::Report(reports.clone()));
    assert_eq!(heard.len(), 5, "5 MB and more");
    let whole: Vec<_> = heard
        .into_iter()
        .flat_map(|said| match said {
            FromAgent::Report(reports) => reports,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(whole, reports);
}

#[test]
fn an_interrupted_message_is_an_error() {
    let mut parts = split_to_agent(large_assignments()).into_iter();
    let mut joined = ToAgentParts::default();
    assert_eq!(joined.push(parts.next().expect("a part")), Ok(None));
    let ack =
        ToAgent { term: Term(3), session: SessionNumber(9), body: LeaderMessage::HeartbeatAck { number: 1 } };
    let error = joined.push(split_to_agent(ack).remove(0)).expect_err("interrupted");
    assert_eq!(error.to_string(), "assignments: another message came before the rest of this one");

    // The same list again, from its start, under another revision.
    let mut joined = ToAgentParts::default();
    assert_eq!(joined.push(parts.next().expect("a part")), Ok(None));
    let mut other = parts.next().expect("a part");
    if let Some(v1::leader_message::Body::Assignments(assignments)) = &mut other.body {
        assignments.revision += 1;
    }
    assert!(joined.push(other).is_err());
}

#[test]
fn a_list_without_end_is_an_error() {
    let unit = v1::HeldUnit { name: "a.service".to_owned(), ..Default::default() };
    let part = || v1::AgentMessage {
        body: Some(v1::agent_message::Body::Hello(v1::Hello {
            units: vec![unit.clone(); MAX_PART_UNITS / 4],
            more: true,
            ..Default::default()
        })),
    };
    let mut joined = FromAgentParts::default();
    for _ in 0..4 {
        assert_eq!(joined.push(part()), Ok(None));
    }
    let error = joined.push(part()).expect_err("too many");
    assert_eq!(error.to_string(), "hello.units: more than 100000 units");
}

fn request() -> v1::CommandRequest {
    let unit = |number| UnitArgument { name: name(number), content: Some("[Service]\n".into()) };
    let units = (0..3).map(unit).collect();
    Command { id: CommandId::new(1), verb: Verb::Start, units, replace: false }.into()
}

#[test]
fn errors_name_the_field() {
    fn error(change: impl FnOnce(&mut v1::CommandRequest)) -> String {
        let mut request = request();
        change(&mut request);
        match Command::try_from(request) {
            Err(CommandRequestError::Malformed(error)) => error.to_string(),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(error(|request| request.id.clear()), "id: 0 bytes where 16 are expected");
    assert_eq!(error(|request| request.verb = 0), "verb: 0 is no value that this version knows");
    assert_eq!(error(|request| request.verb = 99), "verb: 99 is no value that this version knows");
    assert_eq!(
        error(|request| "web".clone_into(&mut request.units[1].name)),
        "units[1].name: \"web\": unit name must contain \".\""
    );

    let mut report = v1::UnitReport::from(UnitReport {
        name: name(1),
        epoch: Epoch::default(),
        change: ReportedChange::Observed(Observation::Refused(String::new())),
    });
    report.change = Some(v1::unit_report::Change::Observed(v1::Observation { kind: None }));
    let body = v1::agent_message::Body::Report(v1::Report { units: vec![report] });
    let error = FromAgentParts::default().push(v1::AgentMessage { body: Some(body) }).expect_err("no kind");
    assert_eq!(error.to_string(), "report.units[0].observed.kind: missing");
    assert_eq!(error.field(), "report.units[0].observed.kind");
}

#[test]
fn a_file_that_is_no_text_is_the_users_mistake() {
    let mut request = request();
    request.units[1].content = Some(b"[Service]\nExecStart=/bin/\xff\n".to_vec().into());
    request.units[2].content = Some(vec![0xff; 2_000_000].into());
    let Err(CommandRequestError::Refused(error)) = Command::try_from(request) else { panic!("accepted") };
    assert_eq!(
        error.to_string(),
        "unit-1.service: line 2: unit file is not valid UTF-8\n\
         unit-2.service: unit file has 2000000 bytes, more than the 1048576 that are allowed"
    );
}

#[test]
fn a_deposed_leader_answers_with_a_status() {
    let status = command_response(Err(CommandError::NotLeader)).expect_err("a status");
    assert_eq!(status.code(), tonic::Code::Unavailable);
}
