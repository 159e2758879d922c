"""Instruction tuning: chat templates, samples in windows, and what a run learns of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import hdlm
from hdlm.data import Tokenizer, train_tokenizer
from hdlm.data.conversations import (
    CHATML,
    ConversationWindows,
    EncodedConversation,
    chat_template,
    encode_conversation,
)
from hdlm.objective import Corruption, MaskedCrossEntropy
from hdlm.process import Absorbing
from hdlm.regime import Regime

MESSAGES = [
    {"role": "user", "content": "What sat on the mat?"},
    {"role": "assistant", "content": "The cat sat on it."},
    {"role": "user", "content": "And on the log?"},
    {"role": "assistant", "content": "The dog."},
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["the cat sat on the mat and the dog sat on the log . " * 20], 270)


def _file(folder: Path, count: int = 24) -> Path:
    file = folder / "chat.jsonl"
    rows = [[{**m, "content": f"{m['content']} {number}"} for m in MESSAGES] for number in range(count)]
    file.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    return file


def test_answers_are_what_the_template_adds(tokenizer: Tokenizer) -> None:
    template = chat_template()
    sample = encode_conversation(tokenizer, MESSAGES, template)
    answers = [token for token, is_answer in zip(*sample, strict=True) if is_answer]
    assert tokenizer.decode(answers) == "The cat sat on it.<|im_end|>\nThe dog.<|im_end|>\n"
    assert tokenizer.decode(sample.tokens) == template(MESSAGES, False)


def test_template_is_that_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers.utils.chat_template_utils")
    rendered = transformers.render_jinja_template([MESSAGES], chat_template=CHATML)
    assert chat_template()(MESSAGES, False) == (rendered[0][0] if isinstance(rendered, tuple) else rendered)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHATML}))
    (tmp_path / "chat.jinja").write_text(CHATML)
    for source in (tmp_path, tmp_path / "chat.jinja"):
        assert chat_template(str(source))(MESSAGES, True) == chat_template()(MESSAGES, True)


@pytest.mark.parametrize(
    ("messages", "template", "message"),
    [
        (MESSAGES[:1], CHATML, "without an answer"),
        ([{"role": "user"}], CHATML, "a `role` and a `content`"),
        (MESSAGES, "{{ messages|length }} {{ messages[-1]['content'] }}", "changes earlier text"),
        (MESSAGES, "{{ raise_exception('no system') }}", "no system"),
    ],
)
def test_conversation_that_cannot_be_used_is_refused(
    messages: list[dict[str, Any]], template: str, message: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    (tmp_path / "chat.jinja").write_text(template)
    with pytest.raises(ValueError, match=message):
        encode_conversation(tokenizer, messages, chat_template(str(tmp_path / "chat.jinja")))


SAMPLES = [
    EncodedConversation([1, 2, 3, 4, 5], [False, False, True, True, True]),
    EncodedConversation([6, 7, 8], [False, True, True]),
]


def test_samples_share_a_window() -> None:
    windows = ConversationWindows.pack(SAMPLES, 12, end=0, seed=1, width=4)
    samples = windows.samples(0, 1)
    assert windows.batch(0, 1).tolist() == [[1, 2, 3, 4, 5, 0, 0, 0, 6, 7, 8, 0]]
    assert (~samples.given).nonzero()[:, 1].tolist() == [2, 3, 4, 9, 10]
    assert samples.documents.tolist() == [[0] * 5 + [-1] * 3 + [8] * 3 + [-1]]


def test_sample_is_filled_with_ends() -> None:
    windows = ConversationWindows.pack(SAMPLES, 8, end=0, seed=1, fill="end")
    order = windows.batch(0, 2)[:, 0].argsort()
    assert windows.batch(0, 2)[order].tolist() == [[1, 2, 3, 4, 5, 0, 0, 0], [6, 7, 8, 0, 0, 0, 0, 0]]
    samples = windows.samples(0, 2)
    assert samples.given[order].sum(1).tolist() == [2, 1]
    assert (samples.documents == 0).all()


def test_long_samples_are_cut_or_left_out() -> None:
    windows = ConversationWindows.pack(SAMPLES, 2, end=0, seed=1)
    assert windows.batch(0, 1).tolist() == [[6, 7]]
    with pytest.raises(ValueError, match=r"raise data\.context"):
        ConversationWindows.pack(SAMPLES, 1, end=0, seed=1)


def test_every_epoch_has_every_window_once() -> None:
    samples = [EncodedConversation([number, 9], [False, True]) for number in range(5)]
    windows = ConversationWindows.pack(samples, 2, end=0, seed=3)
    epochs = [windows.batch(5 * epoch, 5)[:, 0].tolist() for epoch in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(5))] * 3
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert torch.equal(windows.batch(3, 4), torch.cat([windows.batch(3, 2), windows.batch(5, 2)]))


@pytest.mark.parametrize("two_stream", [False, True])
def test_packed_samples_have_the_loss_that_each_has_alone(two_stream: bool) -> None:
    """No token of a sample depends on the other one, or on padding."""
    network = hdlm.DDiT(hdlm.DDiTConfig(10, hidden_size=16, num_blocks=2, num_heads=2, max_length=12))
    for parameter in network.parameters():  # the output layer of an untrained network is 0
        torch.nn.init.normal_(parameter, std=0.3)
    denoiser = hdlm.Denoiser(network, Absorbing(9), hdlm.Mean())
    windows = ConversationWindows.pack(SAMPLES, 12, end=0, seed=1, width=4)
    plan = hdlm.Block(12, 4, 4) if two_stream else hdlm.flat(12, 4)
    regime = Regime(plan, context="block_causal" if two_stream else "full")
    corruption = Corruption(Absorbing(9), regime, two_stream=two_stream)
    times = torch.full((1, corruption.num_times), 0.3).double()
    draw = torch.rand(1, 12, generator=torch.Generator().manual_seed(0)).double()
    tokens, samples = windows.batch(0, 1), windows.samples(0, 1)

    def loss(clean: torch.Tensor) -> torch.Tensor:
        canvas = corruption(clean, times, draw, given=samples.given, documents=samples.documents)
        assert torch.equal(canvas.x_t[samples.given], clean[samples.given])
        return MaskedCrossEntropy("flat")(denoiser, canvas)[0].detach()

    together = loss(tokens)
    assert not together[samples.given[0]].any()
    other = tokens.clone()
    other[0, 8:] = torch.tensor([3, 3, 3, 3])
    other[0, 5:8] = 2
    torch.testing.assert_close(loss(other)[:5], together[:5], rtol=1e-5, atol=0)
    assert not torch.equal(loss(other)[8:], together[8:])


@pytest.mark.parametrize("fill", ["padding", "end"])
def test_run_on_messages(fill: str, tmp_path: Path) -> None:
    made = hdlm.train(
        str(_file(tmp_path)),
        output=tmp_path / "run",
        steps=3,
        hyperschedule=hdlm.Block(96, 4, 4),
        network={"hidden_size": 16, "num_blocks": 1, "num_heads": 2},
        recipe={
            "data": {"vocabulary": 270, "format": "messages", "fill": fill, "validation": 0.2},
            "process": {"type": "Absorbing"},
            "objective": {"type": "MaskedCrossEntropy", "divisor": "tokens"},
            "run": {"batch_size": 2, "precision": "no"},
        },
        progress=False,
    )
    losses = [
        json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert losses
    assert all(0 < loss < 30 for loss in losses)
    assert made.training["recipe"]["data"]["format"] == "messages"


def test_lines_without_messages_are_refused(tmp_path: Path) -> None:
    (tmp_path / "chat.jsonl").write_text('{"messages": "hello"}\n')
    with pytest.raises(ValueError, match="no list of messages"):
        hdlm.train(
            str(tmp_path / "chat.jsonl"),
            output=tmp_path / "run",
            steps=1,
            hyperschedule=hdlm.Block(96, 4, 4),
            recipe={"data": {"format": "messages"}, "process": {"type": "Absorbing"}},
            progress=False,
        )
