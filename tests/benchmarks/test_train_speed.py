import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = ["--spots", "60", "--tokens", "4", "--dim", "16", "--genes", "5", "--repeats", "1", "--matmul", "64"]


def test_versions_are_timed_in_turns(tmp_path):
    path = tmp_path / "speed.json"
    options = ["--model", "stnet", "--precision", "fp32", "--against", str(ROOT / "src"), "--json", str(path)]
    command = [sys.executable, str(ROOT / "benchmarks" / "train_speed.py"), *SMALL, *options]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    (row,) = json.loads(path.read_text())["results"]
    assert (row["model"], row["precision"]) == ("stnet", "fp32")
    assert row["now"] > 0 and row["before"] > 0
    # one linear layer of 16 x 5: a product forward, and one for the gradient of its weights
    assert row["FLOP per spot"] == pytest.approx(2 * 2 * 16 * 5)
    title, cells = (next(x for x in answer.stdout.splitlines() if x.startswith(k)) for k in ("| model", "| stnet"))
    assert title.count("|") == cells.count("|")
    assert "matrix products, GFLOP/s: fp32" in answer.stdout
