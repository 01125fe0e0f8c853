"""A scripted stub of the Messages API, standard library only: it runs inside a machine, as the model the real Claude Code talks to.

    python3 messages_stub.py PORT LOG SCRIPT.json

SCRIPT is a list of turns, each a list of content blocks ({"type": "text", "text": …} or {"type": "tool_use", "name": …, "input": …}).
The turn is chosen by the number of assistant messages in the request, so retries and continued conversations get the right
one; past the end of the script the answer is a plain text. Each request for a turn leaves a JSON line in LOG: its turn, what its last
tool result said, and its key. A stub that lies (claims to be done and uses no tool) is a script like any other.
"""

from __future__ import annotations

import json
import sys
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PIECE = 24  # characters per delta: several events per block, as a real model streams


def events(blocks: list[dict[str, Any]], model: str) -> list[dict[str, Any]]:
    """The stream of server-sent events for one assistant message."""
    usage = {"input_tokens": 10, "output_tokens": 10}
    # Ids are fresh each time: Claude Code takes two messages with one id for one message.
    message = {
        "id": f"msg_{uuid.uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage,
    }
    stream: list[dict[str, Any]] = [{"type": "message_start", "message": message}]
    for index, block in enumerate(blocks):
        if block["type"] == "text":
            start, text, kind = {"type": "text", "text": ""}, block["text"], "text_delta"
        else:
            start = {"type": "tool_use", "id": f"toolu_{uuid.uuid4().hex}", "name": block["name"], "input": {}}
            text, kind = json.dumps(block["input"]), "input_json_delta"
        stream.append({"type": "content_block_start", "index": index, "content_block": start})
        key = "text" if kind == "text_delta" else "partial_json"
        stream += [
            {"type": "content_block_delta", "index": index, "delta": {"type": kind, key: text[at : at + PIECE]}}
            for at in range(0, len(text), PIECE)
        ]
        stream.append({"type": "content_block_stop", "index": index})
    reason = "tool_use" if any(block["type"] == "tool_use" for block in blocks) else "end_turn"
    stream.append({"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": None}, "usage": usage})
    stream.append({"type": "message_stop"})
    return stream


def last_tool_result(messages: list[dict[str, Any]]) -> Any:
    """The content of the newest tool result in the conversation, or None."""
    for message in reversed(messages):
        if isinstance(message.get("content"), list):
            for block in reversed(message["content"]):
                if block.get("type") == "tool_result":
                    return block.get("content")
    return None


def serve(port: int, log_path: str, script: list[list[dict[str, Any]]]) -> None:
    """Answer requests on 127.0.0.1:`port` for ever."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class's name
            pass

        def do_HEAD(self) -> None:
            self.answer(b"")

        do_GET = do_HEAD  # noqa: N815  # the base class's form

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if "count_tokens" in self.path:
                self.answer(json.dumps({"input_tokens": 10}).encode())
                return
            messages, model = request["messages"], request.get("model", "stub")
            if any(tool.get("name") == "Write" for tool in request.get("tools", ())):
                turn = sum(message["role"] == "assistant" for message in messages)
                blocks = (
                    script[turn]
                    if turn < len(script)
                    else [{"type": "text", "text": f"Nothing more to do after turn {turn}."}]
                )
                with open(log_path, "a") as log:
                    key = self.headers.get("X-Api-Key") or self.headers.get("Authorization")
                    log.write(json.dumps({"turn": turn, "result": last_tool_result(messages), "key": key}) + "\n")
            else:  # a side question, such as a title for the conversation
                blocks = [{"type": "text", "text": "stub"}]
            stream = events(blocks, model)
            if request.get("stream"):
                body = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in stream).encode()
                self.answer(body, "text/event-stream")
            else:
                content = [{"type": "text", "text": block["text"]} for block in blocks if block["type"] == "text"]
                self.answer(
                    json.dumps({**stream[0]["message"], "content": content, "stop_reason": "end_turn"}).encode()
                )

        def answer(self, body: bytes, kind: str = "application/json") -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    with open(sys.argv[3]) as file:
        serve(int(sys.argv[1]), sys.argv[2], json.load(file))
