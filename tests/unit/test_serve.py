"""The server: the interface of OpenAI with its real client, refusals, limits and safety."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest

from hdlm.cli import main
from hdlm.generation import Ending, Settings, write
from hdlm.generation.recording import TraceDocument
from hdlm.generation.write import prompt_ids
from hdlm.process import Absorbing
from hdlm.sampling import ALGORITHMS
from hdlm.serve import app
from hdlm.serve.jobs import Job, Worker
from hdlm.serve.metrics import ServerMetrics
from hdlm.serve.models import ServedModel, read_chat_template
from hdlm.serve.options import ServeOptions
from hdlm.serve.run import bound_socket
from hdlm.serve.translate import Plan
from tests.serving import HTTP, TEMPLATE, serving, small_checkpoint, small_model

MODEL = small_model()
MASKS = ServedModel("masks", small_checkpoint(Absorbing(MODEL.checkpoint.vocabulary.num_words)))
CHAT = ServedModel("chat", MODEL.checkpoint, TEMPLATE)
PROMPT = "In the beginning"
DRAFT = "In the land was the word, and the people was with the beginning."


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving([MODEL, CHAT], ServeOptions(slots=4, max_body=200_000)) as address:
        yield address


@pytest.fixture(scope="module")
def address_of_masks() -> Iterator[str]:
    with serving([MODEL, MASKS]) as address:
        yield address


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


def alone(num: int = 1, seed: int = 5, count: int = 12, **settings: Any) -> list[str]:
    """The texts that the library generates."""
    how = Settings(length=_num_given() + count, **settings)
    return [p.text for p in write(MODEL.checkpoint, PROMPT, how, num=num, seed=seed, ending=Ending(True))]


def _num_given() -> int:
    return len(prompt_ids(MODEL.checkpoint.tokenizer, PROMPT))


def post(address: str, path: str = "/v1/completions", **body: Any) -> httpx.Response:
    return HTTP.post(f"{address}{path}", json=body, timeout=60)


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["small", "chat"]
    assert client.models.retrieve("chat").model_extra["hdlm_chat"] is True
    with pytest.raises(openai.NotFoundError, match="no model 'other'"):
        client.models.retrieve("other")


def test_completions_are_the_texts_of_the_library(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="small", prompt=PROMPT, max_tokens=12, n=3, seed=5, echo=True, temperature=0.8
    )
    assert [choice.text for choice in answer.choices] == alone(3, temperature=0.8)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == _num_given()
    assert answer.usage.model_extra["forward_passes"] > 3
    plain = client.completions.create(
        model="small", prompt=PROMPT, max_tokens=12, n=3, seed=5, temperature=0.8
    )
    assert [PROMPT + choice.text for choice in plain.choices] == [choice.text for choice in answer.choices]


def test_streams_of_both_clients_join_to_the_text(client: openai.OpenAI, address: str) -> None:
    how: dict[str, Any] = {"model": "small", "prompt": PROMPT, "max_tokens": 12, "seed": 5}
    chunks = list(client.completions.create(**how, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)
    assert PROMPT + text == alone()[0]
    assert chunks[-2].choices[0].finish_reason in ("stop", "length")
    assert chunks[-1].usage is not None
    assert len(chunks) > 4

    async def read() -> str:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none") as other:
            stream = await other.completions.create(**how, stream=True)
            return "".join([chunk.choices[0].text async for chunk in stream])

    assert asyncio.run(read()) == text


def test_stop_strings_end_a_text(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="small", prompt=PROMPT, max_tokens=30, seed=7).choices[0].text
    stop = whole[10:12]
    cut = client.completions.create(model="small", prompt=PROMPT, max_tokens=30, seed=7, stop=stop).choices[0]
    assert cut.text == whole[: whole.index(stop)]
    assert cut.finish_reason == "stop"


def test_logprobs_are_those_of_the_written_tokens(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="small", prompt=PROMPT, max_tokens=6, seed=5, logprobs=2, echo=True
    )
    found = answer.choices[0].logprobs
    assert found is not None
    assert found.token_logprobs[: _num_given()] == [None] * _num_given()
    written = found.token_logprobs[_num_given() :]
    assert len(written) == 6
    assert all(number is not None and number < 0 for number in written)
    assert all(len(top) <= 2 for top in found.top_logprobs[_num_given() :])
    assert "".join(found.tokens).strip() == answer.choices[0].text


def test_suffix_and_gaps_are_filled(client: openai.OpenAI, address: str) -> None:
    choice = client.completions.create(
        model="small", prompt=PROMPT, suffix=" the word.", max_tokens=4, seed=1
    )
    whole = post(address, "/v1/infill", text=f"{PROMPT}[MASK:4] the word.", seed=1).json()["choices"][0]
    assert whole["gaps"] == [choice.choices[0].text]
    assert whole["text"] == write(MODEL.checkpoint, f"{PROMPT}[MASK:4] the word.", seed=1)[0].text
    several = post(
        address, "/v1/infill", text="[MASK:2] beginning [MASK] the word [MASK:3]", n=2, seed=1
    ).json()
    assert [len(choice["gaps"]) for choice in several["choices"]] == [3, 3]


@pytest.mark.parametrize(
    "how",
    [
        {"algorithm": "acs", "eta": 1.0, "steps": 3},
        {"algorithm": "gibbs", "noise": 0.3, "temperature": 0.7},
        {"hyperschedule": "block", "width": 4, "steps": 2, "eta": 0.9},
    ],
    ids=str,
)
def test_texts_are_corrected_as_in_the_library(address: str, how: dict[str, Any]) -> None:
    answer = post(address, "/v1/correct", text=DRAFT, n=2, seed=3, logprobs=1, **how).json()
    passages = MODEL.checkpoint.correct(DRAFT, num=2, seed=3, progress=False, **how)
    assert [choice["text"] for choice in answer["choices"]] == [passage.text for passage in passages]
    before, read = prompt_ids(MODEL.checkpoint.tokenizer, DRAFT), MODEL.checkpoint.tokenizer.piece
    for choice, passage in zip(answer["choices"], passages, strict=True):
        pieces = [read(token) for token in before]
        for change in choice["corrections"]:
            assert pieces[change["position"]] == change["old"]
            pieces[change["position"]] = change["new"]
        assert choice["corrections"]
        assert pieces == [read(token) for token in passage.tokens]
        known = choice["logprobs"]["token_logprobs"]  # without the first token, which stays
        assert all(known[change["position"] - 1] is not None for change in choice["corrections"])
    assert answer["usage"]["prompt_tokens"] == len(before)
    assert answer["usage"]["completion_tokens"] == 2 * (len(before) - 1)


def test_frames_of_a_correction_begin_with_the_text(address: str) -> None:
    body = {"text": DRAFT, "seed": 3, "eta": 1.0, "stream": True, "diffusion_frames": True}
    lines = [
        line[6:] for line in post(address, "/v1/correct", **body).text.splitlines() if line[:7] == "data: {"
    ]
    *frames, last = map(json.loads, lines)
    document = TraceDocument.from_dict(frames[0]["hdlm_frame"]["document"])
    assert document.settings["noise"] == 0.5
    assert list(document.sequences[0].start) == prompt_ids(MODEL.checkpoint.tokenizer, DRAFT)
    (choice,) = post(address, "/v1/correct", text=DRAFT, seed=3, eta=1.0).json()["choices"]
    assert last["choices"][0] == choice
    assert all(chunk["choices"][0]["text"] == "" for chunk in frames)


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({"text": "a [MASK] word"}, "text", "no gaps"),
        ({"text": ""}, "text", "at least 1"),
        ({"text": "word " * 100}, "text", "between 1 and 48 positions"),
        ({"text": ["a"]}, "text", "valid string"),
        ({"noise": 0}, "noise", "greater than 0"),
        ({"noise": 1.5}, "noise", "less than or equal to 1"),
        ({"algorithm": "original"}, "algorithm", "Algorithms that replace words: exact, acs, doubt"),
        ({"remasking": "random"}, "remasking", "replaces no word"),
        ({"gen_length": 8}, "gen_length", "leave `length`"),
        ({"stop": "a"}, "stop", "There is no field `stop`"),
        ({"model": "masks"}, "algorithm", "Use a model whose noise replaces words"),
        (
            {"model": "masks", "algorithm": "doubt"},
            "algorithm",
            "an algorithm that does not need such noise: remask, ",
        ),
        ({"diffusion_frames": True}, "diffusion_frames", "stream"),
    ],
    ids=str,
)
def test_what_cannot_be_corrected_is_refused(
    address_of_masks: str, body: dict[str, Any], field: str, words: str
) -> None:
    answer = post(address_of_masks, "/v1/correct", **({"text": DRAFT} | body))
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], words in error["message"]) == (field, True), error


def test_a_model_of_masks_corrects_by_masking_again(address_of_masks: str) -> None:
    how = {"algorithm": "remask", "steps": 4}
    answer = post(address_of_masks, "/v1/correct", model="masks", text=DRAFT, seed=1, **how).json()
    (passage,) = MASKS.checkpoint.correct(DRAFT, seed=1, progress=False, **how)
    assert answer["choices"][0]["text"] == passage.text != DRAFT
    entries = {entry["id"]: entry["hdlm_correcting"] for entry in _models(address_of_masks)}
    assert "acs" in entries["small"]
    assert "original" not in entries["small"]
    assert "acs" not in entries["masks"]


def _models(address: str) -> list[dict[str, Any]]:
    return list(HTTP.get(f"{address}/v1/models").json()["data"])


def test_chats_need_a_template(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "In the"}]
    answer = client.chat.completions.create(
        model="chat", messages=messages, max_tokens=5, seed=2, logprobs=True, top_logprobs=1
    )
    text = answer.choices[0].message.content
    stream = client.chat.completions.create(
        model="chat", messages=messages, max_tokens=5, seed=2, stream=True
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == text
    assert answer.choices[0].logprobs is not None
    assert len(answer.choices[0].logprobs.content or ()) == 5
    with pytest.raises(openai.BadRequestError, match="no chat template"):
        client.chat.completions.create(model="small", messages=messages)


def test_frames_are_a_trace(client: openai.OpenAI) -> None:
    stream = client.completions.create(
        model="small", prompt=PROMPT, max_tokens=8, seed=5, stream=True, extra_body={"diffusion_frames": True}
    )
    frames = [chunk.model_extra["hdlm_frame"] for chunk in stream if "hdlm_frame" in chunk.model_extra]
    document = TraceDocument.from_dict(frames[0]["document"])
    assert document.seed == 5
    tokens = list(document.sequences[0].start)
    assert len(tokens) == _num_given() + 8
    for frame in frames:
        for position, new in zip(frame["changes"]["position"], frame["changes"]["new"], strict=True):
            tokens[position] = new
    text = (
        client.completions.create(model="small", prompt=PROMPT, max_tokens=8, seed=5, echo=True)
        .choices[0]
        .text
    )
    assert MODEL.checkpoint.tokenizer.decode(tokens).strip().startswith(text)


def test_token_ids_with_gaps_are_filled_in(address: str) -> None:
    """The canvas is the list: given tokens stay where they are, also where their text has other tokens."""
    ids = [*prompt_ids(MODEL.checkpoint.tokenizer, PROMPT), None, 7, None]
    body = {"text": ids, "seed": 2, "stream": True, "diffusion_frames": True}
    lines = [
        line[6:] for line in post(address, "/v1/infill", **body).text.splitlines() if "hdlm_frame" in line
    ]
    frames = [json.loads(line)["hdlm_frame"] for line in lines]
    mask_id = MODEL.checkpoint.vocabulary.mask_id
    (sequence,) = frames[0]["document"]["sequences"]
    assert sequence["start"] == [mask_id if token is None else token for token in ids]
    assert {place for frame in frames for place in frame["changes"]["position"]} == {
        len(ids) - 3,
        len(ids) - 1,
    }


OTHER_NAMED: tuple[dict[str, Any], ...] = (
    {"gen_length": 8, "remasking": "low_confidence", "block_length": 4, "temperature": 0.0},
    {"max_new_tokens": 8, "alg": "entropy", "diffusion_steps": 2},
    {"new_tokens": 8, "algorithm": "topk_margin"},
    {"gen_length": 8, "remasking_strategy": "low_confidence_dynamic", "confidence_threshold": 0.3},
    {"gen_length": 8, "factor": 0.5, "hyperschedule": "flat", "small_block_size": 4, "denoising_steps": 1},
    {"gen_length": 8, "cfg": 1.5, "max_denoising_steps": 2},
    {"gen_length": 8, "entropy_bound": 0.2, "temperature": 0.0},
)


@pytest.mark.parametrize("options", OTHER_NAMED, ids=str)
def test_options_of_other_tools_mean_what_they_mean_in_the_library(
    address: str, options: dict[str, Any]
) -> None:
    (passage,) = MODEL.checkpoint.generate(PROMPT, seed=5, progress=False, **options)
    sent = {"max_tokens" if name == "new_tokens" else name: value for name, value in options.items()}
    answer = post(address, prompt=PROMPT, seed=5, echo=True, ignore_eos=True, **sent)
    assert answer.json()["choices"][0]["text"] == passage.text


@pytest.mark.parametrize("ids", [[1, 2], [], [None, 10**6], [None] * 100, [-1, None], [None, "a"]])
def test_token_ids_that_do_not_fit_are_refused(address: str, ids: list[Any]) -> None:
    answer = post(address, "/v1/infill", text=ids)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


COMPANY: tuple[dict[str, Any], ...] = (
    {"prompt": PROMPT, "max_tokens": 8},
    {"prompt": "", "max_tokens": 8, "n": 2, "temperature": 0.5},
    {"prompt": "the word", "max_tokens": 9, "algorithm": "gibbs", "top_p": 0.9},
    {
        "prompt": PROMPT,
        "max_tokens": 6,
        "n": 2,
        "repetition_penalty": 1.3,
        "hyperschedule": "flat",
        "steps": 5,
    },
    {"prompt": "the land", "max_tokens": 7, "threshold": 0.3},
    {"prompt": "people", "max_tokens": 4, "cfg_scale": 0.5},
    {"path": "/v1/correct", "text": DRAFT, "eta": 1.0, "steps": 3},
    {"path": "/v1/correct", "text": PROMPT, "n": 2, "algorithm": "doubt", "noise": 0.2},
)
COMPANY = tuple({"seed": seed, "n": 1, "logprobs": 1, **body} for seed, body in enumerate(COMPANY))


def test_answers_are_the_same_bytes_alone_and_in_company(address: str) -> None:
    """Every digit of the log probabilities is compared as well."""
    single = [post(address, **body).json()["choices"] for body in COMPANY]
    numbers = random.Random(0)
    wanted = list(range(len(COMPANY)))
    numbers.shuffle(wanted)

    def ask(place: int) -> tuple[int, str]:
        time.sleep(numbers.random() / 20)
        return place, json.dumps(post(address, **COMPANY[place]).json()["choices"])

    with ThreadPoolExecutor(8) as pool:
        for place, choices in pool.map(ask, wanted):
            assert choices == json.dumps(single[place])


REFUSED: tuple[tuple[dict[str, Any], str, str], ...] = (
    ({"tempreature": 1}, "tempreature", "There is no field `tempreature`; did you mean `temperature`?"),
    ({"max_tokns": 4}, "max_tokns", "did you mean `max_tokens`?"),
    ({"zzz": 4}, "zzz", "the fields are gen_length, "),
    ({"stream_options": {"x": 1}}, "stream_options", "There is no field `stream_options.x`: leave it out."),
    ({"prompt": ["a", 3]}, "prompt", "`prompt.1` must be a valid string; got 3."),
    ({"max_tokens": -4}, "max_tokens", "`max_tokens` must be greater than or equal to 1; got -4."),
    ({"algorithm": "gibs"}, "algorithm", "did you mean 'gibbs'"),
    ({"threshold": 0.9, "eta": 0.3}, "threshold", "two names"),
    ({"remasking": "random", "threshold": 0.9}, "threshold", "no effect"),
    ({"remasking": "surest"}, "remasking", "low_confidence"),
    ({"remasking": "random", "algorithm": "acs", "alg": "entropy"}, "alg", "two names"),
    ({"gen_length": 8, "max_tokens": 9}, "gen_length", "two names"),
    ({"gen_length": 10**6}, "gen_length", "at most"),
    ({"diffusion_steps": 10**6}, "diffusion_steps", "at most 1024"),
    ({"block_size": 1000}, "block_size", "lie in"),
    ({"suffix": "b", "max_tokens": None}, "max_tokens", "needs"),
    ({"threshold": 0.9, "algorithm": "acs"}, "threshold", "no effect"),
    ({"max_tokens": 10**6}, "max_tokens", "at most"),
    ({"temperature": -1}, "temperature", "greater than"),
    ({"temperature": 1e-40}, "temperature", "float32"),
    ({"steps": 10**6}, "steps", "at most 1024"),
    ({"steps": 3, "max_denoising_steps": 4}, "max_denoising_steps", "two names"),
    ({"hyperschedule": "flat", "width": 3}, "width", "no effect"),
    ({"width": 1000}, "width", "lie in"),
    ({"grid": "strange"}, "grid", "grid"),
    ({"n": 1000}, "n", "at most 32"),
    ({"seed": 2**70}, "seed", "less than"),
    ({"stop": ""}, "stop", ""),
    ({"prompt": "a [MASK]"}, "prompt", "/v1/infill"),
    ({"prompt": "word " * 500}, "prompt", "context"),
    ({"prompt": ["a"] * 40}, "prompt", "at most 32"),
    ({"suffix": "b", "stop": "c"}, "stop", "no effect"),
    ({"model": "other"}, "model", "there are: small, chat"),
    ({"best_of": 4}, "best_of", "not supported"),
    ({"frequency_penalty": 1}, "frequency_penalty", "repetition_penalty"),
    ({"diffusion_frames": True}, "diffusion_frames", "stream"),
)


@pytest.mark.parametrize(("body", "field", "words"), REFUSED, ids=lambda value: str(value)[:40])
def test_a_refusal_names_the_field(address: str, body: dict[str, Any], field: str, words: str) -> None:
    answer = post(address, **({"prompt": "a"} | body))
    assert answer.status_code in (400, 404)
    error = answer.json()["error"]
    assert error["param"] == field, error
    assert words in error["message"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"prompt": "\xff\xfe"}',
        b'{"prompt": "\\ud800"}',
        b'{"temperature": NaN}',
        b'{"temperature": 1e999}',
        b'{"seed": ' + b"9" * 5000 + b"}",
        b'{"prompt": {"a": 1}}',
        b"[" * 20_000,
        b'{"stop": [' + b'"a",' * 30 + b'"b"]}',
    ],
    ids=lambda content: str(content[:20]),
)
def test_hostile_bodies_are_refused(address: str, content: bytes) -> None:
    answer = HTTP.post(
        f"{address}/v1/completions", content=content, headers={"content-type": "application/json"}, timeout=60
    )
    assert answer.status_code == 400, answer.text
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "The body is missing: send a JSON object."),
        ("[]", "The body must be a JSON object; got []."),
        (
            '{"n": 1,}',
            "The body is not valid JSON: Expecting property name enclosed in double quotes, at character 8.",
        ),
        ("{}", "The field `messages` is missing."),
        (b'{"n": "\xff"}', "The body is not UTF-8: invalid start byte at byte 7."),
        ('{"messages":' + 50_000 * "[", "The body has too many nested lists or objects."),
    ],
    ids=lambda value: str(value[:20]),
)
def test_bodies_without_fields_are_refused_in_a_sentence(
    address: str, content: str | bytes, message: str
) -> None:
    answer = HTTP.post(
        f"{address}/v1/chat/completions", content=content, headers={"content-type": "application/json"}
    )
    error = answer.json()["error"]
    param = "messages" if "messages" in message else None
    assert (answer.status_code, error["message"], error["param"]) == (400, message, param)


def test_large_bodies_are_refused_with_and_without_a_length(address: str) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 10_000

    for content in (b"x" * 300_000, parts()):
        try:
            answer = HTTP.post(f"{address}/v1/completions", content=content)
        except (httpx.WriteError, httpx.RemoteProtocolError, httpx.ReadError):
            continue  # the server has closed the connection without reading the rest
        assert answer.status_code == 413


def test_a_body_of_another_type_and_a_foreign_host_are_refused(address: str) -> None:
    answer = HTTP.post(f"{address}/v1/completions", content='{"prompt": "a"}')
    assert answer.status_code == 400
    assert "application/json" in answer.json()["error"]["message"]
    assert HTTP.get(f"{address}/health", headers={"host": "evil.example"}).status_code == 400


def test_answers_have_safe_headers_and_request_ids(address: str) -> None:
    answer = HTTP.get(f"{address}/health", headers={"x-request-id": "mine", "origin": "http://evil.example"})
    assert answer.headers["x-request-id"] == "mine"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "access-control-allow-origin" not in answer.headers
    assert (
        HTTP.get(f"{address}/health", headers={"x-request-id": "a b\t{}"}).headers["x-request-id"]
        != "a b\t{}"
    )
    assert HTTP.get(f"{address}/nothing").json()["error"]["type"] == "not_found_error"


def test_metrics_count_requests_and_tokens(address: str) -> None:
    post(address, prompt=PROMPT, max_tokens=3)
    text = HTTP.get(f"{address}/metrics", timeout=60).text
    assert 'hdlm_requests_total{route="/v1/completions",status="200"}' in text
    names = ("generated_tokens_total", "evaluations_total", "tokens_per_forward_sum", "batch_fill_sum")
    assert all(f"hdlm_{name}" in text for name in names)
    assert HTTP.get(f"{address}/ready").json()["status"] == "ready"


def test_a_key_is_needed_where_one_is_set() -> None:
    with serving([MODEL], ServeOptions(api_key="secret")) as address:
        assert HTTP.get(f"{address}/health").status_code == 200
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic secret"}):
            assert HTTP.get(f"{address}/v1/models", headers=headers).status_code == 401
        with openai.OpenAI(base_url=f"{address}/v1", api_key="secret") as client:
            assert [model.id for model in client.models.list()] == ["small"]


def test_a_server_for_others_needs_a_key() -> None:
    with pytest.raises(ValueError, match="set `api_key`, or `no_auth`"):
        ServeOptions(host="0.0.0.0")
    assert not ServeOptions(host="0.0.0.0", no_auth=True).is_loopback
    assert ServeOptions(host="::1").is_loopback
    with pytest.raises(ValueError, match="`slots` must be at least 1"):
        ServeOptions(slots=0)


def test_a_busy_port_is_refused_before_a_model_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        assert main(["serve", "no-such-model", "--port", str(port)]) == 2
    line = f"hdlm serve: port {port} of 127.0.0.1 is in use: give another --port\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("port", ["-1", "99999999"])
def test_a_port_out_of_range_is_refused(capsys: pytest.CaptureFixture[str], port: str) -> None:
    assert main(["serve", "--port", port]) == 2
    assert capsys.readouterr().err == f"hdlm serve: `port` must lie in [0, 65535]; got {port}.\n"


def test_a_bound_socket_has_a_free_port_and_refuses_connections() -> None:
    with bound_socket(ServeOptions(port=0)) as bound:
        assert bound.getsockname()[1] > 0
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(bound.getsockname())


def test_a_full_queue_answers_429_and_a_gone_client_makes_room() -> None:
    slow = {"prompt": "", "max_tokens": 40, "hyperschedule": "autoregressive", "stream": True}
    with serving([MODEL], ServeOptions(slots=2, queue=2, max_n=500)) as address:
        with httpx.Client(timeout=60) as one, httpx.Client(timeout=60) as other:
            body = slow | {"diffusion_frames": True, "n": 500}
            with (
                one.stream("POST", f"{address}/v1/completions", json=body) as first,
                other.stream("POST", f"{address}/v1/completions", json=body) as second,
            ):
                lines = [first.iter_lines(), second.iter_lines()]  # a stream ends with its iterator
                for own in lines:
                    next(own)
                refused = post(address, prompt="a")
                assert refused.status_code == 429
                assert refused.headers["retry-after"] == "1"
        assert _becomes(address, "hdlm_requests_open 0.0")
        assert _becomes(address, "hdlm_passages_running 0.0")
        assert post(address, prompt="a", max_tokens=2).status_code == 200


def test_a_worker_takes_any_number_of_waiting_orders() -> None:
    """Thousands of clients may come and go during one step of a large model."""
    worker = Worker(1, 1, ServerMetrics(1))
    gone = Job([], [])
    gone.num_left = 1
    for _ in range(3000):
        worker.release(gone)

    async def run() -> None:
        worker.start()
        await worker.end()

    asyncio.run(run())  # an error in the thread would be a warning, which is an error here


def _becomes(address: str, line: str) -> bool:
    for _ in range(200):
        if line in HTTP.get(f"{address}/metrics", timeout=60).text:
            return True
        time.sleep(0.05)
    return False


def test_a_long_request_ends_with_408() -> None:
    with serving([MODEL], ServeOptions(request_timeout=0.2)) as address:
        answer = post(address, prompt="", max_tokens=40, n=32)
        assert answer.status_code == 408
        assert answer.json()["error"]["code"] == "timeout"


def test_small_requests_do_not_wait_for_a_large_one(address: str) -> None:
    """The large request needs all slots four times."""
    done: list[str] = []

    def large() -> None:
        post(address, prompt="", max_tokens=20, n=16)
        done.append("large")

    thread = threading.Thread(target=large)
    thread.start()
    time.sleep(0.1)
    for _ in range(2):
        post(address, prompt="a", max_tokens=2)
        done.append("small")
    thread.join()
    assert done == ["small", "small", "large"]


LARGE: dict[str, Any] = {
    "prompt": "",
    "max_tokens": 40,
    "ignore_eos": True,
    "n": 4,
    "hyperschedule": "flat",
    "steps": 6,
    "logprobs": 20,
    "stream": True,
    "diffusion_frames": True,
}
"""A request for a stream of more than a hundred kilobytes."""
LONG = LARGE | {"n": 32, "hyperschedule": "autoregressive", "steps": None}
"""A request that takes more than a second."""
READER = """
import json, sys, urllib.request
address, body = sys.argv[1], sys.argv[2].encode()
asked = urllib.request.Request(address, body, {"Content-Type": "application/json"})
for line in urllib.request.urlopen(asked):
    print(len(line), flush=True)
