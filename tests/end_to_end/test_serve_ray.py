"""The deployment of docs/serving.md with Ray Serve, on a local Ray, which is not a dependency."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import NO_RAY

pytest.importorskip("ray.serve", reason=NO_RAY)

START = """
import json, random, re, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx, ray

ray.init(num_cpus=4, include_dashboard=False)
"""
CHECKS = r"""
serve.run(app)
address = "http://127.0.0.1:8000"


def ask(seed):
    time.sleep(random.random() / 5)
    how = {"prompt": "In the beginning", "max_tokens": 8, "seed": seed, "logprobs": 1}
    return httpx.post(f"{address}/v1/completions", json=how, timeout=600).json()["choices"]


def counts():  # of the replicas that answer, in any order
    text = [httpx.get(f"{address}/metrics", timeout=60).text for _ in range(60)]
    found = [re.search(r'requests_total.route="/v1/completions",status="200". (\S+)', page) for page in text]
    return sorted({0.0 if one is None else float(one[1]) for one in found})


assert httpx.get(f"{address}/ready", timeout=60).json()["status"] == "ready"
with ThreadPoolExecutor(4) as pool:
    answers = list(pool.map(ask, [3] * 15))
counted = counts()
body = {"prompt": "In the beginning", "max_tokens": 8, "seed": 3}
with httpx.stream("POST", f"{address}/v1/completions", json=body | {"stream": True}, timeout=600) as stream:
    lines = [line[6:] for line in stream.iter_lines() if line.startswith("data: ")]
pieces = [json.loads(line)["choices"][0]["text"] for line in lines[:-1]]
refused = httpx.post(f"{address}/v1/completions", json={"prompt": "a", "algorithm": "gibs"}, timeout=60)
status = serve.status().applications["default"].deployments["Replica"]
Path(sys.argv[1]).write_text(json.dumps({
    "choices": answers,
    "counted": counted,
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
    script, output = tmp_path / "deployment.py", tmp_path / "result.json"
    script.write_text(START + code.partition("```")[0] + LOCAL + CHECKS, encoding="utf-8")
    command = [sys.executable, str(script), str(output)]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    result = json.loads(output.read_text())
    first, *others = result["choices"]
    assert all(choices == first for choices in others)
    assert result["stream"] == first[0]["text"]
    assert result["local"].endswith(first[0]["text"])
    assert result["refused"] == 400
    assert result["replicas"] == {"RUNNING": 2}
    assert len(result["counted"]) == 2  # an odd number of requests, so the counts of two replicas differ
    assert min(result["counted"]) > 0
    assert sum(result["counted"]) == 15
