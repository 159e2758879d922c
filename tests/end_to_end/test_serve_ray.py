"""The deployment of docs/serving.md with Ray Serve, on a local Ray, which is not a dependency."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import NO_RAY

pytest.importorskip("ray.serve", reason=NO_RAY)

CHECKS = """
import json, httpx
import ray

address = "http://127.0.0.1:8000"
assert httpx.get(f"{address}/ready", timeout=60).json()["status"] == "ready"
body = {"prompt": "In the beginning", "max_tokens": 8, "seed": 3, "logprobs": 1}
answers = [httpx.post(f"{address}/v1/completions", json=body, timeout=600).json() for _ in range(6)]
with httpx.stream("POST", f"{address}/v1/completions", json=body | {"stream": True}, timeout=600) as stream:
    lines = [line[6:] for line in stream.iter_lines() if line.startswith("data: ")]
pieces = [json.loads(line)["choices"][0]["text"] for line in lines[:-1]]
refused = httpx.post(f"{address}/v1/completions", json={"prompt": "a", "algorithm": "gibs"}, timeout=60)
status = serve.status().applications["default"].deployments["Replica"]
print(json.dumps({
    "choices": [answer["choices"] for answer in answers],
    "stream": "".join(pieces),
    "refused": refused.status_code,
    "replicas": status.replica_states,
    "local": model_text(),
}))
serve.shutdown()
ray.shutdown()
"""
LOCAL = """
def model_text():
    model = hdlm.load("kjv-epsilon-4m")
    model.network.speed_up(batch_invariant=True)
    (passage,) = model.generate(
        "In the beginning", new_tokens=8, seed=3, stop_at_end=True, progress=False
    )
    return passage.text
"""


@pytest.mark.slow
def test_the_documented_deployment_answers_from_two_replicas(repository: Path, tmp_path: Path) -> None:
    page = (repository / "docs" / "serving.md").read_text(encoding="utf-8")
    (code,) = (block for block in page.split("```py\n") if "from ray import serve" in block)
    script = tmp_path / "deployment.py"
    script.write_text(code.partition("```")[0] + LOCAL + CHECKS, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)], cwd=repository, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    result = json.loads(done.stdout.strip().splitlines()[-1])
    first, *others = result["choices"]
    assert all(choices == first for choices in others)
    assert result["stream"] == first[0]["text"]
    assert result["local"].endswith(first[0]["text"])
    assert result["refused"] == 400
    assert result["replicas"] == {"RUNNING": 2}
