//! The schedulers, and the store that they share.

use std::io::{self, Write};
use std::time::Duration;

use muster_proto::{EtcdMember, SchedulerRole, SchedulerStatus, StoreStatus};
use serde_json::{Value, json};

use super::ago;
use super::listing::mebibytes;
use super::table::{Columns, Field, Rows, write_array, write_table};
use crate::style::{Role, harmless};

/// One scheduler that was asked.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Where it was asked.
    pub asked: String,
    /// What it says of itself, or why it says nothing.
    pub status: Result<SchedulerStatus, String>,
}

impl Seen {
    fn address(&self) -> &str {
        self.status.as_ref().map_or(&self.asked, |status| &status.address)
    }
}

/// The one that leads, and where it was asked. Of several that say so it is the one of the highest term: the others do not
/// know yet.
pub fn leading(seen: &[Seen]) -> Option<(&str, &SchedulerStatus)> {
    let all = seen.iter().filter_map(|seen| Some((seen.asked.as_str(), seen.status.as_ref().ok()?)));
    all.filter(|(_, status)| status.role == SchedulerRole::Leading).max_by_key(|(_, status)| status.term)
}

/// What a scheduler says of itself, in one line.
pub fn say(seen: &Seen) -> String {
    let address = seen.address();
    match &seen.status {
        Err(why) => format!("{address}: {why}"),
        Ok(status) => match (status.role, &status.leader) {
            (SchedulerRole::Leading, _) => format!("{address}: leads, in term {}", status.term),
            (SchedulerRole::Following, Some(leader)) => format!("{address}: follows {leader}"),
            _ => format!("{address}: knows of none that leads"),
        },
    }
}

/// The schedulers, what is wrong with them, and how their store is. `now` is Unix time.
///
/// # Errors
/// When `out` cannot be written to.
pub fn write_page(out: &mut impl Write, seen: &[Seen], now: Duration, columns: Columns) -> io::Result<()> {
    let rows: Rows = seen.iter().map(|seen| row(seen, now)).collect();
    write_table(out, &rows, &["address", "role", "since", "behind", "version"], true, columns)?;
    for problem in problems(seen) {
        writeln!(out, "{}", harmless(&problem))?;
    }
    let all = || seen.iter().filter_map(|seen| seen.status.as_ref().ok());
    // As the leader sees it: nothing is written that does not reach it from there.
    let Some(view) = leading(seen).map(|(_, status)| status).or_else(|| all().next()) else { return Ok(()) };
    writeln!(out)?;
    match &view.store {
        StoreStatus::Embedded => writeln!(out, "Store: a file of the scheduler's own."),
        StoreStatus::Etcd(members) => {
            writeln!(out, "Store: etcd, as {} sees it.", harmless(&view.address))?;
            let rows: Rows = members.iter().map(member).collect();
            write_table(out, &rows, &["endpoint", "role", "version", "size", "alarms"], true, columns)?;
            for problem in members.iter().filter_map(trouble) {
                writeln!(out, "{}", harmless(&problem))?;
            }
            for other in all().filter(|other| other.address != view.address) {
                for problem in
                    troubles(other).filter(|problem| !troubles(view).any(|known| known == *problem))
                {
                    writeln!(out, "{}", harmless(&format!("As {} sees it, {problem}", other.address)))?;
                }
            }
            Ok(())
        }
    }
}

fn row(seen: &Seen, now: Duration) -> Vec<Field> {
    let status = seen.status.as_ref().ok();
    let (role, look) = match status.map(|status| status.role) {
        Some(SchedulerRole::Leading) => ("leading", Role::Good),
        Some(SchedulerRole::Following) => ("following", Role::Plain),
        Some(SchedulerRole::Waiting) => ("waiting", Role::Warn),
        None => ("unreachable", Role::Bad),
    };
    let leads = status.filter(|status| status.role == SchedulerRole::Leading);
    let since = leads.and_then(|status| status.since_ms).map(Duration::from_millis);
    vec![
        Field::text("address", seen.address()),
        Field::text("role", role).in_role(look),
        Field::optional("since", since.map(|since| ago(now.saturating_sub(since)))),
        Field::optional("behind", status.map(|status| status.behind.to_string())),
        Field::optional("version", status.map(|status| status.version.as_str())),
    ]
}

