//! A process of a service: started by this life of the daemon, or adopted from an earlier one.
//!
//! Method      each is the leader of a group of its own, so that what it starts ends with it, and that a signal typed at
//!             the daemon's terminal does not reach it. One that this life did not start is known by its number and the
//!             moment of its start, which no later process of the same number shares; it is looked at again and again,
//!             for only a parent is told of the end of a process.

use std::fs::File;
use std::process::Stdio;
use std::time::Duration;

use quorate::host::{DIRECTORY_VARIABLE, Ticket};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, Command};
use tokio::time::sleep;

use crate::config::Service;
use crate::records::Record;

pub(crate) struct Process {
    pub(crate) ticket: Ticket,
    pid: Pid,
    kind: Kind,
}

enum Kind {
    Child(Child),
    /// Started at that moment.
    Adopted(u64),
}

impl Process {
    /// Starts the program of a service.
    pub(crate) fn start(service: &Service, ticket: Ticket, directory: &str) -> std::io::Result<Self> {
        let (program, arguments) = service.command.split_first().ok_or(std::io::ErrorKind::InvalidInput)?;
        let mut command = Command::new(program);
        let (variable, text) = ticket.environment();
        command
            .args(arguments)
            .envs(&service.environment)
            .env(DIRECTORY_VARIABLE, directory)
            .env(variable, text)
            .stdin(Stdio::null())
            .process_group(0);
        if let Some(directory) = &service.directory {
            command.current_dir(directory);
        }
        if let Some(output) = &service.output {
            let file = File::options().create(true).append(true).open(output)?;
            command.stdout(file.try_clone()?).stderr(file);
        }
        let child = command.spawn()?;
        let pid = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        // A child that nobody has waited for has its number.
        let pid = pid.ok_or(std::io::ErrorKind::NotFound)?;
        Ok(Self { ticket, pid, kind: Kind::Child(child) })
    }

    /// The process that an earlier life of the daemon noted, if it still lives.
    pub(crate) fn adopt(record: &Record) -> Option<Self> {
        let ticket = record.ticket()?;
        let pid = Pid::from_raw(i32::try_from(record.process).ok()?)?;
        (started(pid)? == record.started).then_some(Self { ticket, pid, kind: Kind::Adopted(record.started) })
    }

    /// What is noted of it.
    pub(crate) fn record(&self) -> Record {
        let process = self.pid.as_raw_nonzero().get().unsigned_abs();
        Record { process, started: started(self.pid).unwrap_or_default(), ticket: self.ticket.to_string() }
    }

    pub(crate) fn number(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Waits for its end; tells how it ended, in words, and whether it ended by itself without an error. Cancel safe.
    pub(crate) async fn ended(&mut self) -> (String, bool) {
        match &mut self.kind {
            Kind::Child(child) => match child.wait().await {
                Ok(status) => (status.to_string(), status.success()),
                Err(error) => (error.to_string(), false),
            },
            Kind::Adopted(moment) => {
                while started(self.pid) == Some(*moment) {
                    sleep(LOOK_PAUSE).await;
                }
                // How it ended only its parent is told.
                ("its end, as a process of an earlier daemon".to_owned(), false)
            }
        }
    }

    /// Sends a signal to it and to what it has started.
    pub(crate) fn signal(&self, signal: Signal) {
        if let Kind::Adopted(moment) = self.kind
            && started(self.pid) != Some(moment)
        {
            return; // by now the number may be another process's
        }
        // It may be gone; whether it is, its end tells.
        if let Err(error) = kill_process_group(self.pid, signal) {
            tracing::debug!(process = self.number(), %error, "the signal reaches nobody");
        }
    }
}

/// How often an adopted process is looked at.
const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// When a process was started, in the system's ticks since it was; `None` when it does not live.
#[cfg(target_os = "linux")]
fn started(pid: Pid) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // Behind the name, which may hold anything: the state is the third field of the line, the start the 22nd.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let is_dead = matches!(fields.next()?, "Z" | "X");
    fields.nth(18).filter(|_| !is_dead)?.parse().ok()
}

/// Elsewhere nobody can be told from a later process of the same number: nothing is adopted.
#[cfg(not(target_os = "linux"))]
fn started(_: Pid) -> Option<u64> {
    None
}
