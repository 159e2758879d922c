"""From a causal model to a diffusion model: the verb, the mask, curricula, and layouts of published recipes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import hdlm
from hdlm.cli import main
from hdlm.objective import CleanStream, Corruption, CorruptionLayout, MaskedCrossEntropy, Opening
from hdlm.process import Absorbing, Uniform
from hdlm.randomness import Randomness
from hdlm.regime import Regime
from hdlm.sharing.export import export
from hdlm.training import Mixture, Recipe
from hdlm.training.conversion import prepared
from tests.unit.test_open_recipes import _table, _trained

TEXT = "First Citizen: we are accounted poor citizens. " * 60
LENGTH = 12


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    return file


def _causal(shared: Path, name: str) -> Path:
    return shared / "golden" / "modern" / "causal" / name


def _finetune(*words: object) -> None:
    assert main(["finetune", *map(str, words)]) == 0


# -- the verb -------------------------------------------------------------------------------------------------


def test_verb_records_what_it_converts(shared: Path, text: Path, tmp_path: Path) -> None:
    source = _causal(shared, "qwen3")
    small = ["--set", "data.context=16", "run.batch_size=2", "run.save_steps=2", "run.precision=no"]
    common = [source, "--to", "diffusion", "--text", text, "--threads", 1, "--seed", 3, *small]
    _finetune(*common, "--output", tmp_path / "through", "--steps", 4)
    made = hdlm.load(tmp_path / "through")
    origin = made.training["origin"]
    assert origin["source"] == str(source)
    assert origin["format"] == "causal"
    assert origin["to"] == "diffusion"
    assert made.hyperschedules[0] == hdlm.Block(16, 8, 8)
    assert made.context == "causal"
    assert made.vocabulary.num_words == 335  # one of the 336 rows is the mask
    assert origin["mask_row"] == 316  # the first row for which the tokenizer has no token
    (passage,) = made.generate("First", length=16, seed=0, progress=False)
    assert len(passage.tokens) == 16


def test_python_converts_as_the_verb_does(shared: Path, text: Path, tmp_path: Path) -> None:
    source, words = (
        _causal(shared, "gpt2"),
        {"data": {"context": 16}, "run": {"batch_size": 2, "precision": "no"}},
    )
    flags = [f"{table}.{name}={value}" for table, given in words.items() for name, value in given.items()]
    _finetune(
        source,
        "--to",
        "diffusion",
        "--text",
        text,
        "--output",
        tmp_path / "verb",
        "--steps",
        2,
        "--set",
        *flags,
    )
    verb = hdlm.load(tmp_path / "verb")
    python = hdlm.finetune(
        source, str(text), output=tmp_path / "python", steps=2, to="diffusion", recipe=words, progress=False
    )
    assert verb.training["origin"] == python.training["origin"]
    assert verb.training["origin"]["mask"] == "the mean of the rows"
    for name, value in verb.network.state_dict().items():
        assert torch.equal(value, python.network.state_dict()[name]), name


def test_diffusion_model_is_not_converted(shared: Path, text: Path, tmp_path: Path, capsys: Any) -> None:
    words = [
        shared / "golden" / "modern" / "dream",
        "--to",
        "diffusion",
        "--text",
        text,
        "--output",
        tmp_path / "run",
    ]
    assert main(["finetune", *map(str, words)]) == 2
    assert "is a diffusion model already" in capsys.readouterr().err


@torch.no_grad()
def test_reserved_row_becomes_the_mask(shared: Path) -> None:
    """Words keep their logits, and the mask has those of the reserved row."""
    before = hdlm.load(_causal(shared, "llama"))
    after = prepared(before, "llama")
    row = after.training["origin"]["mask_row"]
    assert after.training["origin"]["mask"] == f"row {row}, <|reserved_special_token_0|>"
    assert after.vocabulary.num_words == before.vocabulary.num_words - 1
    for name in ("bos", "eos", "pad"):
        old, new = getattr(before.vocabulary, name), getattr(after.vocabulary, name)
        assert old is None or new == old - (old > row)
    ids = torch.arange(8)[None]
    old, new = before.network(ids), after.network(ids)
    assert torch.equal(new[..., :row], old[..., :row])
    assert torch.equal(new[..., row:-1], old[..., row + 1 : -1])
    assert torch.equal(new[..., -1], old[..., row])
    assert after.tokenizer.decode(after.tokenizer.encode("poor citizens")) == "poor citizens"


def test_export_keeps_the_rows_of_the_causal_model(shared: Path, text: Path, tmp_path: Path) -> None:
    source = _causal(shared, "llama")
    small = {"data": {"context": 16}, "run": {"batch_size": 2, "precision": "no"}}
    made = hdlm.finetune(
        source, str(text), output=tmp_path / "run", steps=1, to="diffusion", recipe=small, progress=False
    )
    export(made, tmp_path / "exported")
    config = json.loads((tmp_path / "exported" / "config.json").read_text())
    published = json.loads((source / "config.json").read_text())
    assert config["mask_token_id"] == made.training["origin"]["mask_row"]
    for key in ("vocab_size", "bos_token_id", "hidden_size"):
        assert config[key] == published[key]
    again = hdlm.load(tmp_path / "exported")
    assert again.regime() == made.regime()
    for name, value in made.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[name]), name
    words = "First Citizen: poor"
    assert again.tokenizer.encode(words) == made.tokenizer.encode(words)


# -- curricula ------------------------------------------------------------------------------------------------


def _flat(share: float | None, *, two_stream: bool = False, step: int = 5) -> torch.Tensor:
    plan = hdlm.Block(LENGTH, 4, 4) if two_stream else hdlm.flat(LENGTH, 4)
    regime = Regime(plan, context="block_causal" if two_stream else "full")
    corruption = Corruption(Absorbing(9), regime, two_stream=two_stream)
    opening = None if share is None else Opening(share, Randomness(3), step)
    tokens = torch.zeros(2, LENGTH, dtype=torch.long)
    times = torch.full((2, corruption.num_times), 0.4).double()
    mask = corruption(tokens, times, torch.zeros(2, LENGTH).double(), opening=opening).attention
    size = LENGTH * (2 if two_stream else 1)
    return torch.ones(1, size, size, dtype=torch.bool) if mask is None else mask


def test_attention_is_causal_at_share_0_and_open_at_share_1() -> None:
    assert torch.equal(_flat(0.0)[0], torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril())
    assert torch.equal(_flat(1.0), _flat(None))
    assert _flat(None).all()


@pytest.mark.parametrize("two_stream", [False, True])
def test_attention_opens_pair_by_pair(two_stream: bool) -> None:
    closed, halfway, opened = (_flat(share, two_stream=two_stream) for share in (0.0, 0.5, 1.0))
    assert not (closed & ~halfway).any()
    assert not (halfway & ~opened).any()
    hidden = (opened & ~closed).sum()
    assert 0.2 < ((halfway & ~closed).sum() / hidden) < 0.8
    assert torch.equal(halfway, _flat(0.5, two_stream=two_stream))
    assert not torch.equal(halfway, _flat(0.5, two_stream=two_stream, step=6))
    if two_stream:  # a noisy token sees no clean token of its own block, however open attention is
        assert torch.equal(opened, _flat(None, two_stream=True))


STAGES = [
    {"hyperschedule": {"type": "Block", "width": 4, "num_levels": 4}, "continuous": True, "begins": 0.5},
    {"hyperschedule": {"type": "Block", "width": 1, "num_levels": 1}, "ends": 0.5},
]
OPENED = [
    {
        "hyperschedule": {"type": "Block", "num_levels": 4},
        "two_stream": False,
        "continuous": True,
        "opens": 0.75,
    }
]


@pytest.mark.parametrize(
    ("mixture", "context"), [(STAGES, "causal"), (OPENED, "full")], ids=["grown", "opened"]
)
def test_curriculum_resumes_to_the_bit(
    mixture: list[dict[str, Any]], context: str, text: Path, tmp_path: Path
) -> None:
    table = _table(
        text, network={"context": context}, parameterization={"type": "Shifted", "inner": {"type": "Mean"}}
    )
    table |= {"mixture": mixture, "process": {"type": "Absorbing"}}
    through = _trained(table, tmp_path / "through")
    assert all(
        torch.equal(value, again)
        for value, again in zip(
            through.values(), _trained(table, tmp_path / "interrupted", pause=2).values(), strict=True
        )
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mixture", "context"), [(STAGES, "causal"), (OPENED, "full")], ids=["grown", "opened"]
)
def test_one_mask_serves_all_passes_of_a_step(
    mixture: list[dict[str, Any]], context: str, text: Path, tmp_path: Path
) -> None:
    table = _table(text, network={"context": context}) | {
        "mixture": mixture,
        "process": {"type": "Absorbing"},
    }
    through = _trained(table, tmp_path / "through")
    table["run"] |= {"accumulation": 2}
    passes = _trained(table, tmp_path / "passes")
    for name, value in through.items():
        torch.testing.assert_close(passes[name], value, rtol=1e-3, atol=1e-4)


def _mixture(text: Path, parts: list[dict[str, Any]], **changes: Any) -> Mixture:
    table = _table(text, **changes) | {"mixture": parts, "process": {"type": "Absorbing"}}
    return Mixture.of(Recipe.from_table(table), Absorbing(9))


def test_stage_is_trained_in_its_share_of_the_run(text: Path) -> None:
    mixture = _mixture(text, STAGES)
    widths = [mixture.at(step, step / 8).corruption.hyperschedule.width for step in range(8)]  # type: ignore[attr-defined]
    assert widths == [1] * 4 + [4] * 4
    assert mixture.at(8, 1.0).corruption.hyperschedule.width == 4  # type: ignore[attr-defined]
    assert mixture.hyperschedules[0].width == 4  # type: ignore[attr-defined]


def test_attention_opens_with_the_run(text: Path) -> None:
    mixture = _mixture(text, OPENED, network={"context": "full"})
    shares = [mixture.at(step, step / 8).opening for step in (0, 3, 6, 7)]  # type: ignore[attr-defined]
    assert [None if opening is None else opening.share for opening in shares] == [0.0, 0.5, None, None]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([{"begins": 0.2}], "0 of the run is done"),
        ([{"ends": 0.5}, {"begins": 0.6}], r"0\.5 of the run is done"),
        ([{"begins": 0.5, "ends": 0.5}], "after `mixture.begins`"),
        ([{"two_stream": False, "time": "sequence"}], "set two_stream"),
        ([{"opens": 2.0}], r"mixture\.opens"),
    ],
)
def test_mixture_with_a_gap_is_refused(changes: list[dict[str, Any]], message: str, text: Path) -> None:
    block = {"hyperschedule": {"type": "Block", "width": 4, "num_levels": 4}}
    with pytest.raises(ValueError, match=message):
        _mixture(text, [block | change for change in changes])


def test_loss_of_clean_stream_needs_causal_context(text: Path) -> None:
    block = {"hyperschedule": {"type": "Block", "width": 4, "num_levels": 4}}
    with pytest.raises(ValueError, match=r"network\.context"):
        _mixture(text, [block], objective={"type": "CleanStream"})


# -- layouts --------------------------------------------------------------------------------------------------


def _corruption(**layout: Any) -> Corruption:
    regime = Regime(hdlm.Block(LENGTH, 4, 4))
    return Corruption(Absorbing(9), regime, num_given=1, layout=CorruptionLayout(**layout))


def test_complementary_masks_hide_every_token_once() -> None:
    corruption = _corruption(complementary=True)
    tokens = torch.arange(2 * LENGTH).view(2, LENGTH) % 9
    draw = torch.rand(2, LENGTH, generator=torch.Generator().manual_seed(1)).double()
    given = torch.arange(LENGTH).eq(7).expand(2, LENGTH)
    canvas = corruption(tokens, torch.tensor([[0.2, 0.5, 0.9]] * 2).double(), draw, given=given)
    hidden = canvas.x_t == 9
    assert torch.equal(hidden[:2].long() + hidden[2:].long(), (canvas.measure[:2] > 0).long())
    assert torch.equal(canvas.x_0, tokens.repeat(2, 1))
    assert (hidden | (canvas.x_t == canvas.x_0)).all()
    noisy = canvas.measure[:2] > 0
    torch.testing.assert_close(canvas.t[2:][noisy], 1 - canvas.t[:2][noisy])
    with pytest.raises(ValueError, match="only masks"):
        Corruption(Uniform(9), Regime(hdlm.Block(LENGTH, 4, 4)), layout=CorruptionLayout(complementary=True))


def test_blocks_of_a_sequence_share_its_time() -> None:
    corruption = _corruption(time="sequence", least_noise=0.25)
    assert corruption.num_times == 1
    tokens, times = torch.zeros(2, LENGTH, dtype=torch.long), torch.tensor([[0.9], [0.2]]).double()
    canvas = corruption(tokens, times, torch.zeros(2, LENGTH).double())
    assert canvas.t[:, 1:].unique(dim=1).shape == (2, 1)
    torch.testing.assert_close(canvas.t[:, 1], 0.25 + 0.75 * torch.tensor([0.1, 0.8]).double())


def test_masked_cross_entropy_is_the_weighted_one() -> None:
    """With the defaults it is the bound of masked diffusion."""
    corruption = _corruption()
    network = hdlm.DDiT(hdlm.DDiTConfig(10, hidden_size=16, num_blocks=1, num_heads=2, max_length=LENGTH))
    denoiser = hdlm.Denoiser(network, Absorbing(9), hdlm.Shifted(hdlm.Mean()))
    draw = torch.rand(2, LENGTH, generator=torch.Generator().manual_seed(2)).double()
    canvas = corruption(torch.arange(2 * LENGTH).view(2, LENGTH) % 9, torch.rand(2, 3).double(), draw)
    bound = hdlm.WeightedCrossEntropy(0.0)
    torch.testing.assert_close(MaskedCrossEntropy().mean(denoiser, canvas), bound.mean(denoiser, canvas))
    for divisor in ("positions", "tokens", "masked", "sequences"):
        for weight in ("inverse", "flat", "context"):
            loss = MaskedCrossEntropy(weight, divisor, every_row=True)  # type: ignore[arg-type]
            torch.testing.assert_close(loss.mean(denoiser, canvas), loss(denoiser, canvas).mean())
    clean = CleanStream()
    causal = Corruption(Absorbing(9), Regime(hdlm.Block(LENGTH, 4, 4), context="causal"), num_given=1)
    canvas = causal(canvas.x_0, torch.rand(2, 3).double(), draw)
    other = dataclasses.replace(canvas, x_t=canvas.x_0)  # the noisy stream does not matter
    torch.testing.assert_close(clean.mean(denoiser, canvas), clean.mean(denoiser, other))
