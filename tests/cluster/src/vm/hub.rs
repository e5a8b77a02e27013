//! A cluster's hub: one process through which everything goes that leaves a virtual machine. It is the switch of their
//! network, and it passes commands on to the agents in them.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context, Result};

use super::switch::Switch;
use super::{AGENT_SOCKET, EXEC_SOCKET, HOST, MACHINES, NET_SOCKET, UP, WITNESS_SOCKET, lines};
use crate::supervisor::WITNESS;

/// Serves these machines for ever; says `ready` on standard output when all can be plugged in.
pub(crate) fn run(machines: &[String]) -> Result<()> {
    let switch = Switch::start(PathBuf::from(MACHINES));
    for name in machines.iter().map(String::as_str).chain([HOST]) {
        let listener = listen(name, NET_SOCKET)?;
        let (switch, name) = (switch.clone(), name.to_owned());
        thread::spawn(move || {
            // One connection at a time: the next one is of the machine's next boot.
            for stream in listener.incoming().flatten() {
                switch.serve(&name, stream);
            }
        });
    }
    for name in machines {
        let guest = Arc::new(Guest::new(Path::new(MACHINES).join(name)));
        let (agents, clients) = (listen(name, AGENT_SOCKET)?, listen(name, EXEC_SOCKET)?);
        let witnesses = listen(name, WITNESS_SOCKET)?;
        let file = File::options().append(true).open(WITNESS).context(WITNESS)?;
        thread::spawn(move || {
            for stream in witnesses.incoming().flatten() {
                write_down(stream, &file);
            }
        });
        let for_agents = guest.clone();
        thread::spawn(move || {
            for stream in agents.incoming().flatten() {
                for_agents.serve_agent(stream);
            }
        });
        thread::spawn(move || {
            for (number, stream) in (1..).zip(clients.incoming().flatten()) {
                let guest = guest.clone();
                thread::spawn(move || guest.serve_client(number, stream));
            }
        });
    }
    println!("ready");
    loop {
        thread::park();
    }
}

/// Adds what a machine's units tell the witness, as long as the machine has power. The host's time takes the place of the
/// machine's own, of which nobody knows what has become.
fn write_down(stream: UnixStream, mut file: &File) {
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    // A line that is not whole is one that a power cut has cut off.
    while reader.read_until(b'\n', &mut line).is_ok() && line.ends_with(b"\n") {
        let text = String::from_utf8_lossy(&line);
        if let (Some((said, _)), Some(now)) = (text.rsplit_once(' '), uptime()) {
            // At once, for others write there, too.
            let _ = file.write_all(format!("{said} {now}\n").as_bytes());
        }
        line.clear();
    }
}

/// Since the host's boot, in hundredths of a second.
fn uptime() -> Option<String> {
    Some(fs::read_to_string("/proc/uptime").ok()?.split_once(' ')?.0.replace('.', ""))
}

fn listen(machine: &str, socket: &str) -> Result<UnixListener> {
    let path = Path::new(MACHINES).join(machine).join(socket);
    UnixListener::bind(&path).with_context(|| path.display().to_string())
}

/// The serial port of one machine, and the clients that share it.
struct Guest {
    dir: PathBuf,
    /// To the agent, while the machine has power. Apart from the clients: writing may have to wait for the agent to read,
    /// and that for us to take what it says.
    agent: Mutex<Option<UnixStream>>,
    /// The lines for each client, by the number of its command; `None` while there is no agent that works.
    clients: Mutex<Option<HashMap<u64, Sender<String>>>>,
}

impl Guest {
    fn new(dir: PathBuf) -> Self {
        Self { dir, agent: Mutex::default(), clients: Mutex::default() }
    }

    /// Hands on what the agent says, as long as the machine has power.
    fn serve_agent(&self, stream: UnixStream) {
        *locked(&self.agent) = stream.try_clone().ok();
        // One that was restored does not know of us. The line before may be half of one to the machine that it was.
        self.tell_agent("\n0 hello\n");
        for line in BufReader::new(stream).lines() {
            let Ok(line) = line else { break };
            if line == "boot" || line == "here" {
                let mut clients = locked(&self.clients);
                // At a boot whatever ran before runs no more. A client that loses its sender is told so.
                if line == "boot" || clients.is_none() {
                    *clients = Some(HashMap::new());
                }
                let _ = fs::write(self.dir.join(UP), "");
                continue;
            }
            let (number, rest) = lines::split(&line);
            let mut clients = locked(&self.clients);
            let (Some(clients), Ok(number)) = (clients.as_mut(), number.parse()) else { continue };
            if let Some(client) = clients.get(&number) {
                let _ = client.send(format!("{rest}\n"));
            }
            if rest.starts_with("exit ") {
                clients.remove(&number);
            }
        }
        let _ = fs::remove_file(self.dir.join(UP));
        *locked(&self.clients) = None;
        *locked(&self.agent) = None;
    }

    fn serve_client(&self, number: u64, mut stream: UnixStream) {
        let Ok(reader) = stream.try_clone() else { return };
        // Without a limit: a client that does not read must not keep the others waiting.
        let (sender, answers) = mpsc::channel::<String>();
        let Some(()) = locked(&self.clients).as_mut().map(|clients| drop(clients.insert(number, sender)))
        else {
            let _ = writeln!(stream, "refused {}", lines::encode(b"the machine does not answer yet"));
            return;
        };
        thread::scope(|scope| {
            scope.spawn(|| {
                for line in BufReader::new(reader).lines() {
                    let Ok(line) = line else { break };
                    self.tell_agent(&format!("{number} {line}\n"));
                }
                // It has hung up, or heard all: then the agent does not know the number any more.
                self.tell_agent(&format!("{number} end\n"));
                locked(&self.clients).as_mut().map(|clients| clients.remove(&number));
            });
            for answer in answers {
                if stream.write_all(answer.as_bytes()).is_err() {
                    break;
                }
            }
            let _ = stream.shutdown(Shutdown::Both);
        });
    }

    fn tell_agent(&self, line: &str) {
        if let Some(agent) = locked(&self.agent).as_mut() {
            // A machine that has lost its power is noticed where it is read from.
            let _ = agent.write_all(line.as_bytes());
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
