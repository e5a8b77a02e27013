//! A thousand agents lose their leader together.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use muster_core::command::Verb;
use muster_daemon::descriptors;
use tokio::time::sleep;

use crate::agents::Agents;
use crate::client::{Client, command, unit};
use crate::figure::{Bar, Figure, say};
use crate::several::{LIMIT, MEMBERS, Several};

const AGENTS: u32 = 1_000;
const UNITS: usize = 10_000;
const UNITS_PER_COMMAND: usize = 500;
const SCHEDULERS: usize = 3;
const RUNS: usize = 5;
/// How long clients pause after an answer.
const PAUSE: Duration = Duration::from_millis(10);

/// What one loss of a leader was like.
struct Loss {
    /// From the kill until all machines are up, in seconds.
    back: f64,
    /// The longest that the next leader took to list the machines until then, and for a command.
    list: f64,
    command: f64,
}

#[tokio::main(flavor = "current_thread")]
pub async fn measure() -> Result<Vec<Figure>> {
    descriptors::allow_all()?;
    let mut several = Several::start(SCHEDULERS).await?;
    let agents = Agents::start(AGENTS, &several.addresses());
    let mut client = several.client().await?;
    all_up(std::slice::from_ref(&client), Instant::now()).await?;
    client.launch(UNITS, UNITS_PER_COMMAND).await?;
    let mut losses = Vec::new();
    for run in 1..=RUNS {
        several.follow().await?;
        let loss = lose(&mut several).await?;
        say(&format!(
            "run {run} of {RUNS}: all back after {:.2} s; a list took {:.3} s at most, a command {:.3} s; {} lapses so far",
            loss.back,
            loss.list,
            loss.command,
            agents.lapses()
        ));
        losses.push(loss);
        several.join().await?;
    }
    let most = |of: fn(&Loss) -> f64| losses.iter().map(of).fold(0.0, f64::max);
    let scene = format!(
        "{AGENTS} agents without systemd in one process (core and streams are the agent's own, two connections each), {UNITS} units \
         active, {SCHEDULERS} schedulers and an etcd of {MEMBERS} members, all on this host; SIGKILL of the leader, {RUNS} times"
    );
    Ok(vec![
        Figure {
            name: "agents_1000_back_s",
            value: most(|loss| loss.back),
            unit: "s",
            bar: Some(Bar::AtMost(5.0)),
            method: format!("{scene}: from the kill until the next leader lists all machines as up; the longest"),
        },
        Figure {
            name: "agents_1000_lapses",
            value: f64::from(u32::try_from(agents.lapses())?),
            unit: "",
            bar: Some(Bar::AtMost(0.0)),
            method: "in the same runs: leases that ended before the next leader had renewed them, by the agents' own count"
                .to_owned(),
        },
        Figure {
            name: "agents_1000_answer_s",
            value: most(|loss| loss.list.max(loss.command)),
            unit: "s",
            bar: Some(Bar::AtMost(0.5)),
            method: format!(
                "in the same runs, until all are up: the longest that the next leader took for an answer to a client that lists \
                 all machines again and again ({:.3}), and to one that submits units ({:.3})",
                most(|loss| loss.list),
                most(|loss| loss.command)
            ),
        },
    ])
}

async fn lose(several: &mut Several) -> Result<Loss> {
    let (killed, clients) = several.kill_leader().await?;
    let mut command = 0.0_f64;
    let (back, list) = tokio::select! {
        listed = all_up(&clients, killed) => listed?,
        failed = submit_on(&clients, &mut command) => failed?,
    };
    Ok(Loss { back, list, command })
}

/// Lists all machines until all are up: how long after this moment that was, and the longest that a list took.
async fn all_up(clients: &[Client], since: Instant) -> Result<(f64, f64)> {
    let mut longest = 0.0_f64;
    loop {
        let mut seen = None;
        for client in clients {
            let asked = Instant::now();
            let Ok((up, unreachable)) = client.clone().machines().await else { continue };
            longest = longest.max(asked.elapsed().as_secs_f64());
            if up == AGENTS as usize {
                return Ok((since.elapsed().as_secs_f64(), longest));
            }
            seen = Some((up, unreachable));
        }
        ensure!(since.elapsed() < LIMIT, "only so many machines are up, and unreachable: {seen:?}");
        sleep(PAUSE).await;
    }
}

/// Submits units for ever; notes the longest that an acknowledgement took.
async fn submit_on<T>(clients: &[Client], longest: &mut f64) -> Result<T> {
    let mut number = 0;
    loop {
        for client in clients {
            let submission = command(Verb::Submit, vec![unit(UNITS + number)?]);
            let asked = Instant::now();
            if client.clone().execute(submission).await.is_ok() {
                *longest = longest.max(asked.elapsed().as_secs_f64());
                number += 1;
            }
        }
        sleep(PAUSE).await;
    }
}