"""


def test_a_killed_client_changes_no_bytes_and_ends_its_work(address: str) -> None:
    """The client is another process, which ends in the middle of a stream, without a word (kill -9)."""
    other = COMPANY[1] | {"n": 4}
    wanted = post(address, **other).json()["choices"]
    command = [sys.executable, "-c", READER, f"{address}/v1/completions", json.dumps(LONG)]
    with (
        ThreadPoolExecutor(1) as pool,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client,
    ):
        assert client.stdout is not None
        for _ in range(5):
            assert int(client.stdout.readline()) > 0
        answer = pool.submit(post, address, **other)
        client.kill()
        assert client.wait() == -signal.SIGKILL
        assert answer.result().json()["choices"] == wanted
    assert _becomes(address, "hdlm_requests_open 0.0")
    calls = _metric(address, "hdlm_evaluations_total")
    assert _becomes(address, "hdlm_passages_running 0.0")
    assert _metric(address, "hdlm_evaluations_total") <= calls + 1


def _metric(address: str, name: str) -> float:
    lines = HTTP.get(f"{address}/metrics", timeout=60).text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


@contextmanager
def _stalled(address: str) -> Iterator[socket.socket]:
    """A client that has asked for a large stream and reads nothing of it."""
    host, _, port = address.removeprefix("http://").partition(":")
    body = json.dumps(LARGE)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((host, int(port)))
        client.sendall(f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        yield client


def test_a_slow_reader_gets_its_stream_and_delays_nobody() -> None:
    with serving([MODEL], ServeOptions(slots=4), send_buffer=4096) as address:
        wanted = post(address, **COMPANY[1]).json()["choices"]
        with _stalled(address) as client:
            assert _becomes(address, "hdlm_requests_open 1.0")
            assert post(address, **COMPANY[1]).json()["choices"] == wanted
            assert _becomes(address, "hdlm_passages_running 0.0")
            assert _metric(address, "hdlm_requests_open") == 1
            parts = []
            while part := client.recv(4096):
                parts.append(part)
        assert b"data: [DONE]" in b"".join(parts)


@pytest.mark.slow
def test_a_client_that_reads_nothing_loses_its_place() -> None:
    """Its job is released although the answer cannot be sent; such clients must not fill the queue for ever."""
    server, waiting = app.create_app([MODEL], ServeOptions(request_timeout=2.0)), [json.dumps(LARGE).encode()]
    sent: list[str] = []
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/completions",
        "query_string": b"",
        "headers": headers,
    }

    async def receive() -> dict[str, Any]:
        if not waiting:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": waiting.pop()}

    async def send(message: Any) -> None:
        sent.append(message["type"])
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    async def run() -> None:
        async with server.router.lifespan_context(server):
            await asyncio.wait_for(server(scope, receive, send), 60)
            assert server.state.worker.num_open == 0

    asyncio.run(run())
    assert sent == ["http.response.start", "http.response.body"]


def test_a_client_that_sends_no_body_is_answered_408() -> None:
    with serving([MODEL], ServeOptions(request_timeout=0.2)) as address:
        host, _, port = address.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=60) as client:
            client.sendall(
                f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: 9\r\n\r\n".encode()
            )
            assert client.recv(4096).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("place", ["step", "watcher"])
def test_an_error_in_one_request_ends_no_other(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others share its network calls, and keep their bytes; their streams have every frame once."""

    def fail(*_: object) -> None:
        raise KeyError("injected")

    def frame(plan: Plan, *rest: Any) -> Any:
        return fail() if plan.seed == 13 else frame_of_plan(plan, *rest)

    frame_of_plan = app._frame
    monkeypatch.setattr(app, "_frame", frame if place == "watcher" else frame_of_plan)
    monkeypatch.setitem(ALGORITHMS, "remask", (lambda *_: fail) if place == "step" else ALGORITHMS["remask"])
    bad: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 8, "seed": 13, "algorithm": "remask"}
    streamed = {"stream": True, "diffusion_frames": True}
    with serving([MODEL], ServeOptions(slots=8)) as address:
        good = {"prompt": PROMPT, "max_tokens": 8, "seed": 5, "n": 2, **streamed}
        wanted = _frames_and_text(post(address, **good).text)
        plain = post(address, **COMPANY[0]).json()["choices"]
        with ThreadPoolExecutor(4) as pool:
            stream = pool.submit(post, address, **good)
            ended = pool.submit(post, address, **bad, **streamed)
            alone = pool.submit(post, address, **bad)
            other = pool.submit(post, address, **COMPANY[0])
            assert _frames_and_text(stream.result().text) == wanted
            assert other.result().json()["choices"] == plain
        *_, last = ended.result().text.strip().splitlines()
        error = json.loads(last.removeprefix("data: "))["error"]
        assert error["code"] == "computation_failed"
        assert "injected" not in error["message"]
        assert alone.result().status_code == (422 if place == "step" else 200)
        assert HTTP.get(f"{address}/ready").status_code == 200


