//! What hangs on a scheduler's life: a lease in etcd, renewed for as long as the process runs. Its place in the list of
//! schedulers hangs on it, and the leader's key where it is elected. Renewing a lease writes nothing.

use std::sync::Arc;
use std::time::Duration;

use muster_core::time::Time;
use muster_daemon::clock;
use muster_etcd::{Client, Error, pb};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tracing::{info, warn};
use uuid::Uuid;

use super::keys::{Keys, op};
use super::mirror::SchedulerRecord;

/// How long one request may take, and how long it is until the next one after one has failed.
const ANSWER: Duration = Duration::from_secs(1);
const AGAIN: Duration = Duration::from_millis(100);

/// The shortest lease that etcd grants with its default settings, in seconds: one and a half of its own election time-outs.
const SHORTEST: u64 = 2;

/// The longest that is asked for, in seconds: however long machines' leases last, somebody is to lead.
const LONGEST: u64 = 10;

/// How long a scheduler that is dead counts as alive, in seconds, where machines' leases last so long: two fifths of that, and
/// 10 s at most.
/// Another one is elected then (etcd looks for leases that are over twice a second), and each agent finds it before its own
/// lease is over, so that the death of a leader costs no machine its lease.
fn ttl(machine_lease: Duration) -> i64 {
    let seconds = (machine_lease.as_secs() * 2 / 5).clamp(SHORTEST, LONGEST);
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

/// How long an election lasts that is not renewed, where machines' leases last so long.
pub fn election_lasts(machine_lease: Duration) -> Duration {
    Duration::from_secs(ttl(machine_lease).unsigned_abs())
}

/// A lease that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) id: i64,
    /// Until then at least, by this machine's clock: counted from when the last renewal was asked for, less what clocks
    /// may drift.
    pub(super) until: Time,
}

/// Keeps a lease.
#[derive(Debug)]
pub(super) struct Session {
    lease: watch::Receiver<Option<Lease>>,
    client: Arc<Client>,
    task: JoinHandle<()>,
}

impl Session {
    /// Renews from now on; where machines' leases last so long.
    pub(super) fn start(
        client: Arc<Client>,
        keys: Keys,
        id: Uuid,
        record: SchedulerRecord,
        machine_lease: Duration,
    ) -> Self {
        let (lease, watched) = watch::channel(None);
        let keeper = Keeper { client: Arc::clone(&client), keys, id, record, ttl: ttl(machine_lease) };
        let task = tokio::spawn(keeper.keep(lease));
        Self { lease: watched, client, task }
    }

    /// The lease, and what becomes of it.
    pub(super) fn lease(&self) -> watch::Receiver<Option<Lease>> {
        self.lease.clone()
    }

    /// Ends the lease, and with it all that hangs on it.
    pub(super) async fn end(self) {
        self.task.abort();
        let Some(lease) = *self.lease.borrow() else { return };
        if let Err(error) = self.client.revoke(lease.id, ANSWER).await {
            info!(%error, "the lease in etcd could not be ended; it ends by itself");
        }
    }
}

/// What is needed to renew a lease.
struct Keeper {
    client: Arc<Client>,
    keys: Keys,
    id: Uuid,
    record: SchedulerRecord,
    /// How long the lease is to last without being renewed, in seconds.
    ttl: i64,
}

impl Keeper {
    async fn keep(self, lease: watch::Sender<Option<Lease>>) {
        let mut complaint = String::new();
        // Two renewals may fail.
        let interval = Duration::from_secs(self.ttl.unsigned_abs()) / 3;
        loop {
            let first = match self.begin().await {
                Ok(first) => first,
                Err(error) => {
                    complain(&mut complaint, &error);
                    sleep(pause_after(&error)).await;
                    continue;
                }
            };
            complaint.clear();
            lease.send_replace(Some(first));
            sleep(interval).await;
            loop {
                let asked = clock::now();
                match self.client.keep_alive(first.id, interval).await {
                    Ok(ttl) => {
                        complaint.clear();
                        lease.send_replace(Some(Lease { id: first.id, until: until(asked, ttl) }));
                        sleep(interval).await;
                    }
                    Err(Error::NoLease) => break,
                    Err(error) => {
                        complain(&mut complaint, &error);
                        sleep(pause_after(&error)).await;
                    }
                }
            }
            warn!("the lease in etcd is over: this scheduler was not heard for {} s", self.ttl);
            lease.send_replace(None);
        }
    }

    async fn begin(&self) -> Result<Lease, Error> {
        let asked = clock::now();
        let granted = self.client.grant(self.ttl, ANSWER).await?;
        let value = serde_json::to_vec(&self.record).map_err(|error| Error::Refused(error.to_string()))?;
        let register = op::put(self.keys.scheduler(&self.id.to_string()), value, granted.id);
        let request = pb::TxnRequest { success: vec![register], ..Default::default() };
        self.client.txn(request, ANSWER).await?;
        Ok(Lease { id: granted.id, until: until(asked, granted.ttl) })
    }
}

fn until(asked: Time, ttl: i64) -> Time {
    let ttl = Duration::from_secs(ttl.unsigned_abs());
    asked + ttl.saturating_sub(ttl / 50)
}

/// Another member may answer at once; what is refused is so for longer.
fn pause_after(error: &Error) -> Duration {
    if let Error::Unauthenticated { .. } | Error::Unanswered { .. } = error { AGAIN } else { ANSWER }
}

/// Once for each reason.
fn complain(last: &mut String, error: &Error) {
    let text = error.to_string();
    if *last != text {
        warn!(error = text, "etcd does not renew this scheduler's lease; it is tried again");
        *last = text;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_election_goes_by_machines_leases_within_bounds() {
        let lasts = |seconds| election_lasts(Duration::from_secs(seconds)).as_secs();
        assert_eq!([4, 5, 9, 10, 20, 25, 26, 300, 86400].map(lasts), [2, 2, 3, 4, 8, 10, 10, 10, 10]);
    }
}
