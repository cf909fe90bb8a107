//! What is behind the gated interfaces: the engine, the workspaces, and the host's files.

use std::path::PathBuf;

use pyro_engine::workspaces::Workspaces;
use pyro_engine::{Engine, EngineError, ErrorCode};
use tokio::sync::OnceCell;

use crate::profile::HostSettings;

/// Shared by all calls of a toolbox.
#[derive(Debug)]
pub(crate) struct HostAccess {
    pub(crate) engine: Engine,
    /// Directories below which tools may read.
    pub(crate) read: Vec<PathBuf>,
    /// Directories below which tools may write.
    pub(crate) write: Vec<PathBuf>,
    workspaces: OnceCell<Workspaces>,
}

impl HostAccess {
    pub(crate) fn new(engine: Engine, host: &HostSettings) -> HostAccess {
        HostAccess { engine, read: host.read.clone(), write: host.write.clone(), workspaces: OnceCell::new() }
    }

    /// Returns the workspaces. The database is opened by the first call that needs it: listing tools, and a profile
    /// without workspaces, make no file.
    pub(crate) async fn workspaces(&self) -> Result<&Workspaces, EngineError> {
        let open = async {
            let engine = self.engine.clone();
            tokio::task::spawn_blocking(move || Workspaces::open(engine))
                .await
                .map_err(|error| EngineError::new(ErrorCode::Internal, format!("opening the state ended: {error}")))?
        };
        self.workspaces.get_or_try_init(|| open).await
    }
}
