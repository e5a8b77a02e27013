//! Which scheduler is asked next: those that are configured, in turn, and the one that is said to lead.

/// The schedulers, and who of them was asked since the last pause.
#[derive(Debug)]
pub(super) struct Schedulers {
    /// Those that are configured.
    all: Vec<String>,
    /// Where the next turn begins.
    turn: usize,
    /// The one that is said to lead: it is asked next.
    leader: Option<String>,
    /// The one that was asked last, and whether that was since it is said to lead.
    current: (String, bool),
    asked: Vec<String>,
    /// The one that led and fell silent, until another one leads. Others may say for a while that it leads.
    silent: Option<String>,
}

impl Schedulers {
    /// `seed` says where to begin: not all agents begin with the same.
    pub fn new(all: Vec<String>, seed: u64) -> Self {
        let turn = usize::try_from(seed % (all.len() as u64).max(1)).unwrap_or_default();
        Self { all, turn, leader: None, current: (String::new(), false), asked: Vec::new(), silent: None }
    }

    /// The one to ask now.
    pub fn next(&mut self) -> String {
        if !self.has_unasked() {
            self.begin();
        }
        let leader = self.leader.take();
        let hinted = leader.is_some();
        let next = leader.or_else(|| self.unasked().map(str::to_owned)).unwrap_or_default();
        self.asked.push(next.clone());
        self.current = (next.clone(), hinted);
        next
    }

    /// The one that was asked last.
    pub fn current(&self) -> &str {
        &self.current.0
    }

    /// Whether that is said to lead.
    pub fn is_hinted(&self) -> bool {
        self.current.1
    }

    /// Whether that led and fell silent.
    pub fn is_silent(&self) -> bool {
        self.silent.as_ref() == Some(&self.current.0)
    }

    /// Whether there is another one to ask.
    pub fn has_others(&self) -> bool {
        self.all.iter().any(|one| *one != self.current.0)
    }

    /// That one is said to lead. False where it was asked already since the last pause, or has fallen silent: then it is asked
    /// in its turn, and not waited for as a leader is.
    pub fn lead(&mut self, leader: String) -> bool {
        let is_new = !self.asked.contains(&leader) && self.silent.as_ref() != Some(&leader);
        self.leader = Some(leader).filter(|_| is_new);
        is_new
    }

    /// Whether one was not asked since the last pause.
    pub fn has_unasked(&self) -> bool {
        self.leader.is_some() || self.unasked().is_some()
    }

    fn unasked(&self) -> Option<&str> {
        let (before, after) = self.all.split_at(self.turn.min(self.all.len()));
        let mut turn = after.iter().chain(before);
        turn.find(|one| !self.asked.contains(one)).map(String::as_str)
    }

    /// All may be asked again, beginning with another one than the last time.
    pub fn begin(&mut self) {
        self.asked.clear();
        self.leader = None;
        self.turn = (self.turn + 1) % self.all.len().max(1);
    }

    /// The leader has fallen silent: all others may be asked.
    pub fn begin_with_others(&mut self) {
        self.begin();
        self.asked.push(self.current.0.clone());
        self.silent = Some(self.current.0.clone());
    }

    /// The one that was asked last leads.
    pub fn leads(&mut self) {
        self.silent = None;
    }

    /// All may be asked again, beginning with the one that was asked last.
    pub fn begin_with_same(&mut self) {
        self.begin();
        self.leader = Some(self.current.0.clone()).filter(|current| !current.is_empty());
    }
}