/// What is wrong with the schedulers, one sentence each.
fn problems(seen: &[Seen]) -> Vec<String> {
    let mut problems: Vec<String> = Vec::new();
    for seen in seen {
        if let Err(why) = &seen.status {
            problems.push(format!("{} cannot be asked: {why}.", seen.asked));
        }
    }
    let all = || seen.iter().filter_map(|seen| seen.status.as_ref().ok());
    let Some((_, leader)) = leading(seen) else {
        if all().next().is_some() {
            problems.push(
                "No scheduler leads at the moment: units run on, and nothing is placed or moved.".to_owned(),
            );
        }
        return problems;
    };
    for other in all().filter(|other| other.address != leader.address) {
        let address = &other.address;
        if other.cluster.is_some() && other.cluster != leader.cluster {
            problems.push(format!("{address} has a store of another cluster than {}.", leader.address));
        } else if other.role == SchedulerRole::Leading {
            problems.push(format!(
                "{address} does not know yet that {} leads, in the later term {}.",
                leader.address, leader.term
            ));
        }
    }
    problems
}

fn member(member: &EtcdMember) -> Vec<Field> {
    let answer = member.answer.as_ref();
    let (role, look) = match (answer, &member.problem) {
        (None, _) => ("unreachable", Role::Bad),
        (Some(answer), None) => (if answer.leads { "leader" } else { "member" }, Role::Good),
        (Some(answer), Some(_)) => (if answer.leads { "leader" } else { "member" }, Role::Warn),
    };
    let size = answer.map(|answer| match answer.quota_bytes {
        Some(quota) => format!("{} of {}", mebibytes(answer.db_bytes), mebibytes(quota)),
        None => mebibytes(answer.db_bytes),
    });
    let alarms = answer.map(|answer| answer.alarms.join(", ")).filter(|alarms| !alarms.is_empty());
    vec![
        Field::text("endpoint", member.endpoint.as_str()),
        Field::text("role", role).in_role(look),
        Field::optional("version", answer.map(|answer| answer.version.as_str())),
        Field::optional("size", size),
        Field::optional("alarms", alarms).in_role(Role::Bad),
    ]
}

/// What is wrong with a member of the store, in one sentence.
fn trouble(member: &EtcdMember) -> Option<String> {
    Some(format!("{}: {}.", member.endpoint, member.problem.as_ref()?))
}

fn troubles(status: &SchedulerStatus) -> impl Iterator<Item = String> {
    let members = match &status.store {
        StoreStatus::Embedded => &[][..],
        StoreStatus::Etcd(members) => members,
    };
    members.iter().filter_map(trouble)
}

/// An array of the schedulers.
///
/// # Errors
/// When `out` cannot be written to.
pub fn write_json(out: &mut impl Write, seen: &[Seen]) -> io::Result<()> {
    write_array(out, seen.iter().map(as_json))
}

fn as_json(seen: &Seen) -> Value {
    let status = match &seen.status {
        Ok(status) => status,
        Err(why) => return json!({"address": seen.asked, "role": "unreachable", "problem": why}),
    };
    let registered: Vec<Value> = status
        .registered
        .iter()
        .map(|other| json!({"address": other.address, "version": other.version}))
        .collect();
    json!({
        "address": status.address,
        "role": match status.role {
            SchedulerRole::Leading => "leading",
            SchedulerRole::Following => "following",
            SchedulerRole::Waiting => "waiting",
        },
        "version": status.version,
        "cluster": status.cluster.map(|cluster| cluster.to_string()),
        "term": status.term.0,
        "leader": status.leader,
        "since_ms": status.since_ms,
        "behind": status.behind,
        "registered": registered,
        "store": match &status.store {
            StoreStatus::Embedded => json!({"kind": "embedded"}),
            StoreStatus::Etcd(members) => json!({
                "kind": "etcd",
                "members": members.iter().map(member_as_json).collect::<Vec<_>>(),
            }),
        },
    })
}

fn member_as_json(member: &EtcdMember) -> Value {
    let mut object = json!({"endpoint": member.endpoint, "problem": member.problem});
    if let (Some(answer), Some(object)) = (&member.answer, object.as_object_mut()) {
        object.insert("version".to_owned(), json!(answer.version));
        object.insert("db_bytes".to_owned(), json!(answer.db_bytes));
        object.insert("quota_bytes".to_owned(), json!(answer.quota_bytes));
        object.insert("leads".to_owned(), json!(answer.leads));
        object.insert("alarms".to_owned(), json!(answer.alarms));
    }
    object
}

#[cfg(test)]
mod tests {
    use muster_core::ids::{ClusterId, Term};
    use muster_proto::{EtcdAnswer, RegisteredScheduler};

    use super::*;

