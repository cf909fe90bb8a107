//! `pyro:secrets`: names and bindings. A value goes in once and never comes back to a component.

use pyro_engine::ErrorCode;
use pyro_engine::workspaces::{NewSecret, SecretKind, SecretRow};
use zeroize::Zeroizing;

use super::super::attachments::{AttachedSecret, BoundVariable};
use super::super::bindings::pyro::secrets::{bindings, store};
use super::super::bindings::pyro::vm::types;
use super::super::state::CallState;
use super::{Reached, denied, error, missing, refusal};

/// Longest value.
const MAX_VALUE: usize = 64 << 10;

/// The values of a workspace's secrets, by name.
type Values = Vec<(String, Zeroizing<Vec<u8>>)>;

impl CallState {
    /// Why a secret of this name is out of reach.
    fn secret_refusal(&self, name: &str) -> Option<types::Error> {
        match &self.grants.secrets {
            Some(scope) => scope.refusal(name).map(denied),
            None => Some(missing("secrets")),
        }
    }

    /// A value from where the component says it is.
    async fn secret_source(&mut self, source: store::Source) -> Result<(SecretKind, Zeroizing<Vec<u8>>), types::Error> {
        match source {
            store::Source::Value(text) => {
                let value = self.attachments.hidden(&text);
                Ok((SecretKind::Literal, value.unwrap_or_else(|| Zeroizing::new(text.into_bytes()))))
            }
            store::Source::File(path) => Ok((SecretKind::File, self.secret_file(&path, MAX_VALUE).await?)),
        }
    }

    /// The secrets that interceptors attached, for a workspace about to be made.
    pub(super) fn attached_secrets(&self) -> Vec<NewSecret> {
        self.attachments
            .secrets()
            .into_iter()
            .map(|AttachedSecret { name, kind, value }| NewSecret { name, value, kind })
            .collect()
    }

    /// What must not be seen of a workspace.
    pub(super) async fn hidden_values(&mut self, workspace: &str) -> Result<Vec<Zeroizing<Vec<u8>>>, types::Error> {
        let records = self.records().await?;
        records.hidden_values(workspace).await.map_err(|failed| error(&failed))
    }

    /// The values of a workspace's secrets, for the processes that they are bound to.
    async fn secret_values(&mut self, workspace: &str) -> Result<Values, types::Error> {
        let records = self.records().await?;
        records.secret_values(workspace).await.map_err(|failed| error(&failed))
    }

    /// The variables that interceptors bound, with their values.
    pub(super) async fn bound_variables(&mut self, workspace: &str) -> Result<Vec<(String, String)>, types::Error> {
        let bound = self.attachments.variables(workspace);
        if bound.is_empty() {
            return Ok(Vec::new());
        }
        let values = self.secret_values(workspace).await?;
        let mut variables = Vec::with_capacity(bound.len());
        for BoundVariable { secret, variable, .. } in bound {
            let value = values.iter().find(|(name, _)| *name == secret).map(|(_, value)| value);
            let Some(value) = value else { return Err(unknown(&secret)) };
            let text = String::from_utf8_lossy(value).into_owned();
            if text.contains('\0') {
                let message = format!("secret '{secret}' contains a NUL character, which no variable can");
                return Err(refusal(
                    ErrorCode::InvalidArgument,
                    message,
                    "read it from /run/pyro-secrets in the guest",
                ));
            }
            variables.push((variable, text));
        }
        Ok(variables)
    }

    /// Binds the secrets that a service had, but for variables that this call binds anew.
    pub(super) async fn bind_again(
        &mut self,
        reached: &Reached,
        service: &str,
        names: Vec<(String, String)>,
    ) -> Result<(), types::Error> {
        let Some(workspace) = reached.workspace.clone().filter(|_| !names.is_empty()) else { return Ok(()) };
        let records = self.records().await?;
        let rows = records.secrets(&workspace).await.map_err(|failed| error(&failed))?;
        let known = self.attachments.variables(&workspace);
        for (secret, variable) in names {
            if known.iter().any(|bound| bound.variable == variable) {
                continue;
            }
            // The guest kept the names, so they are checked as a caller's are.
            named("environment variable name", &variable)?;
            if !rows.iter().any(|row| row.name == secret) {
                let message = format!(
                    "service '{service}' was started with secret '{}', which workspace '{workspace}' no longer has",
                    secret.escape_debug()
                );
                return Err(refusal(
                    ErrorCode::NotFound,
                    message,
                    "set it again with secret_set, or start the service anew with service_start",
                ));
            }
            let bound = BoundVariable { workspace: workspace.clone(), secret, variable };
            self.attachments.bind(bound).map_err(|failed| error(&failed))?;
        }
        Ok(())
    }

    fn bindings_closed(&self) -> Option<types::Error> {
        if self.grants.secrets.is_none() {
            return Some(missing("secrets"));
        }
        (!self.may_attach).then(|| {
            let message = "secrets are attached by an interceptor, before the tool runs";
            refusal(ErrorCode::InvalidState, message, "call it in `before`")
        })
    }
}

fn unknown(secret: &str) -> types::Error {
    let message = format!("secret_env references unknown workspace secret '{}'", secret.escape_debug());
    refusal(ErrorCode::NotFound, message, "secret_list shows the secrets of the workspace")
}

