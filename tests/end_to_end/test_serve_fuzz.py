"""Requests that schemathesis makes from the server's own description.

The description is read when the tests are collected. `pytest -m "not slow"` does not collect this file.
"""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings

from hdlm.serve.app import create_app
from hdlm.serve.models import ServedModel
from hdlm.serve.options import ServeOptions
from tests.serving import TEMPLATE, small_checkpoint

FUZZED = ServeOptions(slots=4, request_timeout=20.0, max_n=4, max_steps=16, no_auth=True, host="0.0.0.0")
MODELS = [ServedModel("small", small_checkpoint(), TEMPLATE)]
SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", create_app(MODELS, FUZZED))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@SCHEMA.parametrize()
@settings(
    max_examples=10,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
    derandomize=True,
)
def test_no_request_is_answered_by_a_fault(case: schemathesis.Case) -> None:
    response = case.call()
    assert response.status_code < 500, response.text