def _frames_and_text(stream: str) -> list[Any]:
    """For each passage its text and the steps and changes of its frames, in order."""
    passages: dict[int, list[Any]] = {}
    for line in stream.splitlines():
        if line.startswith("data: {"):
            chunk = json.loads(line[6:])
            (choice,) = chunk["choices"]
            frame = chunk.get("hdlm_frame", {})
            entry = choice["text"] or (frame.get("step"), frame.get("changes"), choice["finish_reason"])
            passages.setdefault(choice["index"], []).append(entry)
    return [passages[index] for index in sorted(passages)]


def test_frames_of_several_passages_belong_to_their_choices(address: str) -> None:
    body = {"prompt": PROMPT, "max_tokens": 8, "seed": 5, "stream": True, "diffusion_frames": True}
    both = _frames_and_text(post(address, **body, n=2).text)
    assert len(both) == 2
    for index, passage in enumerate(both):
        frames = [entry for entry in passage if not isinstance(entry, str) and entry[1]]
        assert len(frames) > 2
        assert {sequence for _, changes, _ in frames for sequence in changes["sequence"]} == {index}
    assert both[0] == _frames_and_text(post(address, **body).text)[0]


def test_a_template_is_read_from_a_folder(tmp_path) -> None:
    assert read_chat_template(tmp_path) is None
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "a"}')
    assert read_chat_template(tmp_path) == "a"
    (tmp_path / "chat_template.jinja").write_text("b")
    assert read_chat_template(tmp_path) == "b"
    model = ServedModel("x", MODEL.checkpoint, "{{ raise_exception('only users') }}")
    with pytest.raises(ValueError, match="refuses the messages: only users"):
        model.prompt_of([{"role": "system", "content": ""}])
