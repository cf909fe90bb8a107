//! `pyro:vm/terminals`: shells that outlive the call.

use std::time::Duration;

use pyro_engine::{EngineError, ErrorCode, TerminalInfo, TerminalOutput, TerminalRequest, TerminalState};
use wasmtime::component::Resource;

use super::super::bindings::pyro::vm::{terminals, types};
use super::super::state::CallState;
use super::window::{Part, Window};
use super::{GUEST_LIMIT, MachineEntry, Reached, missing, refusal, sendable};

/// Most bytes that one read returns.
const MAX_READ: u32 = 4 << 20;

/// Most bytes typed at once.
const MAX_WRITE: usize = 1 << 20;

/// Longest wait for a terminal to be idle.
const MAX_IDLE: Duration = Duration::from_secs(10);

impl CallState {
    async fn reach_terminals(
        &mut self,
        machine: &Resource<MachineEntry>,
        id: &str,
    ) -> wasmtime::Result<Result<Reached, types::Error>> {
        if self.grants.terminals.is_none() {
            return Ok(Err(missing("terminals")));
        }
        if let Err(problem) = sendable("id", id) {
            return Ok(Err(problem));
        }
        self.reach(machine).await
    }
}

impl terminals::Host for CallState {
    async fn open(
        &mut self,
        machine: Resource<MachineEntry>,
        cwd: String,
        cols: u32,
        rows: u32,
        env: Vec<(String, String)>,
    ) -> wasmtime::Result<Result<terminals::TerminalInfo, types::Error>> {
        let reached = match self.reach_terminals(&machine, "").await? {
            Ok(reached) => reached,
            Err(problem) => return Ok(Err(problem)),
        };
        if let Err(problem) = sendable("directory", &cwd) {
            return Ok(Err(problem));
        }
        let env = match self.process_env(&reached, env).await {
            Ok(env) => env,
            Err(problem) => return Ok(Err(problem)),
        };
        let request = TerminalRequest { cwd, cols, rows, env };
        let _pause = self.clock.pause();
        Ok(reached.ask(GUEST_LIMIT, reached.machine.terminal_open(request)).await.map(info))
    }

    async fn list(
        &mut self,
        machine: Resource<MachineEntry>,
    ) -> wasmtime::Result<Result<Vec<terminals::TerminalInfo>, types::Error>> {
        let reached = match self.reach_terminals(&machine, "").await? {
            Ok(reached) => reached,
            Err(problem) => return Ok(Err(problem)),
        };
        let _pause = self.clock.pause();
        let listed = reached.ask(GUEST_LIMIT, reached.machine.terminal_list()).await;
        Ok(listed.map(|list| list.into_iter().map(info).collect()))
    }

    async fn read(
        &mut self,
        machine: Resource<MachineEntry>,
        id: String,
        cursor: u64,
        max: u32,
        idle_ms: Option<u32>,
    ) -> wasmtime::Result<Result<terminals::Output, types::Error>> {
        let reached = match self.reach_terminals(&machine, &id).await? {
            Ok(reached) => reached,
            Err(problem) => return Ok(Err(problem)),
        };
        let idle = idle_ms.map(|idle| Duration::from_millis(idle.into()).min(MAX_IDLE));
        let pause = self.clock.pause();
        let read = reached.ask(GUEST_LIMIT, read_redacted(&reached, &id, cursor, max.min(MAX_READ), idle)).await;
        drop(pause);
        match read {
            Ok(read) => {
                let data = self.push_bytes(read.data)?;
                Ok(Ok(terminals::Output { data, start: read.start, next: read.next, info: info(read.info) }))
            }
            Err(problem) => Ok(Err(problem)),
        }
    }

    async fn write(
        &mut self,
        machine: Resource<MachineEntry>,
        id: String,
        data: Vec<u8>,
    ) -> wasmtime::Result<Result<terminals::TerminalInfo, types::Error>> {
        let reached = match self.reach_terminals(&machine, &id).await? {
            Ok(reached) => reached,
            Err(problem) => return Ok(Err(problem)),
        };
        if data.len() > MAX_WRITE {
            let message = format!("{} bytes at once, more than {MAX_WRITE}", data.len());
            return Ok(Err(refusal(ErrorCode::LimitExceeded, message, "type it in parts")));
        }
        let _pause = self.clock.pause();
        Ok(reached.ask(GUEST_LIMIT, reached.machine.terminal_write(&id, &data)).await.map(info))
    }

    async fn resize(
        &mut self,
        machine: Resource<MachineEntry>,
        id: String,
        cols: u32,
        rows: u32,
    ) -> wasmtime::Result<Result<terminals::TerminalInfo, types::Error>> {
        let reached = match self.reach_terminals(&machine, &id).await? {
            Ok(reached) => reached,
            Err(problem) => return Ok(Err(problem)),
        };
        let _pause = self.clock.pause();
        Ok(reached.ask(GUEST_LIMIT, reached.machine.terminal_resize(&id, cols, rows)).await.map(info))
    }

    async fn signal(
        &mut self,
        machine: Resource<MachineEntry>,
        id: String,
        name: String,
    ) -> wasmtime::Result<Result<terminals::TerminalInfo, types::Error>> {
        let reached = match self.reach_terminals(&machine, &id).await? {
            Ok(reached) => reached,
            Err(problem) => return Ok(Err(problem)),
        };
        if let Err(problem) = sendable("signal", &name) {
            return Ok(Err(problem));
        }
        let _pause = self.clock.pause();
        Ok(reached.ask(GUEST_LIMIT, reached.machine.terminal_signal(&id, &name)).await.map(info))
    }

    async fn close(
        &mut self,
        machine: Resource<MachineEntry>,
        id: String,
    ) -> wasmtime::Result<Result<terminals::TerminalInfo, types::Error>> {
        let reached = match self.reach_terminals(&machine, &id).await? {
            Ok(reached) => reached,
            Err(problem) => return Ok(Err(problem)),
        };
        let _pause = self.clock.pause();
        Ok(reached.ask(GUEST_LIMIT, reached.machine.terminal_close(&id)).await.map(info))
    }
}

fn info(terminal: TerminalInfo) -> terminals::TerminalInfo {
    terminals::TerminalInfo {
        id: terminal.id,
        cwd: terminal.cwd,
        cols: terminal.cols,
        rows: terminal.rows,
        state: terminal.state.as_str().to_owned(),
        started_at: terminal.started_at,
        ended_at: terminal.ended_at,
        exit_code: terminal.exit_code,
    }
}

/// Reads a terminal's output with its secrets taken out.
async fn read_redacted(
    reached: &Reached,
    id: &str,
    cursor: u64,
    max: u32,
    idle: Option<Duration>,
) -> Result<TerminalOutput, EngineError> {
    // A caller who waited until nothing more came gets what may be the beginning of a secret: nothing more belongs to it.
    let window = Window { cursor, max, most: MAX_READ, release: idle.is_some() };
    let (from, asked) = window.around(&reached.redaction);
    let read = reached.machine.terminal_read(id, from, asked, idle).await?;
    let ended = read.info.state == TerminalState::Stopped;
    let part = Part { data: read.data, start: read.start, next: read.next, ended, info: read.info };
    let part = window.cut(&reached.redaction, part);
    Ok(TerminalOutput { data: part.data, start: part.start, next: part.next, info: part.info })
}
