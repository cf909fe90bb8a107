//! One tool per behaviour.

use std::hint::black_box;

use pyro_test_guests::bindings::exports::pyro::plugin::tools::{
    Body, CallContext, Content, Guest, ToolDef, ToolError, ToolResult,
};
use pyro_test_guests::bindings::pyro::host::{blobs, call, config, log};
use pyro_test_guests::{error, structured, text, tool};

struct Plugin;

const PROMISE: &str = r#"{"type":"object","properties":{"answer":{"type":"integer"}},"required":["answer"]}"#;

const PLAIN: [&str; 20] = [
    "echo",
    "spin",
    "allocate",
    "trap",
    "panic",
    "recurse",
    "exit",
    "huge_text",
    "huge_structured",
    "hand_over",
    "bad_json",
    "not_an_object",
    "log_flood",
    "blob_flood",
    "handle_flood",
    "rest",
    "stderr_flood",
    "refuse",
    "show_config",
    "blob",
];

/// The number in `{"n":...}`; the host has checked that it is one.
fn number(arguments: &str) -> usize {
    arguments.bytes().filter(u8::is_ascii_digit).fold(0, |n, digit| n * 10 + usize::from(digit - b'0'))
}

impl Guest for Plugin {
    fn list_tools() -> Result<Vec<ToolDef>, ToolError> {
        let mut tools: Vec<ToolDef> = PLAIN.iter().map(|name| tool(name, None)).collect();
        tools.push(tool("keep_promise", Some(PROMISE)));
        tools.push(tool("break_promise", Some(PROMISE)));
        tools.push(tool("forget_promise", Some(PROMISE)));
        Ok(tools)
    }

    fn call(name: String, arguments: String, _: CallContext) -> Result<ToolResult, ToolError> {
        let n = number(&arguments);
        match name.as_str() {
            "echo" => Ok(text(arguments)),
            "spin" => spin(),
            "allocate" => allocate(),
            "trap" => core::arch::wasm32::unreachable(),
            "panic" => panic!("a message with {n} in it"),
            "recurse" => Ok(text(recurse(0).to_string())),
            "exit" => std::process::exit(7),
            "huge_text" => Ok(text("x".repeat(n))),
            "huge_structured" => Ok(structured(format!("{{\"x\":\"{}\"}}", "x".repeat(n)))),
            "hand_over" => Ok(text(blobs::from_bytes(&vec![1; n]).size().to_string())),
            "bad_json" => Ok(structured("{\"a\":".to_owned())),
            "not_an_object" => Ok(structured("[1]".to_owned())),
            "keep_promise" => Ok(structured("{\"answer\":42}".to_owned())),
            "break_promise" => Ok(structured("{\"answer\":\"many\"}".to_owned())),
            "forget_promise" => Ok(text("42".to_owned())),
            "log_flood" => {
                for line in 0..n {
                    log::log(log::Level::Info, &format!("{line} {}", "y".repeat(10_000)), &[]);
                }
                Ok(text("logged".to_owned()))
            }
            "blob_flood" => {
                let bytes = vec![7; 1 << 20];
                let kept: Vec<_> = (0..n).map(|_| blobs::from_bytes(&bytes)).collect();
                Ok(text(kept.len().to_string()))
            }
            "handle_flood" => {
                let kept: Vec<_> = (0..n).map(|_| blobs::from_bytes(&[1])).collect();
                Ok(text(kept.len().to_string()))
            }
            "rest" => {
                call::progress(1.0, None, Some("resting"));
                std::thread::sleep(std::time::Duration::from_millis(n as u64));
                Ok(text(format!("{} ms left", call::remaining_ms())))
            }
            "stderr_flood" => {
                for line in 0..n {
                    eprintln!("line {line} \x1b[31mred");
                }
                panic!("after many lines");
            }
            "refuse" => Err(error("Not A Code\n", "control \u{1b}[31m characters")),
            "show_config" => Ok(text(config::get())),
            "blob" => {
                let body = Body::Blob(blobs::from_bytes("héllo".as_bytes()));
                let content = vec![Content { mime: Some("text/x-test".to_owned()), body, meta: Vec::new() }];
                Ok(ToolResult { content, structured: None, is_error: false, meta: Vec::new() })
            }
            other => Err(error("unknown_tool", other)),
        }
    }
}

fn spin() -> ! {
    let mut n = 0u64;
    loop {
        n = black_box(n.wrapping_add(1));
    }
}

fn allocate() -> ! {
    let mut all = Vec::new();
    loop {
        all.push(vec![1u8; 1 << 20]);
        black_box(&all);
    }
}

fn recurse(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    recurse(depth + 1) + frame[3]
}

pyro_test_guests::bindings::export_platform!(Plugin with_types_in pyro_test_guests::bindings);
