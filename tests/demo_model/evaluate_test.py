"""The evaluator against a stand-in server that knows the reference answers to some problems."""
import json
import subprocess
import sys
import threading
import unittest
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import support

LIMIT = 6


class StandIn(BaseHTTPRequestHandler):
    """Answers English problems with the reference and Arabic ones with a body that fails."""

    answers = {p["prompt"]: p["canonical_solution"] if p["lang"] == "en" else "    return None"
               for p in support.read_set("heldout")}
    requests = []

    def reply(self, content):
        """Sends JSON."""
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.reply({"object": "list", "data": [{"id": "demo", "object": "model"}]})

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.requests.append(request)
        message = {"role": "assistant", "content": self.answers[request["messages"][0]["content"]]}
        self.reply({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                    "quicksilver": {"forwards": 4, "tokens_per_forward": 3.5}})

    def log_message(self, *_):
        """Keeps the test's output clean."""


class HttpBackendTest(unittest.TestCase):
    def test_prints_pass_rates_and_tokens_per_forward(self):
        server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [sys.executable, support.TOOLS / "evaluate", "--backend=http", "--sets", "heldout",
                   "--limit", str(LIMIT), "--url", f"http://127.0.0.1:{server.server_port}"]
        printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
        server.shutdown()
        server.server_close()
        self.assertIn("heldout: 3/6 = 50.0 %, en 3/3 = 100.0 %, ar 0/3 = 0.0 %; 3.50 tokens per forward", printed)
        self.assertEqual(len(StandIn.requests), LIMIT)
        self.assertTrue(all(r["model"] == "demo" and r["temperature"] == 0 for r in StandIn.requests))


if __name__ == "__main__":
    unittest.main()
