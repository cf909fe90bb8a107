//! What a host's configuration needs to say so that it starts pyro.

use serde_json::{Value, json};

/// Longest call that hosts are told to wait for. Progress keeps most of them waiting anyway.
const CALL_TIMEOUT_SECONDS: u32 = 600;

/// A program that starts MCP servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostKind {
    /// Claude Code.
    Claude,
    /// Codex.
    Codex,
    /// Gemini CLI.
    Gemini,
    /// OpenCode.
    OpenCode,
    /// VS Code.
    VsCode,
    /// Cursor.
    Cursor,
    /// Zed.
    Zed,
    /// Goose.
    Goose,
}

/// A piece of configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostConfig {
    /// Where it goes, in a sentence.
    pub place: String,
    /// The piece itself, with a line end.
    pub text: String,
}

impl HostConfig {
    /// Returns what `host` needs to start `program`, an absolute path, with `profile`, a built-in name or an absolute
    /// path.
    pub fn new(host: HostKind, program: &str, profile: &str) -> HostConfig {
        let args = json!(["mcp", "serve", "--profile", profile]);
        let (place, text) = match host {
            HostKind::Claude => (
                "Claude Code: put this into .mcp.json of your project, or run `claude mcp add`",
                pretty(&json!({"mcpServers": {"pyro": {
                    "type": "stdio", "command": program, "args": args, "env": {}, "timeout": CALL_TIMEOUT_SECONDS * 1000,
                }}})),
            ),
            HostKind::Codex => ("Codex: add this to ~/.codex/config.toml", codex(program, &args)),
            HostKind::Gemini => (
                "Gemini CLI: put this into ~/.gemini/settings.json",
                pretty(&json!({"mcpServers": {"pyro": {
                    "command": program, "args": args, "timeout": CALL_TIMEOUT_SECONDS * 1000, "trust": false,
                }}})),
            ),
            HostKind::OpenCode => (
                "OpenCode: put this into opencode.json",
                pretty(&json!({"mcp": {"pyro": {
                    "type": "local", "command": opencode_command(program, profile), "enabled": true,
                    "environment": {}, "timeout": CALL_TIMEOUT_SECONDS * 1000,
                }}})),
            ),
            HostKind::VsCode => (
                "VS Code: put this into .vscode/mcp.json",
                pretty(&json!({"servers": {"pyro": {"type": "stdio", "command": program, "args": args}}})),
            ),
            HostKind::Cursor => (
                "Cursor: put this into .cursor/mcp.json of your project, or ~/.cursor/mcp.json",
                pretty(&json!({"mcpServers": {"pyro": {"command": program, "args": args}}})),
            ),
            HostKind::Zed => (
                "Zed: put this into settings.json",
                pretty(&json!({"context_servers": {"pyro": {"command": program, "args": args, "env": {}}}})),
            ),
            HostKind::Goose => ("Goose: put this into ~/.config/goose/config.yaml", goose(program, &args)),
        };
        HostConfig { place: place.to_owned(), text }
    }
}

fn pretty(value: &Value) -> String {
    let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.push('\n');
    text
}

fn opencode_command(program: &str, profile: &str) -> Value {
    json!([program, "mcp", "serve", "--profile", profile])
}

/// JSON strings and arrays of them are TOML too.
fn codex(program: &str, args: &Value) -> String {
    format!(
        "[mcp_servers.pyro]\ncommand = {}\nargs = {args}\ntool_timeout_sec = {CALL_TIMEOUT_SECONDS}\n",
        json!(program)
    )
}

/// JSON strings and arrays of them are YAML too.
fn goose(program: &str, args: &Value) -> String {
    format!(
        "extensions:\n  pyro:\n    name: pyro\n    type: stdio\n    cmd: {}\n    args: {args}\n    enabled: true\n    timeout: {CALL_TIMEOUT_SECONDS}\n",
        json!(program)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_hosts_get_json_that_starts_the_profile() {
        for (host, path) in [
            (HostKind::Claude, "/mcpServers/pyro/args/3"),
            (HostKind::Gemini, "/mcpServers/pyro/args/3"),
            (HostKind::OpenCode, "/mcp/pyro/command/4"),
            (HostKind::VsCode, "/servers/pyro/args/3"),
            (HostKind::Cursor, "/mcpServers/pyro/args/3"),
            (HostKind::Zed, "/context_servers/pyro/args/3"),
        ] {
            let config = HostConfig::new(host, "/opt/py ro/pyro", "/a \"b\"/p.toml");
            let value: Value = serde_json::from_str(&config.text).unwrap();
            assert_eq!(value.pointer(path), Some(&json!("/a \"b\"/p.toml")), "{host:?}");
        }
    }

    #[test]
    fn strings_of_other_formats_are_quoted() {
        for host in [HostKind::Codex, HostKind::Goose] {
            let config = HostConfig::new(host, "/opt/py\"ro", "vm-run");
            assert!(config.text.contains(r#""/opt/py\"ro""#), "{}", config.text);
            assert!(config.text.contains(r#"["mcp","serve","--profile","vm-run"]"#), "{}", config.text);
        }
    }
}
