//! Which scheduler a request goes to: those that are configured, in turn, and the one that is said to lead.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::config::{self, Endpoints};
use crate::failure::{Exit, Failure};
use crate::style::harmless;

/// For how long a request that no scheduler carries out is tried again.
pub const RETRY_FOR: Duration = Duration::from_secs(30);
/// How long to wait at most before all are asked once more: at first, and later.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MOST: Duration = Duration::from_secs(2);

/// Why a scheduler did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// Nothing, for this reason: there is no connection to it. It has done nothing.
    Unreached(String),
    /// Nothing that could be used, for this reason: it may have done it or not.
    Nothing(String),
    /// That it does not lead, and where the one that does listens, if it knows. It has done nothing.
    NotLeading(Option<String>),
}

/// The search for a scheduler that carries out one request: bounded in time, and said once.
#[derive(Debug)]
pub struct Search {
    until: Option<Instant>,
    pause: Duration,
    /// Those that were asked since the last pause.
    round: Vec<String>,
    /// What each has said last, in the order in which they were asked first.
    said: Vec<(String, Said)>,
    told: bool,
    in_doubt: bool,
}

impl Search {
    /// Nobody was asked yet.
    pub fn new() -> Self {
        Self {
            until: None,
            pause: PAUSE_FIRST,
            round: Vec::new(),
            said: Vec::new(),
            told: false,
            in_doubt: false,
        }
    }

    /// One that says nothing until it ends.
    pub fn quiet() -> Self {
        Self { told: true, ..Self::new() }
    }

    /// Whether the request may have been carried out although nobody has said so.
    pub fn in_doubt(&self) -> bool {
        self.in_doubt
    }

    /// Waits until it is time to ask again, and says whom.
    ///
    /// # Errors
    /// [`Exit::Unreachable`] when [`RETRY_FOR`] has passed.
    pub async fn next(&mut self, endpoints: &Endpoints, asked: &str, said: Said) -> Result<String, Failure> {
        let until = *self.until.get_or_insert_with(|| Instant::now() + RETRY_FOR);
        let lost = match &said {
            // The first is the one that there was a connection to.
            Said::Unreached(cause) | Said::Nothing(cause) if self.said.is_empty() => {
                Some(format!("Lost the scheduler at {asked} ({cause})"))
            }
            _ => None,
        };
        let next = self.at_once(endpoints, asked, said);
        let pauses = format!("trying again for {} s.", RETRY_FOR.as_secs());
        match (&next, lost) {
            (Some(_), Some(lost)) => self.tell(&format!("{lost}; asking the others.")),
            (None, Some(lost)) => self.tell(&format!("{lost}; {pauses}")),
            (None, None) => self.tell(&format!("No scheduler leads at the moment; {pauses}")),
            (Some(_), None) => {}
        }
        if let Some(next) = next {
            return Ok(next);
        }
        if Instant::now() >= until {
            return Err(failure(endpoints, &self.said));
        }
        // Clients that lost the same scheduler must not come back together.
        sleep(self.pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        self.pause = (self.pause * 2).min(PAUSE_MOST);
        self.round.clear();
        Ok(endpoints.first().to_owned())
    }

    fn tell(&mut self, text: &str) {
        if !std::mem::replace(&mut self.told, true) {
            anstream::eprintln!("{}", harmless(text));
        }
    }

    /// Whom to ask without a pause: the one that is said to lead, or the next that was not asked since the last pause.
    fn at_once(&mut self, endpoints: &Endpoints, asked: &str, said: Said) -> Option<String> {
        self.round.push(asked.to_owned());
        self.in_doubt |= matches!(said, Said::Nothing(_));
        let leader = match &said {
            Said::NotLeading(Some(leader)) => config::address(leader).ok(),
            _ => None,
        };
        match self.said.iter_mut().find(|(address, _)| address == asked) {
            Some((_, last)) => *last = said,
            None => self.said.push((asked.to_owned(), said)),
        }
        let new = |address: &String| !self.round.contains(address);
        leader.filter(new).or_else(|| endpoints.addresses.iter().find(|address| new(address)).cloned())
    }
}

/// That no scheduler does what is asked: what each has said, and what to check.
pub fn failure(endpoints: &Endpoints, said: &[(String, Said)]) -> Failure {
    if let ([(address, Said::Unreached(cause) | Said::Nothing(cause))], [_]) =
        (said, &endpoints.addresses[..])
    {
        return Failure::new(
            Exit::Unreachable,
            format_args!(
                "cannot reach the scheduler at {address} ({}): {cause}\n{}",
                endpoints.source,
                checks(endpoints)
            ),
        );
    }
    let lines: Vec<String> = said.iter().map(|(address, said)| format!("  {address}: {said}")).collect();
    let lines = lines.join("\n");
    let answers = said.iter().filter(|(_, said)| matches!(said, Said::NotLeading(_))).count();
    let message = if answers == 0 {
        format!("cannot reach any scheduler ({}):\n{lines}\n{}", endpoints.source, checks(endpoints))
    } else if answers == said.len() {
        format!(
            "no scheduler leads at the moment:\n{lines}\n  `musterctl schedulers` shows them and their store"
        )
    } else {
        format!(
            "no scheduler that can be reached leads:\n{lines}\n  `musterctl schedulers` shows them and their store"
        )
    };
    Failure::new(Exit::Unreachable, message)
}

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unreached(cause) | Self::Nothing(cause) => f.write_str(cause),
            Self::NotLeading(Some(leader)) => write!(f, "does not lead, and says that {leader} does"),
            Self::NotLeading(None) => f.write_str("does not lead, and knows of none that does"),
        }
    }
}

