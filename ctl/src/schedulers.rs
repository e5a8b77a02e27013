//! `schedulers` and `step-down`: the schedulers themselves, whether one leads or not.

use std::collections::BTreeSet;
use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use muster_proto::v1::schedulers_client::SchedulersClient;
use muster_proto::{SchedulerStatus, is_not_leading, v1};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Status};

use crate::cli::{Output, SchedulersArgs};
use crate::client::{cause, transport};
use crate::config::{self, Endpoints};
use crate::failure::{Exit, Failure};
use crate::output::schedulers::{Seen, leading, say, write_json, write_page};
use crate::output::table::Columns;
use crate::reach::{RETRY_FOR, Said, failure};
use crate::style::harmless;

/// How long a scheduler may take to describe itself, which waits for nothing.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// How often is looked who leads while that is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// `schedulers`.
///
/// # Errors
/// When no scheduler answers.
pub async fn list(endpoints: &Endpoints, args: &SchedulersArgs, out: &mut impl Write) -> Result<(), Failure> {
    let seen = survey(endpoints).await?;
    match args.output {
        Output::Table => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            write_page(out, &seen, now, Columns::of_stdout())?;
        }
        Output::Json => write_json(out, &seen)?,
    }
    out.flush()?;
    if seen.iter().any(|seen| seen.status.is_ok()) { Ok(()) } else { Err(unreachable(endpoints, &seen)) }
}

/// `step-down`: waits until another scheduler leads.
///
/// # Errors
/// When none leads, it goes on leading, or no other one leads in time.
pub async fn step_down(endpoints: &Endpoints, out: &mut impl Write) -> Result<(), Failure> {
    let seen = survey(endpoints).await?;
    let Some((asked, leader)) = leading(&seen) else {
        if seen.iter().all(|seen| seen.status.is_err()) {
            return Err(unreachable(endpoints, &seen));
        }
        return Err(Failure::new(
            Exit::Unreachable,
            format_args!("no scheduler leads at the moment, so that none can step down:\n{}", all(&seen)),
        ));
    };
    let mut schedulers = SchedulersClient::new(transport(asked, endpoints)?.connect_lazy());
    match schedulers.step_down(v1::StepDownRequest { term: leader.term.0 }).await {
        Ok(_) => {}
        // It does not lead in that term any more, which is what was wanted.
        Err(status) if is_not_leading(&status) => {}
        Err(status) if status.code() == Code::FailedPrecondition => {
            return Err(Failure::failed(format_args!(
                "the scheduler at {} goes on leading: {}",
                leader.address,
                status.message()
            )));
        }
        Err(status) => {
            anstream::eprintln!("{}", harmless(&format!("The scheduler at {asked}: {}.", said(&status))));
        }
    }
    let until = Instant::now() + RETRY_FOR;
    loop {
        let seen = survey(endpoints).await?;
        match leading(&seen) {
            Some((_, next)) if next.term > leader.term && next.address != leader.address => {
                let (next, term, before) = (harmless(&next.address), next.term, harmless(&leader.address));
                return Ok(writeln!(out, "{next} leads now, in term {term}; {before} has stepped down.")?);
            }
            Some((_, next)) if next.term > leader.term => {
                return Err(Failure::failed(format_args!(
                    "{} has stepped down, and leads again (in term {}): no other scheduler took over; \
                     `musterctl schedulers` shows them",
                    leader.address, next.term
                )));
            }
            _ if Instant::now() >= until => {
                return Err(Failure::failed(format_args!(
                    "{} was asked to step down, but no other scheduler leads after {} s:\n{}",
                    leader.address,
                    RETRY_FOR.as_secs(),
                    all(&seen)
                )));
            }
            _ => sleep(LOOK_EVERY).await,
        }
    }
}

/// What each of them says, one to a line.
fn all(seen: &[Seen]) -> String {
    let lines: Vec<String> = seen.iter().map(|seen| format!("  {}", say(seen))).collect();
    lines.join("\n")
}

fn unreachable(endpoints: &Endpoints, seen: &[Seen]) -> Failure {
    let nothing =
        |seen: &Seen| (seen.asked.clone(), Said::Unreached(seen.status.clone().err().unwrap_or_default()));
    failure(endpoints, &seen.iter().map(nothing).collect::<Vec<_>>())
}

/// Asks every scheduler that is configured, and every one that these know of.
///
/// # Errors
/// An address that is none.
async fn survey(endpoints: &Endpoints) -> Result<Vec<Seen>, Failure> {
    let mut seen: Vec<Seen> = Vec::new();
    let mut known: BTreeSet<String> = BTreeSet::new();
    let mut next = endpoints.addresses.clone();
    while !next.is_empty() {
        let mut answers = JoinSet::new();
        for (index, asked) in next.drain(..).enumerate() {
            known.insert(asked.clone());
            let transport = transport(&asked, endpoints)?;
            answers.spawn(async move {
                let client = SchedulersClient::new(transport.connect_lazy());
                let status = timeout(ANSWER_WITHIN, describe(client)).await;
                let late = || Err(format!("it does not answer within {} s", ANSWER_WITHIN.as_secs()));
                (index, Seen { asked, status: status.unwrap_or_else(|_| late()) })
            });
        }
        let mut answers = answers.join_all().await;
        answers.sort_by_key(|(index, _)| *index);
        for (_, answer) in answers {
            let Ok(status) = &answer.status else {
                seen.push(answer);
                continue;
            };
            // By another name it may have been asked already.
            let same =
                |other: &Seen| other.status.as_ref().is_ok_and(|other| other.address == status.address);
            known.insert(status.address.clone());
            if !seen.iter().any(same) {
                seen.push(answer);
            }
        }
        let told = seen
            .iter()
            .filter_map(|seen| seen.status.as_ref().ok())
            .flat_map(|status| status.registered.iter().map(|other| &other.address).chain(&status.leader));
        // What is no address nobody can be asked at.
        let others: BTreeSet<String> = told.filter_map(|address| config::address(address).ok()).collect();
        next.extend(others.difference(&known).cloned());
    }
    Ok(seen)
}

async fn describe(
    mut client: SchedulersClient<tonic::transport::Channel>,
) -> Result<SchedulerStatus, String> {
    match client.describe(v1::DescribeRequest {}).await {
        Ok(answer) => SchedulerStatus::try_from(answer.into_inner())
            .map_err(|error| format!("it answers what this musterctl does not understand: {error}")),
        Err(status) => Err(said(&status)),
    }
}

/// Why there is no answer, in a few words.
fn said(status: &Status) -> String {
    match std::error::Error::source(status) {
        Some(source) => cause(source),
        None if status.code() == Code::Unimplemented => "it is of another version".to_owned(),
        None => status.message().to_owned(),
    }
}
