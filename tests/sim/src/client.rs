//! Clients: they ask, lose answers, ask again under the same id, and give up.

use muster_core::command::{
    Command, CommandError, CommandResult, LabelEdit, MachineCommand, MachineCommandError, Query, UnitArgument,
};
use muster_core::ids::CommandId;
use muster_core::leader::{Input, RequestId};

use crate::faults::{Ask, Order};
use crate::palette::ROLE;
use crate::queue::{MILLI, SECOND};
use crate::world::{Event, World};

/// One thing that a client wants, and how far it is with it.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) order: Order,
    pub(crate) attempts: u32,
    /// The attempt that is under way.
    request: Option<RequestId>,
    pub(crate) done: bool,
}

impl World {
    pub(crate) fn new_client(&mut self, order: Order) {
        self.clients.push(Client { order, attempts: 0, request: None, done: false });
        self.client_asks(self.clients.len() - 1);
    }

    /// The client's command, as it sends it every time.
    fn command(&self, client: usize) -> Option<Command> {
        let Ask::Command { verb, units, content, replace } = &self.clients[client].order.ask else {
            return None;
        };
        let text = |content: usize| self.palette.contents[content].text.clone();
        let argument = |unit: &usize| UnitArgument {
            name: self.palette.names[*unit].clone(),
            content: content.map(text),
        };
        let units = units.iter().map(argument).collect();
        Some(Command { id: command_id(client), verb: *verb, units, replace: *replace })
    }

    /// The client asks, or asks again.
    pub(crate) fn client_asks(&mut self, number: usize) {
        let client = &mut self.clients[number];
        if client.done {
            return;
        }
        if client.attempts >= client.order.tries && !self.healed {
            client.done = true;
            self.note(|| format!("client {number}: gives up"));
            return;
        }
        client.attempts += 1;
        self.requests += 1;
        let request = RequestId(self.requests);
        client.request = Some(request);
        let attempt = client.attempts;
        let wait = self.random.spread(MILLI / 2, 20 * MILLI);
        self.queue.after(wait, Event::Request(number, request));
        self.queue.after(8 * SECOND, Event::ClientWaited(number, attempt));
    }

    /// The request reaches the scheduler.
    pub(crate) fn request(&mut self, number: usize, request: RequestId) {
        if self.scheduler.process.is_none() {
            return self.client_tries_later(number, request);
        }
        self.asked.insert(request, number);
        let input = match (self.command(number), &self.clients[number].order.ask) {
            (Some(command), _) => Input::Command(request, command),
            (None, Ask::Machine { machine, availability }) => {
                let machines = vec![self.machines[*machine].id];
                let (id, availability) = (command_id(number), *availability);
                Input::Machines(request, MachineCommand { id, machines, availability })
            }
            (None, Ask::Relabel { machine, role }) => {
                let (machine, value) = (self.machines[*machine].id, role.map(str::to_owned));
                Input::EditLabels(request, vec![LabelEdit { machine, key: ROLE.to_owned(), value }])
            }
            (None, Ask::ReleaseBrake) => Input::ReleaseBrake(request),
            (None, _) => Input::Query(request, Query::Units { names: None, content: true, reasons: true }),
        };
        self.tell_leader(input);
    }

    /// The attempt has failed; the client does not know how far it came.
    fn client_tries_later(&mut self, number: usize, request: RequestId) {
        let client = &mut self.clients[number];
        if client.request == Some(request) {
            client.request = None;
            let wait = self.random.between(200 * MILLI, 2 * SECOND);
            self.queue.after(wait, Event::ClientAsks(number));
        }
    }

    /// A client does not wait for ever.
    pub(crate) fn client_waited(&mut self, number: usize, attempt: u32) {
        let client = &self.clients[number];
        if client.attempts == attempt
            && let Some(request) = client.request
        {
            self.client_tries_later(number, request);
        }
    }

    pub(crate) fn clients_lose_scheduler(&mut self) {
        for (request, number) in std::mem::take(&mut self.asked) {
            self.client_tries_later(number, request);
        }
    }

    pub(crate) fn answer_command(&mut self, request: RequestId, result: &CommandResult) {
        let Some(number) = self.asked.remove(&request) else { return };
        self.note(|| format!("client {number}: is answered {result:?}"));
        let retry = matches!(result, Err(CommandError::Store(_) | CommandError::NotLeader));
        self.client_is_answered(number, request, retry);
    }

    pub(crate) fn answer_machines(&mut self, request: RequestId, result: &Result<(), MachineCommandError>) {
        if let Some(number) = self.asked.remove(&request) {
            let retry = matches!(result, Err(MachineCommandError::Store(_)));
            self.client_is_answered(number, request, retry);
        }
    }

    pub(crate) fn answer_release(&mut self, request: RequestId, held: bool) {
        if let Some(number) = self.asked.remove(&request) {
            self.note(|| format!("client {number}: the brake was {}held", if held { "" } else { "not " }));
            self.client_is_answered(number, request, false);
        }
    }

    pub(crate) fn answer_query(&mut self, request: RequestId) {
        if let Some(number) = self.asked.remove(&request) {
            self.client_is_answered(number, request, false);
        }
    }

    fn client_is_answered(&mut self, number: usize, request: RequestId, retry: bool) {
        let client = &mut self.clients[number];
        if client.request != Some(request) {
            return;
        }
        if client.order.lost_answers > 0 {
            // It waits until it is tired of it.
            client.order.lost_answers -= 1;
        } else if retry {
            self.client_tries_later(number, request);
        } else {
            client.request = None;
            client.done = true;
        }
    }
}

/// The id of the command of the client with this number.
pub(crate) fn command_id(client: usize) -> CommandId {
    CommandId::new(client as u128 + 1)
}

/// The client that gave a command this id.
pub(crate) fn client_of(id: CommandId) -> usize {
    usize::try_from(id.bits()).unwrap_or(usize::MAX) - 1
}
