"""Puts tools/demo_model on the path and reads the held-out sets."""
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / "tools" / "demo_model"
DEMO = ROOT / "models" / "demo"
sys.path.insert(0, str(TOOLS))


def read_set(name):
    """The problems of models/demo/eval/NAME.jsonl."""
    lines = (DEMO / "eval" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
