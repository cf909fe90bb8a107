"""A model that follows a script, for the example programs: OpenAI's Responses and Chat Completions APIs on loopback.

It creates a workspace, runs a command in it, deletes it, and then answers with what the command printed. What it does next
follows from how many tool results the conversation has, so it keeps nothing between requests.

    python scripted_model.py PROGRAM [ARGUMENT...]

starts the program with OPENAI_BASE_URL pointing here and exits as the program does.
"""

import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PRINTED = "6 times 7 is 42"


def next_step(results):
    """Returns a tool's name and arguments, or none and the answer."""
    if not results:
        return "workspace_create", {"environment": "debian:12", "name": "example"}
    workspace = re.search(r'workspace_id\W+([0-9a-f]{12})', results[0])
    if workspace is None:
        return None, f"no workspace: {results[0]}"
    workspace = workspace.group(1)
    if len(results) == 1:
        return "workspace_exec", {"workspace_id": workspace, "command": "echo 6 times 7 is $((6*7))"}
    if len(results) == 2:
        return "workspace_delete", {"workspace_id": workspace}
    return None, PRINTED if PRINTED in results[1] else f"not printed: {results[1]}"


def text_of(content):
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content or [])


class Model(BaseHTTPRequestHandler):
    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.endswith("/responses"):
            answer = responses(request)
        elif self.path.endswith("/chat/completions"):
            answer = chat(request)
        else:
            self.send_error(404)
            return
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def responses(request):
    items = request["input"] if isinstance(request["input"], list) else []
    results = [text_of(item["output"]) for item in items if item.get("type") == "function_call_output"]
    known = {tool["name"] for tool in request.get("tools", [])}
    name, value = next_step(results)
    if name is None:
        content = [{"type": "output_text", "text": value, "annotations": []}]
        output = [{"type": "message", "id": "m1", "role": "assistant", "status": "completed", "content": content}]
    else:
        assert name in known, f"{name} is not offered: {known}"
        call = {"type": "function_call", "id": f"f{len(results)}", "call_id": f"c{len(results)}"}
        output = [{**call, "name": name, "arguments": json.dumps(value), "status": "completed"}]
    return {
        "id": "r1", "object": "response", "created_at": 0, "model": request["model"], "status": "completed",
        "output": output, "parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "error": None,
        "incomplete_details": None, "instructions": None, "metadata": {}, "temperature": 1, "top_p": 1,
    }


def chat(request):
    results = [text_of(message["content"]) for message in request["messages"] if message["role"] == "tool"]
    known = {tool["function"]["name"] for tool in request.get("tools", [])}
    name, value = next_step(results)
    if name is None:
        message, reason = {"role": "assistant", "content": value}, "stop"
    else:
        assert name in known, f"{name} is not offered: {known}"
        function = {"name": name, "arguments": json.dumps(value)}
        call = {"id": f"c{len(results)}", "type": "function", "function": function}
        message, reason = {"role": "assistant", "content": None, "tool_calls": [call]}, "tool_calls"
    return {
        "id": "x", "object": "chat.completion", "created": 0, "model": request["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": reason}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }


def main():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Model)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {
        **os.environ,
        "OPENAI_BASE_URL": f"http://127.0.0.1:{server.server_port}/v1",
        "OPENAI_API_KEY": "none",
        "OPENAI_MODEL": "scripted",
    }
    done = subprocess.run([sys.executable, *sys.argv[1:]], env=environment, stdout=subprocess.PIPE, text=True)
    sys.stdout.write(done.stdout)
    if done.returncode == 0 and PRINTED not in done.stdout:
        sys.exit(f"the program did not say `{PRINTED}`")
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