/// Whether a secret or a variable may be called that: `^[A-Za-z_][A-Za-z0-9_]{0,63}$`.
fn named(what: &str, name: &str) -> Result<(), types::Error> {
    let good = name.len() <= 64
        && name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if good {
        return Ok(());
    }
    let shown: String = name.escape_debug().take(100).collect();
    let message = format!("{what} '{shown}' does not match ^[A-Za-z_][A-Za-z0-9_]{{0,63}}$");
    Err(refusal(ErrorCode::InvalidArgument, message, "use letters, digits and `_`"))
}

/// Whether a value may be a secret.
fn valued(name: &str, value: &[u8]) -> Result<(), types::Error> {
    if value.is_empty() || value.len() > MAX_VALUE {
        let message = format!("secret '{name}' has {} bytes, not 1 to {MAX_VALUE}", value.len());
        return Err(refusal(ErrorCode::InvalidArgument, message, "pass another value"));
    }
    if std::str::from_utf8(value).is_err() {
        let message = format!("secret '{name}' is not UTF-8");
        return Err(refusal(ErrorCode::InvalidArgument, message, "encode it, as in base64"));
    }
    Ok(())
}

fn info(row: SecretRow) -> store::SecretInfo {
    store::SecretInfo { name: row.name, source_kind: row.source_kind }
}

impl store::Host for CallState {
    async fn list(&mut self, workspace_id: String) -> wasmtime::Result<Result<Vec<store::SecretInfo>, types::Error>> {
        if self.grants.secrets.is_none() {
            return Ok(Err(missing("secrets")));
        }
        let records = match self.records().await {
            Ok(records) => records,
            Err(problem) => return Ok(Err(problem)),
        };
        let _pause = self.clock.pause();
        let rows = match records.secrets(&workspace_id).await {
            Ok(rows) => rows,
            Err(failed) => return Ok(Err(error(&failed))),
        };
        Ok(Ok(rows.into_iter().filter(|row| self.secret_refusal(&row.name).is_none()).map(info).collect()))
    }

    async fn set(
        &mut self,
        workspace_id: String,
        name: String,
        source: store::Source,
    ) -> wasmtime::Result<Result<store::SecretInfo, types::Error>> {
        if let Some(refused) = self.secret_refusal(&name) {
            return Ok(Err(refused));
        }
        let checked = match named("secret name", &name) {
            Ok(()) => self.secret_source(source).await,
            Err(problem) => Err(problem),
        };
        let (kind, value) = match checked.and_then(|(kind, value)| valued(&name, &value).map(|()| (kind, value))) {
            Ok(found) => found,
            Err(problem) => return Ok(Err(problem)),
        };
        let records = match self.records().await {
            Ok(records) => records,
            Err(problem) => return Ok(Err(problem)),
        };
        self.secrets_changed(&workspace_id);
        let _pause = self.clock.pause();
        let set = records.set_secret(&workspace_id, NewSecret { name, value, kind }).await;
        Ok(set.map(info).map_err(|failed| error(&failed)))
    }

    async fn remove(&mut self, workspace_id: String, name: String) -> wasmtime::Result<Result<(), types::Error>> {
        if let Some(refused) = self.secret_refusal(&name) {
            return Ok(Err(refused));
        }
        let records = match self.records().await {
            Ok(records) => records,
            Err(problem) => return Ok(Err(problem)),
        };
        self.secrets_changed(&workspace_id);
        let _pause = self.clock.pause();
        Ok(records.remove_secret(&workspace_id, &name).await.map(drop).map_err(|failed| error(&failed)))
    }
}

impl bindings::Host for CallState {
    async fn attach(&mut self, name: String, source: store::Source) -> wasmtime::Result<Result<(), types::Error>> {
        if let Some(refused) = self.bindings_closed().or_else(|| self.secret_refusal(&name)) {
            return Ok(Err(refused));
        }
        let checked = match named("secret name", &name) {
            Ok(()) => self.secret_source(source).await,
            Err(problem) => Err(problem),
        };
        let (kind, value) = match checked.and_then(|(kind, value)| valued(&name, &value).map(|()| (kind, value))) {
            Ok(found) => found,
            Err(problem) => return Ok(Err(problem)),
        };
        Ok(self.attachments.attach(AttachedSecret { name, kind, value }).map_err(|failed| error(&failed)))
    }

    async fn bind_env(
        &mut self,
        workspace_id: String,
        secret: String,
        variable: String,
    ) -> wasmtime::Result<Result<(), types::Error>> {
        if let Some(refused) = self.bindings_closed().or_else(|| self.secret_refusal(&secret)) {
            return Ok(Err(refused));
        }
        if let Err(problem) = named("environment variable name", &variable) {
            return Ok(Err(problem));
        }
        let records = match self.records().await {
            Ok(records) => records,
            Err(problem) => return Ok(Err(problem)),
        };
        let pause = self.clock.pause();
        let rows = records.secrets(&workspace_id).await;
        drop(pause);
        match rows {
            Ok(rows) if rows.iter().any(|row| row.name == secret) => {
                let bound = BoundVariable { workspace: workspace_id, secret, variable };
                Ok(self.attachments.bind(bound).map_err(|failed| error(&failed)))
            }
            Ok(_) => Ok(Err(unknown(&secret))),
            Err(failed) => Ok(Err(error(&failed))),
        }
    }
}
