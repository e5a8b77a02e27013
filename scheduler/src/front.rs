//! Whom agents and clients meet: the leader where this scheduler leads, else who says where that is.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use muster_core::ids::{ClusterId, Term};
use muster_daemon::clock;
use muster_proto::not_leading;
use tonic::Status;

use crate::events::Events;
use crate::lead::LeaderHandle;
use crate::sessions::Sessions;
use crate::streams::Streams;
use crate::watchers::Watchers;

/// What this scheduler is at the moment.
#[derive(Debug, Default)]
pub(crate) struct Front(RwLock<Role>);

#[derive(Clone, Debug)]
pub(crate) enum Role {
    /// Another leads, where that is known: there.
    Follows {
        leader: Option<String>,
    },
    Leads(Leading),
}

impl Default for Role {
    fn default() -> Self {
        Self::Follows { leader: None }
    }
}

/// All that a leader is reached through.
#[derive(Clone, Debug)]
pub(crate) struct Leading {
    pub(crate) cluster: ClusterId,
    /// The term, which may rise.
    pub(crate) term: Arc<AtomicU64>,
    /// Since when, in ms since 1970.
    pub(crate) since_ms: u64,
    pub(crate) leader: LeaderHandle,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) watchers: Arc<Watchers>,
    pub(crate) events: Arc<Events>,
    pub(crate) streams: Arc<Streams>,
}

impl Leading {
    pub(crate) fn term(&self) -> Term {
        Term(self.term.load(Ordering::Relaxed))
    }

    /// Whether another may lead by now: this one answers nobody until it knows better.
    fn is_in_doubt(&self) -> bool {
        self.leader.until().is_some_and(|until| clock::now() >= until)
    }

    /// Ends all streams.
    pub(crate) fn close(&self) {
        self.sessions.close_all();
        self.watchers.close_all();
        self.events.stop_serving();
    }
}

impl Front {
    pub(crate) fn role(&self) -> Role {
        match &*self.0.read().unwrap_or_else(PoisonError::into_inner) {
            Role::Leads(leading) if leading.is_in_doubt() => Role::Follows { leader: None },
            role => role.clone(),
        }
    }

    /// The leader.
    ///
    /// # Errors
    /// Where this scheduler does not lead: who does, if that is known.
    pub(crate) fn leading(&self) -> Result<Leading, Status> {
        match self.role() {
            Role::Leads(leading) => Ok(leading),
            Role::Follows { leader } => Err(not_leading(leader.as_deref())),
        }
    }

    /// Ends all streams, if this scheduler has any.
    pub(crate) fn close(&self) {
        if let Role::Leads(leading) = &*self.0.read().unwrap_or_else(PoisonError::into_inner) {
            leading.close();
        }
    }

    /// What the service manager's status line says of it; none where this scheduler leads, which says more.
    pub(crate) fn status(&self) -> Option<String> {
        match self.role() {
            Role::Leads(_) => None,
            Role::Follows { leader: Some(leader) } => Some(format!("following {leader}")),
            Role::Follows { leader: None } => Some("no scheduler leads".to_owned()),
        }
    }

    /// It leads.
    pub(crate) fn leads(&self, leading: Leading) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Role::Leads(leading);
    }

    /// Another leads, or nobody.
    pub(crate) fn follows(&self, leader: Option<String>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Role::Follows { leader };
    }
}
