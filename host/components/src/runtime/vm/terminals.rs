//! `pyro:vm/terminals`: shells that outlive the call.

use std::time::Duration;

use pyro_engine::secrets::REDACTED;
use pyro_engine::{EngineError, ErrorCode, TerminalInfo, TerminalOutput, TerminalRequest, TerminalState};
use wasmtime::component::Resource;

use super::super::bindings::pyro::vm::{terminals, types};
use super::super::state::CallState;
use super::redact::Redaction;
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
///
/// A secret keeps its length, so that a cursor counts the same bytes on both sides. It may begin before the cursor and end
/// behind the last byte asked for, so more is read on both sides; and it may go on after what there is, so the end is held
/// back while it may be the beginning of one.
async fn read_redacted(
    reached: &Reached,
    id: &str,
    cursor: u64,
    max: u32,
    idle: Option<Duration>,
) -> Result<TerminalOutput, EngineError> {
    let machine = &reached.machine;
    let longest = reached.redaction.redactor().longest();
    if longest == 0 {
        return machine.terminal_read(id, cursor, max, idle).await;
    }
    // So much is read around what was asked for that a secret which reaches into it is seen whole.
    let around = u32::try_from(longest).unwrap_or(u32::MAX);
    let from = cursor.saturating_sub(around.into());
    let lead = u32::try_from(cursor - from).unwrap_or(around);
    let asked = max.saturating_add(lead).saturating_add(around);
    let mut read = machine.terminal_read(id, from, asked, idle).await?;
    let skip = usize::try_from(cursor.saturating_sub(read.start)).unwrap_or(usize::MAX).min(read.data.len());
    let all = read.data.len() < usize::try_from(asked.min(MAX_READ)).unwrap_or(usize::MAX);
    let at_end = all && read.info.state == TerminalState::Stopped;
    let (mut masked, mut settled) = mask(&reached.redaction, &read.data, at_end);
    if settled <= skip && all && idle.is_some() {
        // Nothing but a held-back beginning although the caller waited for more: nothing more belongs to it.
        (masked, settled) = mask(&reached.redaction, &read.data, true);
    }
    let most = skip.saturating_add(usize::try_from(max).unwrap_or(usize::MAX));
    read.data = masked.get(skip..settled.clamp(skip, most)).unwrap_or_default().to_vec();
    read.start += skip as u64;
    read.next = read.start + read.data.len() as u64;
    Ok(read)
}

/// Returns `text` with its secrets covered, each by as many bytes as it has, and how much of it no later byte can change.
fn mask(redaction: &Redaction, text: &[u8], at_end: bool) -> (Vec<u8>, usize) {
    let (ranges, settled) = redaction.redactor().find(text, at_end);
    let mut masked = text.to_vec();
    for range in ranges {
        let Some(bytes) = masked.get_mut(range) else { continue };
        bytes.fill(b'*');
        if let Some(head) = bytes.get_mut(..REDACTED.len()) {
            head.copy_from_slice(REDACTED.as_bytes());
        }
    }
    (masked, settled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_covered_text_keeps_its_length() {
        let redaction = Redaction::of([b"correct horse".as_slice(), b"short"]);
        let covered = |text: &str| {
            let (masked, settled) = mask(&redaction, text.as_bytes(), false);
            assert_eq!(masked.len(), text.len());
            (String::from_utf8(masked).unwrap(), settled)
        };
        assert_eq!(covered("a correct horse and short one"), ("a [REDACTED]*** and ***** one".to_owned(), 29));
        assert_eq!(covered("it is corr"), ("it is corr".to_owned(), 6));
    }
}
