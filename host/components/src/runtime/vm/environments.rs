//! `pyro:vm/environments`: the catalogue.

use pyro_engine::environments::Environments;
use pyro_engine::{EngineError, ErrorCode};

use super::super::bindings::pyro::vm::{environments, types};
use super::super::state::CallState;
use super::{error, missing};

impl environments::Host for CallState {
    async fn list(&mut self) -> wasmtime::Result<Result<Vec<environments::Environment>, types::Error>> {
        if self.grants.environments.is_none() {
            return Ok(Err(missing("environments")));
        }
        let access = match self.access() {
            Ok(access) => access,
            Err(problem) => return Ok(Err(problem)),
        };
        let listed = tokio::task::spawn_blocking(move || catalogue(access.engine.environments())).await;
        Ok(match listed {
            Ok(Ok(list)) => Ok(list),
            Ok(Err(failed)) => Err(error(&failed)),
            Err(panic) => {
                Err(error(&EngineError::new(ErrorCode::Internal, format!("reading the catalogue ended: {panic}"))))
            }
        })
    }
}

fn catalogue(environments: &Environments) -> Result<Vec<environments::Environment>, EngineError> {
    let catalogue = environments.catalogue()?;
    let mut list = Vec::new();
    for summary in environments.list()? {
        let packages = catalogue.get(&summary.name).map(|definition| definition.packages.clone()).unwrap_or_default();
        list.push(environments::Environment {
            version: summary.version,
            description: summary.description,
            packages,
            distribution: summary.distribution,
            distribution_version: summary.suite,
            platform: "linux-x86_64".to_owned(),
            installed: summary.installed,
            digest: summary.digest,
            meta: [("created", summary.created), ("disk_bytes", summary.disk_bytes.map(|bytes| bytes.to_string()))]
                .into_iter()
                .filter_map(|(key, value)| Some((key.to_owned(), value?)))
                .collect(),
            name: summary.name,
        });
    }
    list.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(list)
}
