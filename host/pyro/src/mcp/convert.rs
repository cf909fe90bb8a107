//! From pyro's tools, outcomes and errors to MCP's.
//!
//! Hosts disagree about which half of a result a model sees: some show only `structuredContent`, others only the text.
//! So both always say the same. An error of a tool that has an output schema goes out as text alone, because some hosts
//! check `structuredContent` of errors against that schema too and then lose the error; programs find the parts under
//! `_meta` as [`ERROR_META`].

use std::sync::Arc;

use base64::Engine as _;
use pyro_components::{Annotations, Content, ContentBody, ToolDef, ToolError, ToolOutcome};
use rmcp::model::{CallToolResult, ContentBlock, Implementation, MetaObject, ResourceContents, Tool, ToolAnnotations};
use serde_json::{Map, Value, json};

/// Where a failed call carries code, message, hint and more.
pub(crate) const ERROR_META: &str = "pyro/error";
/// Where every result names the server, as the 2026-07-28 specification asks.
const SERVER_INFO_META: &str = "io.modelcontextprotocol/serverInfo";

/// Returns the definition that `tools/list` shows.
pub(crate) fn tool(def: &ToolDef) -> Tool {
    let mut tool = Tool::new(def.name.clone(), def.description.clone(), def.input_schema.clone())
        .with_annotations(annotations(def.title.clone(), def.annotations));
    if let Some(title) = &def.title {
        tool = tool.with_title(title.clone());
    }
    if let Some(schema) = &def.output_schema {
        tool = tool.with_raw_output_schema(Arc::clone(schema));
    }
    tool
}

fn annotations(title: Option<String>, hints: Annotations) -> ToolAnnotations {
    ToolAnnotations::from_raw(
        title,
        Some(hints.read_only),
        Some(hints.destructive),
        Some(hints.idempotent),
        Some(hints.open_world),
    )
}

/// Returns who answers.
pub(crate) fn server_info() -> Implementation {
    Implementation::new("pyro", env!("CARGO_PKG_VERSION"))
        .with_title("pyro")
        .with_description("Runs an agent's commands in microVMs")
}

/// Returns `_meta` with [`server_info`] in it.
pub(crate) fn server_meta() -> MetaObject {
    let mut meta = MetaObject::new();
    meta.insert(SERVER_INFO_META.to_owned(), serde_json::to_value(server_info()).unwrap_or_default());
    meta
}

/// Returns the result of a call that came to its end.
pub(crate) fn outcome(outcome: ToolOutcome, def: Option<&ToolDef>) -> CallToolResult {
    let ToolOutcome { content, structured, is_error } = outcome;
    let mut blocks: Vec<ContentBlock> =
        content.into_iter().enumerate().map(|(index, content)| block(index, content)).collect();
    if blocks.is_empty()
        && let Some(structured) = &structured
    {
        blocks.push(ContentBlock::text(json_text(structured)));
    }
    let mut result = if is_error { CallToolResult::error(blocks) } else { CallToolResult::success(blocks) };
    if !(is_error && has_output_schema(def)) {
        result.structured_content = structured.map(Value::Object);
    }
    result.with_meta(Some(server_meta()))
}

/// Returns the result of a call that failed.
pub(crate) fn error(error: &ToolError, def: Option<&ToolDef>) -> CallToolResult {
    let parts = serde_json::to_value(error).unwrap_or_default();
    let mut result = CallToolResult::error(vec![ContentBlock::text(error_text(error))]);
    let mut meta = server_meta();
    if !has_output_schema(def) {
        result.structured_content = Some(json!({ "error": parts }));
    }
    meta.insert(ERROR_META.to_owned(), parts);
    result.with_meta(Some(meta))
}

fn has_output_schema(def: Option<&ToolDef>) -> bool {
    def.is_some_and(|def| def.output_schema.is_some())
}

fn error_text(error: &ToolError) -> String {
    let mut text = format!("error [{}]: {}", error.code, error.message);
    if let Some(hint) = &error.hint {
        text.push_str("\nhint: ");
        text.push_str(hint);
    }
    if error.retryable {
        text.push_str("\nthe same call may succeed later");
    }
    if !error.details.is_empty() {
        text.push_str("\ndetails: ");
        text.push_str(&json_text(&error.details));
    }
    text
}

fn json_text(object: &Map<String, Value>) -> String {
    serde_json::to_string(object).unwrap_or_default()
}