/// What keeps schedulers from being reached, and how to find out.
fn checks(endpoints: &Endpoints) -> String {
    let [is, address, in_between] = match endpoints.addresses.len() {
        1 => ["Is it running?            ", "Is this its address?      ", "Is something in between?  "],
        _ => ["Are they running?           ", "Are these their addresses?  ", "Is something in between?    "],
    };
    let (machines, others) = if endpoints.addresses.len() == 1 {
        ("on its machine", "names another")
    } else {
        ("on their machines", "names others")
    };
    let mut ports: Vec<&str> =
        endpoints.addresses.iter().filter_map(|address| Some(address.rsplit_once(':')?.1)).collect();
    ports.sort_unstable();
    ports.dedup();
    format!(
        "  {is}systemctl status muster-scheduler   ({machines})\n  \
         {address}--endpoint, {} or `endpoint` in {} {others}\n  \
         {in_between}a firewall must let TCP port {} through",
        config::ENDPOINT_VARIABLE,
        "~/.config/muster/ctl.toml",
        ports.join(", "),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Source;

    fn endpoints(addresses: &[&str]) -> Endpoints {
        let addresses = addresses.iter().map(|address| (*address).to_owned()).collect();
        Endpoints { addresses, source: Source::Environment }
    }

    fn lost() -> Said {
        Said::Unreached("Connection refused".to_owned())
    }

    fn not_leading(leader: Option<&str>) -> Said {
        Said::NotLeading(leader.map(str::to_owned))
    }

    #[test]
    fn what_to_check_is_said() {
        let told = |addresses: &[&str], said: &[(&str, Said)]| {
            let said: Vec<_> =
                said.iter().map(|(address, said)| ((*address).to_owned(), said.clone())).collect();
            let failure = failure(&endpoints(addresses), &said);
            assert_eq!(failure.exit, Exit::Unreachable);
            failure.message
        };
        let both = ["10.0.0.1:7400", "10.0.0.2:7400"];
        let all = [
            told(&["10.0.0.1:7401"], &[("10.0.0.1:7401", lost())]),
            told(&both, &[(both[0], lost()), (both[1], Said::Unreached("No route to host".to_owned()))]),
            told(&both, &[(both[0], not_leading(None)), (both[1], not_leading(None))]),
            told(&both, &[(both[0], not_leading(Some(both[1]))), (both[1], lost())]),
            told(&both[..1], &[(both[0], not_leading(None))]),
        ];
        insta::assert_snapshot!(all.join("\n----\n"));
    }

    #[test]
    fn the_leader_is_asked_at_once_and_everybody_once() {
        let endpoints = endpoints(&["a:1", "b:1", "c:1"]);
        let mut search = Search::new();
        assert_eq!(search.at_once(&endpoints, "b:1", not_leading(Some("d:1"))).as_deref(), Some("d:1"));
        assert_eq!(search.at_once(&endpoints, "d:1", lost()).as_deref(), Some("a:1"));
        // What b has said before is not followed a second time, and nonsense never.
        assert_eq!(search.at_once(&endpoints, "a:1", not_leading(Some("d:1"))).as_deref(), Some("c:1"));
        assert_eq!(search.at_once(&endpoints, "c:1", not_leading(Some("::"))), None);
        assert!(!search.in_doubt());
        search.at_once(&endpoints, "a:1", Said::Nothing("Connection reset".to_owned()));
        search.at_once(&endpoints, "a:1", lost());
        assert!(search.in_doubt(), "for good");
    }

    #[tokio::test(start_paused = true)]
    async fn a_search_ends() {
        let endpoints = endpoints(&["a:1", "b:1"]);
        let mut search = Search::new();
        let start = Instant::now();
        let mut asked = "a:1".to_owned();
        let mut times = 0;
        let failure = loop {
            times += 1;
            match search.next(&endpoints, &asked, not_leading(None)).await {
                Ok(next) => asked = next,
                Err(failure) => break failure,
            }
        };
        assert!(failure.message.starts_with("no scheduler leads at the moment:\n"), "{}", failure.message);
        assert!(!search.in_doubt());
        let took = start.elapsed();
        assert!((RETRY_FOR..RETRY_FOR + PAUSE_MOST).contains(&took), "{took:?}");
        assert!((2 * 15..2 * 40).contains(&times), "{times}");
    }
}
