//! A stream to a machine, through the scheduler.

use muster_core::ids::MachineId;
use muster_proto::v1::{from_machine, to_machine};
use muster_proto::{StreamRequest, Work, v1};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use crate::client::cause;
use crate::failure::Failure;

/// A stream to a machine.
pub struct MachineStream {
    /// What the machine is sent.
    pub input: Input,
    /// What it sends.
    pub output: Output,
}

/// What a machine is sent: it waits until there is room.
pub struct Input(mpsc::Sender<v1::ToMachine>);

/// What a machine sends.
pub struct Output(Streaming<v1::FromMachine>);

/// What comes next of that.
pub enum Heard {
    /// Of the output.
    Data(Vec<u8>),
    /// What a program there writes to its standard error.
    Errors(Vec<u8>),
    /// The permissions of the file that follows.
    File(u32),
    /// It is done, with this exit status: nothing follows.
    Done(i32),
}

/// The machine, or the way to it, has gone: what it sent last says why.
pub struct Gone;

impl MachineStream {
    /// What asks a machine for that; and where what follows is put.
    pub fn request(machine: MachineId, work: Work) -> (Input, mpsc::Receiver<v1::ToMachine>) {
        let (sender, messages) = mpsc::channel(1);
        let request = StreamRequest { machine, work }.into();
        // There is room for the first.
        sender.try_send(v1::ToMachine { body: Some(to_machine::Body::Request(request)) }).ok();
        (Input(sender), messages)
    }

    /// The stream that was opened so.
    pub fn new(input: Input, output: Streaming<v1::FromMachine>) -> Self {
        Self { input, output: Output(output) }
    }
}

impl Input {
    /// Sends what comes next of the input.
    ///
    /// # Errors
    /// When nobody takes it any more.
    pub async fn send(&self, data: &[u8]) -> Result<(), Gone> {
        self.say(to_machine::Body::Data(data.to_vec().into())).await
    }

    /// The input is whole.
    ///
    /// # Errors
    /// As [`Input::send`].
    pub async fn end(&self) -> Result<(), Gone> {
        self.say(to_machine::Body::End(v1::InputEnd {})).await
    }

    async fn say(&self, body: to_machine::Body) -> Result<(), Gone> {
        self.0.send(v1::ToMachine { body: Some(body) }).await.map_err(|_| Gone)
    }
}

impl Output {
    /// What comes next. Nothing is lost when this is dropped before it is ready.
    ///
    /// # Errors
    /// When it cannot be done, or the machine or the scheduler is lost.
    pub async fn next(&mut self) -> Result<Heard, Failure> {
        let Some(heard) = self.0.message().await.map_err(|status| lost(&status))? else {
            return Err(Failure::failed("the stream ended before its end"));
        };
        match heard.body {
            Some(from_machine::Body::Data(data)) => Ok(Heard::Data(data.into())),
            Some(from_machine::Body::Errors(data)) => Ok(Heard::Errors(data.into())),
            Some(from_machine::Body::File(v1::FileInfo { mode })) => Ok(Heard::File(mode)),
            Some(from_machine::Body::Done(v1::StreamDone { status })) => Ok(Heard::Done(status)),
            Some(from_machine::Body::Failed(reason)) => Err(Failure::failed(reason)),
            None => Err(Failure::failed("the machine's agent is of a later version than this musterctl")),
        }
    }
}

fn lost(status: &Status) -> Failure {
    match std::error::Error::source(status) {
        Some(source) => Failure::failed(format_args!("lost the scheduler: {}", cause(source))),
        None => Failure::failed(status.message()),
    }
}
