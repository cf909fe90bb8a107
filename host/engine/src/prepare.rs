//! Installing an environment for a machine, from async code.

use tokio::sync::mpsc;

use crate::{
    environments::{Environments, Installed},
    error::{EngineError, ErrorCode},
    progress::Progress,
};

/// Makes sure that an environment is installed. The work waits for disks and programs, so it runs on a thread of its
/// own; dropping the future makes it stop and undo what it began.
pub(crate) async fn prepare(
    environments: &Environments,
    name: &str,
    progress: &dyn Progress,
) -> Result<Installed, EngineError> {
    let (tell, mut told) = mpsc::unbounded_channel();
    let (environments, name) = (environments.clone(), name.to_owned());
    let relay = Relay { tell };
    let work = tokio::task::spawn_blocking(move || environments.ensure(&name, &relay));
    // The relay goes with the work, and the channel then ends.
    while let Some(Report { message, done, total }) = told.recv().await {
        progress.report(&message, done, total);
        if progress.cancelled() {
            told.close();
        }
    }
    let installed =
        work.await.map_err(|e| EngineError::new(ErrorCode::Internal, format!("prepare the environment: {e}")))?;
    Ok(installed?)
}

struct Report {
    message: String,
    done: f64,
    total: Option<f64>,
}

/// Carries reports to the task that waits, and its end back.
struct Relay {
    tell: mpsc::UnboundedSender<Report>,
}

impl Progress for Relay {
    fn report(&self, message: &str, done: f64, total: Option<f64>) {
        let _ = self.tell.send(Report { message: message.to_owned(), done, total });
    }

    fn cancelled(&self) -> bool {
        self.tell.is_closed()
    }
}