    const NOW: Duration = Duration::from_secs(1_800_000_000);

    fn address(last: u8) -> String {
        format!("198.18.0.{last}:7400")
    }

    fn scheduler(last: u8, role: SchedulerRole, leader: Option<u8>, store: StoreStatus) -> SchedulerStatus {
        let registered = |last| RegisteredScheduler { address: address(last), version: "0.2.0".to_owned() };
        SchedulerStatus {
            address: address(last),
            version: "0.2.0".to_owned(),
            cluster: Some(ClusterId::new(1)),
            role,
            term: Term(leader.map_or(0, |_| 7)),
            leader: leader.map(address),
            since_ms: leader.map(|_| 1_799_999_700_000),
            behind: 0,
            registered: vec![registered(21), registered(22), registered(23)],
            store,
        }
    }

    fn member(last: u8, problem: Option<&str>, answers: bool) -> EtcdMember {
        let answer = EtcdAnswer {
            version: "3.6.1".to_owned(),
            db_bytes: 20 * 1024 * 1024,
            quota_bytes: Some(2048 * 1024 * 1024),
            leads: last == 22,
            alarms: problem.map(|_| "NOSPACE".to_owned()).into_iter().collect(),
        };
        EtcdMember {
            endpoint: format!("http://198.18.0.{last}:2379"),
            problem: problem.map(str::to_owned),
            answer: answers.then_some(answer),
        }
    }

    fn page(seen: &[Seen]) -> String {
        let mut out = Vec::new();
        write_page(&mut out, seen, NOW, Columns::Blanks).expect("written");
        let page = String::from_utf8(out).expect("text");
        let page = anstream::adapter::strip_str(&page);
        let mut json = Vec::new();
        write_json(&mut json, seen).expect("written");
        let parsed: Value = serde_json::from_slice(&json).expect("JSON");
        assert!(parsed.is_array());
        let json = String::from_utf8(json).expect("text");
        format!("{page}----\n{json}")
    }

    fn seen(status: SchedulerStatus) -> Seen {
        Seen { asked: status.address.clone(), status: Ok(status) }
    }

    #[test]
    fn one_scheduler_alone() {
        let mut alone = scheduler(21, SchedulerRole::Leading, Some(21), StoreStatus::Embedded);
        alone.registered.truncate(1);
        insta::assert_snapshot!(page(&[seen(alone)]));
    }

    #[test]
    fn three_schedulers_with_an_etcd() {
        let cut = "connection refused";
        let etcd = vec![member(21, None, true), member(22, Some("its database is full"), true)];
        let cut_off = vec![member(21, Some(cut), false), member(22, Some("its database is full"), true)];
        let leader = scheduler(22, SchedulerRole::Leading, Some(22), StoreStatus::Etcd(etcd));
        let mut follower = scheduler(21, SchedulerRole::Following, Some(22), StoreStatus::Etcd(cut_off));
        follower.behind = 12;
        let gone = Seen { asked: address(23), status: Err("No route to host".to_owned()) };
        insta::assert_snapshot!(page(&[seen(follower), seen(leader), gone]));
    }

    #[test]
    fn nobody_leads() {
        let etcd = StoreStatus::Etcd(vec![member(21, Some("connection refused"), false)]);
        let waiting = scheduler(21, SchedulerRole::Waiting, None, etcd);
        let gone = Seen { asked: address(22), status: Err("Connection refused".to_owned()) };
        insta::assert_snapshot!(page(&[seen(waiting), gone.clone()]));
        insta::assert_snapshot!(page(&[gone]));
    }

    #[test]
    fn the_later_term_leads() {
        let old = scheduler(21, SchedulerRole::Leading, Some(21), StoreStatus::Etcd(Vec::new()));
        let new = SchedulerStatus {
            term: Term(8),
            ..scheduler(22, SchedulerRole::Leading, Some(22), StoreStatus::Etcd(Vec::new()))
        };
        let other = SchedulerStatus {
            cluster: Some(ClusterId::new(2)),
            ..scheduler(23, SchedulerRole::Leading, Some(23), StoreStatus::Embedded)
        };
        let all = [seen(old), seen(new), seen(other)];
        assert_eq!(leading(&all).map(|(asked, _)| asked), Some("198.18.0.22:7400"));
        assert_eq!(
            problems(&all),
            [
                "198.18.0.21:7400 does not know yet that 198.18.0.22:7400 leads, in the later term 8.",
                "198.18.0.23:7400 has a store of another cluster than 198.18.0.22:7400.",
            ]
        );
    }
}