fn block(index: usize, content: Content) -> ContentBlock {
    let Content { mime, body } = content;
    match body {
        ContentBody::Text(text) => ContentBlock::text(text),
        ContentBody::Bytes(bytes) => {
            let encoded = base64::engine::general_purpose::STANDARD.encode(bytes);
            match mime.split('/').next() {
                Some("image") => ContentBlock::image(encoded, mime),
                Some("audio") => ContentBlock::audio(encoded, mime),
                _ => ContentBlock::resource(ResourceContents::BlobResourceContents {
                    uri: format!("pyro://result/{index}"),
                    mime_type: Some(mime),
                    blob: encoded,
                    meta: None,
                }),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn def(output_schema: Option<Value>) -> ToolDef {
        ToolDef {
            name: "vm_run".to_owned(),
            title: Some("Run".to_owned()),
            description: "runs".to_owned(),
            input_schema: Arc::new(Map::from_iter([("type".to_owned(), json!("object"))])),
            output_schema: output_schema.and_then(|v| v.as_object().cloned()).map(Arc::new),
            annotations: Annotations { destructive: true, ..Annotations::default() },
            cli: None,
            component: "exec".to_owned(),
        }
    }

    fn structured() -> Map<String, Value> {
        json!({"stdout": "hi\n", "exit_code": 0}).as_object().cloned().unwrap_or_default()
    }

    #[test]
    fn text_and_structure_are_equal() {
        let result = outcome(
            ToolOutcome { content: Vec::new(), structured: Some(structured()), is_error: false },
            Some(&def(Some(json!({"type": "object"})))),
        );
        let value = serde_json::to_value(&result).unwrap();
        let text: Value = serde_json::from_str(value["content"][0]["text"].as_str().unwrap()).unwrap();
        assert_eq!(text, value["structuredContent"]);
        assert_eq!(value["isError"], json!(false));
        assert_eq!(value["_meta"][SERVER_INFO_META]["name"], "pyro");
    }

    #[test]
    fn an_error_never_breaks_an_output_schema() {
        let failure = ToolError::new("timeout", "took over 5 s").with_hint("raise the limit").with_retryable(true);
        let typed = serde_json::to_value(error(&failure, Some(&def(Some(json!({"type": "object"})))))).unwrap();
        assert!(typed.get("structuredContent").is_none());
        assert_eq!(typed["isError"], json!(true));
        assert_eq!(
            typed["content"][0]["text"],
            "error [timeout]: took over 5 s\nhint: raise the limit\nthe same call may succeed later"
        );
        assert_eq!(typed["_meta"][ERROR_META]["code"], "timeout");

        let untyped = serde_json::to_value(error(&failure, Some(&def(None)))).unwrap();
        assert_eq!(untyped["structuredContent"]["error"]["hint"], "raise the limit");
        assert_eq!(untyped["content"], typed["content"]);
    }

    #[test]
    fn a_failed_outcome_keeps_what_it_says_as_text() {
        let result = outcome(
            ToolOutcome { content: Vec::new(), structured: Some(structured()), is_error: true },
            Some(&def(Some(json!({"type": "object"})))),
        );
        let value = serde_json::to_value(&result).unwrap();
        assert!(value.get("structuredContent").is_none());
        assert_eq!(value["content"][0]["text"], r#"{"stdout":"hi\n","exit_code":0}"#);
    }

    #[test]
    fn bytes_become_the_block_of_their_type() {
        let content = |mime: &str| Content { mime: mime.to_owned(), body: ContentBody::Bytes(vec![1, 2, 3]) };
        let result = outcome(
            ToolOutcome {
                content: vec![content("image/png"), content("audio/wav"), content("application/zip")],
                structured: None,
                is_error: false,
            },
            None,
        );
        let value = serde_json::to_value(&result).unwrap();
        assert_eq!(value["content"][0], json!({"type": "image", "data": "AQID", "mimeType": "image/png"}));
        assert_eq!(value["content"][1]["type"], "audio");
        assert_eq!(value["content"][2]["resource"]["blob"], "AQID");
    }

    #[test]
    fn a_definition_keeps_order_and_hints() {
        let value = serde_json::to_value(tool(&def(None))).unwrap();
        assert_eq!(value["annotations"]["destructiveHint"], json!(true));
        assert_eq!(value["annotations"]["openWorldHint"], json!(false));
        assert_eq!(value["title"], "Run");
    }
}
