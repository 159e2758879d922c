"""The published samplers: any callable, every algorithm, and what each option does."""

from __future__ import annotations

import inspect
import itertools
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hdlm.attention import generation_attention
from hdlm.denoiser import ForwardContext
from hdlm.epsilon_hybrid.sample import full_diff, full_diff_shifted, semi_diff, semi_diff_shifted
from hdlm.gamma_hybrid import sampling, sampling_sar
from hdlm.hf_utils import smart_model_loader
from hdlm.hyperschedule import Block, Table
from hdlm.noise_schedule import LogLinear
from hdlm.parameterization import Mean
from hdlm.process import Absorbing
from hdlm.published import score_samplers
from hdlm.published.model import CallableDenoiser, Metaschedule, pick_device, say_once
from hdlm.published.samplers import fitted

WORDS = MASK = 11
LENGTH = 12
ALGORITHMS = ("original", "acs", "remask", "remask_adhoc_shuffle", "remdm")
SAMPLERS = (full_diff, semi_diff, full_diff_shifted, semi_diff_shifted)
SHIFTED = (full_diff_shifted, semi_diff_shifted)
PROMPT = torch.tensor([[3, 1, 4]])
SMALL: dict[str, Any] = {"context_length": LENGTH, "dim": MASK, "steps": 3, "batch_size": 3}


class RandomModel(nn.Module):
    """Random logits from ids, positions and the mean over the sequence, with the largest logit at the mask."""

    def __init__(self, seed: int = 0, columns: int = WORDS + 1) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.of_id = nn.Parameter(torch.randn(WORDS + 1, WORDS + 1, generator=generator))
        self.of_place = nn.Parameter(torch.randn(64, WORDS + 1, generator=generator))
        self.columns = columns

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        logits = self.of_id[ids] + self.of_place[positions] + self.of_id[ids].mean(1, keepdim=True)
        mask = nn.functional.one_hot(torch.tensor(MASK), WORDS + 1) * 50.0
        return (logits + mask)[..., : self.columns]


def confident_logits(word: Tensor) -> Tensor:
    """Logits of a model that is certain of the word."""
    return nn.functional.one_hot(word, WORDS + 1) * 100.0


@dataclass
class RecordingModel:
    """Records the arguments of each call."""

    inner: Any
    asked: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, ids: Tensor, positions: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        self.asked.append({"ids": ids, "positions": positions, "attn_mask": attn_mask})
        return self.inner(ids, positions)

    def shares(self) -> list[float]:
        """The share of masks in each call."""
        return [float((asked["ids"] == MASK).double().mean()) for asked in self.asked]


def small_options(sampler: Any, **options: Any) -> dict[str, Any]:
    """Options for a canvas of 12 positions."""
    blocks = {"block_size": 5} if "block_size" in inspect.signature(sampler).parameters else {}
    return {**SMALL, **blocks, **options}


@pytest.mark.parametrize("alg", ALGORITHMS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_published_sampler_writes_words_and_keeps_prompt(sampler, alg):
    torch.manual_seed(0)
    tokens = sampler(RandomModel(), prompt=PROMPT, alg=alg, **small_options(sampler, eta=0.5))
    assert tokens.shape == (3, LENGTH)
    assert tokens.dtype == torch.long
    assert tokens.min() >= 0
    assert tokens.max() < WORDS
    assert torch.equal(tokens[:, :3], PROMPT.expand(3, -1))
    assert len(tokens[:, 3:].unique()) > 3


def test_full_diff_accepts_prompt_forms():
    rows = torch.tensor([[3, 1, 4], [1, 5, 9], [2, 6, 5]])
    for prompt in (rows, rows.int(), PROMPT, PROMPT[0]):
        tokens = full_diff(RandomModel(), prompt=prompt, **SMALL)
        assert torch.equal(tokens[:, :3], prompt.long().expand(3, 3))


@pytest.mark.parametrize("alg", ALGORITHMS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_published_sampler_writes_word_of_confident_model(sampler, alg):
    tokens = sampler(
        lambda ids, positions: confident_logits(torch.full_like(ids, 7)),
        prompt=PROMPT,
        alg=alg,
        **small_options(sampler),
    )
    assert (tokens[:, 3:] == 7).all()


@pytest.mark.parametrize("alg", ALGORITHMS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_published_sampler_reads_aligned_and_shifted_logits(sampler, alg):
    """Aligned logits predict their own position, shifted logits the next position."""
    ahead = int(sampler in SHIFTED)
    tokens = sampler(
        lambda ids, positions: confident_logits((positions + ahead) % WORDS),
        prompt=torch.tensor([[0]]),
        alg=alg,
        **small_options(sampler),
    )
    assert torch.equal(tokens, (torch.arange(LENGTH) % WORDS).expand(3, -1))


def test_semi_diff_shifted_writes_one_token_per_block():
    tokens = semi_diff_shifted(
        lambda ids, positions: confident_logits((ids + 1) % WORDS),
        prompt=PROMPT,
        **small_options(semi_diff, block_size=1, steps=1),
    )
    assert tokens[0, 2:].tolist() == [(4 + i) % WORDS for i in range(LENGTH - 2)]


@pytest.mark.parametrize("sampler", [full_diff, semi_diff])
def test_published_sampler_needs_no_prompt(sampler):
    for nothing in (None, torch.zeros(1, 0, dtype=torch.long)):
        assert sampler(RandomModel(), prompt=nothing, **small_options(sampler)).shape == (3, LENGTH)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_published_sampler_seed_repeats_tokens(sampler):
    def tokens(**options: Any) -> Tensor:
        return sampler(RandomModel(), prompt=PROMPT, **small_options(sampler, steps=1, **options))

    assert torch.equal(tokens(seed=5), tokens(seed=5))
    assert not torch.equal(tokens(seed=5), tokens(seed=6))
    torch.manual_seed(1)
    first, second = tokens(), tokens()
    torch.manual_seed(1)
    assert torch.equal(first, tokens())
    assert not torch.equal(first, second)


@pytest.mark.parametrize("sampler", [full_diff, semi_diff])
def test_published_sampler_tokens_do_not_depend_on_batch(sampler):
    options = small_options(sampler, seed=3) | {"batch_size": 3}
    together = sampler(RandomModel(), **options)
    alone = sampler(RandomModel(), **options | {"batch_size": 1}, first_sequence=2)
    assert torch.equal(together[2:], alone)


def test_full_diff_ignores_mask_column():
    with_mask, without = (full_diff(RandomModel(columns=WORDS + more), seed=1, **SMALL) for more in (1, 0))
    assert torch.equal(with_mask, without)


def test_full_diff_accepts_function_and_module():
    toy = RandomModel()
    as_function = full_diff(lambda ids, positions: toy(ids, positions), seed=1, **SMALL)
    assert torch.equal(as_function, full_diff(toy, seed=1, **SMALL))


def test_semi_diff_passes_ids_and_positions_of_growing_canvas():
    recorder = RecordingModel(RandomModel())
    semi_diff(recorder, seed=1, **small_options(semi_diff))
    widths = [asked["ids"].shape[1] for asked in recorder.asked]
    assert set(widths) == {5, 10, 12}
    assert widths == sorted(widths)
    for asked in recorder.asked:
        assert asked["ids"].shape == asked["positions"].shape
        assert torch.equal(asked["positions"][1], torch.arange(asked["ids"].shape[1]))


def test_semi_diff_passes_attn_mask_of_settled_blocks():
    recorder = RecordingModel(RandomModel())
    semi_diff(recorder, seed=1, **small_options(semi_diff))
    settled = torch.arange(10) < 5
    last = next(asked["attn_mask"] for asked in recorder.asked if asked["ids"].shape[1] == 10)
    assert torch.equal(last, (settled[:, None] & ~settled).expand(3, -1, -1))
    whole = RecordingModel(RandomModel())
    full_diff(whole, seed=1, **SMALL)
    assert all(asked["attn_mask"] is None for asked in whole.asked)


def test_annealing_attention_sets_attn_mask():
    annealing = {"attention": {"context_type": "block_causal", "block_type": "causal"}}
    for form in (annealing, SimpleNamespace(attention=SimpleNamespace(**annealing["attention"]))):
        recorder = RecordingModel(RandomModel())
        full_diff(recorder, annealing=form, seed=1, **SMALL)
        upper = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
        assert torch.equal(recorder.asked[0]["attn_mask"], upper.expand(3, -1, -1))
    with pytest.raises(ValueError, match="context"):
        full_diff(RecordingModel(RandomModel()), annealing={"attention": {"context_type": "some"}}, **SMALL)


@pytest.mark.parametrize("alg", ALGORITHMS)
@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_full_diff_mask_share_follows_schedule(alg, eps):
    """4096 tokens: five standard deviations are 0.04."""
    recorder = RecordingModel(RandomModel())
    full_diff(
        recorder, alg=alg, eps=eps, eta=0.3, steps=4, batch_size=64, context_length=64, dim=MASK, seed=3
    )
    expected = [eps + (1 - eps) * k / 4 for k in (4, 3, 2, 1)]
    assert recorder.shares() == pytest.approx(expected, abs=0.04)


@pytest.mark.parametrize("alg", ["remask", "remask_adhoc_shuffle", "remdm"])
def test_remasking_algorithms_mask_written_words(alg):
    recorder = RecordingModel(RandomModel())
    full_diff(recorder, alg=alg, eta=0.3, steps=4, batch_size=16, context_length=64, dim=MASK, seed=3)
    ids = [asked["ids"] for asked in recorder.asked]
    assert any(((before != MASK) & (after == MASK)).any() for before, after in itertools.pairwise(ids))


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_semi_diff_does_not_change_finished_blocks(alg):
    recorder = RecordingModel(RandomModel())
    done = semi_diff(recorder, alg=alg, seed=3, **small_options(semi_diff, eta=1.0))
    later = [asked["ids"][:, :5] for asked in recorder.asked if asked["ids"].shape[1] > 5]
    assert later
    assert all(torch.equal(ids, done[:, :5]) for ids in later)


def test_full_diff_acs_redraws_words_and_original_does_not():
    def redrawn(alg: str) -> bool:
        recorder = RecordingModel(RandomModel())
        full_diff(recorder, alg=alg, seed=3, **{**SMALL, "eta": 1.0})
        ids = [asked["ids"] for asked in recorder.asked]
        return any(((a != MASK) & (b != MASK) & (a != b)).any() for a, b in itertools.pairwise(ids))

    assert redrawn("acs")
    assert not redrawn("original")


def test_full_diff_temperature_zero_takes_argmax():
    toy = RandomModel()
    tokens = full_diff(toy, temperature=0.0, seed=1, **{**SMALL, "steps": 1})
    logits = toy(torch.full((1, LENGTH), MASK), torch.arange(LENGTH)[None])[..., :WORDS]
    assert torch.equal(tokens, logits.argmax(-1).expand(3, -1))


def test_repetition_penalty_is_off_by_default_and_reduces_repetition():
    for sampler in SAMPLERS:
        assert inspect.signature(sampler).parameters["repetition_penalty"].default == 1.0
    options = {**SMALL, "batch_size": 20, "steps": LENGTH}
    texts = [
        full_diff(RandomModel(), seed=1, repetition_penalty=penalty, **options).tolist()
        for penalty in (1.0, 20.0)
    ]
    freely, penalised = (sum(LENGTH - len(set(text)) for text in each) for each in texts)
    assert penalised < freely


def test_cfg_scale_calls_model_with_masked_prompt():
    recorder = RecordingModel(RandomModel())
    guided = full_diff(recorder, prompt=PROMPT, cfg_scale=4.0, seed=1, **SMALL)
    assert torch.equal(guided[:, :3], PROMPT.expand(3, -1))
    informed, blind = recorder.asked[0]["ids"], recorder.asked[1]["ids"]
    assert torch.equal(informed[:, :3], PROMPT.expand(3, -1))
    assert (blind[:, :3] == MASK).all()
    assert torch.equal(informed[:, 3:], blind[:, 3:])
    assert not torch.equal(guided, full_diff(RandomModel(), prompt=PROMPT, seed=1, **SMALL))


def test_full_diff_follows_metaschedule():
    for plan in (Block(64, 6, 2), Metaschedule(Block(64, 6, 2)), Block(LENGTH, 6, 2)):
        recorder = RecordingModel(RandomModel())
        full_diff(recorder, metaschedule=plan, seed=1, **SMALL)
        assert [asked["ids"].shape[1] for asked in recorder.asked] == [6, 6, 12, 12]
    table = Table(torch.tensor([[1, 1], [0, 0]]))
    assert full_diff(RandomModel(), metaschedule=table, **{**SMALL, "context_length": 2}).shape == (3, 2)
    with pytest.raises(ValueError, match="no other length"):
        full_diff(RandomModel(), metaschedule=table, **SMALL)
    with pytest.raises(ValueError, match="smart_model_loader"):
        fitted("block", LENGTH)


def test_metaschedule_has_published_attributes():
    plan = Metaschedule(Block(10, 4, 3))
    assert (plan.max_step, plan.worthless, plan.length) == (9, 3, 10)
    assert plan.levels(3).tolist() == [0] * 4 + [3] * 6


def test_published_samplers_have_published_defaults():
    defaults = {name: p.default for name, p in inspect.signature(full_diff).parameters.items()}
    assert (defaults["steps"], defaults["context_length"], defaults["eps"]) == (512, 1024, 1e-5)
    assert (defaults["alg"], defaults["eta"]) == ("original", 0.015)
    defaults = {name: p.default for name, p in inspect.signature(semi_diff).parameters.items()}
    assert (defaults["eta"], defaults["block_size"]) == (0.01, 16)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"alg": "magic"}, "original, exact, acs"),
        ({"prompt": torch.zeros(1, LENGTH, dtype=torch.long)}, "nothing is left to write"),
        ({"prompt": torch.zeros(1, LENGTH + 5, dtype=torch.long)}, "nothing is left to write"),
        ({"prompt": torch.zeros(2, 3, dtype=torch.long)}, r"\[1, p\] or \[3, p\]"),
        ({"prompt": torch.zeros(1, 3)}, "must hold ids"),
        ({"prompt": torch.tensor([[MASK]])}, "must be words"),
        ({"temperature": -1.0}, "temperature"),
        ({"cfg_scale": -1.0}, "guidance"),
        ({"eps": 1.5}, "eps"),
        ({"eta": 2.0}, "eta"),
        ({"steps": 0}, "num_levels"),
        ({"repetition_penalty": 0.5}, "penalty"),
        ({"batch_size": 0, "prompt": PROMPT}, "num_sequences"),
        ({"dim": 8}, r"\[3, \d+, 9\].*Is `dim` right"),
    ],
)
def test_published_sampler_rejects_bad_arguments(sampler, wrong, message):
    with pytest.raises(ValueError, match=message):
        sampler(RandomModel(), **{"prompt": PROMPT, **small_options(sampler), **wrong})


def test_cfg_scale_without_prompt_is_refused():
    with pytest.raises(ValueError, match="guidance by the prompt"):
        full_diff(RandomModel(), cfg_scale=1.0, **SMALL)


@pytest.mark.parametrize("sampler", SHIFTED)
def test_shifted_sampler_without_prompt_is_refused(sampler):
    with pytest.raises(ValueError, match="give a `prompt`"):
        sampler(RandomModel(), **small_options(sampler))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("logits", "str"),
        (torch.zeros(3, LENGTH), r"\[3, 12\]"),
        (torch.full((3, LENGTH, WORDS), torch.nan), "NaN"),
    ],
)
def test_full_diff_rejects_bad_model_output(answer, message):
    with pytest.raises(ValueError, match=message):
        full_diff(lambda ids, positions: answer, **SMALL)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_missing_cuda_device_falls_back_to_cpu_with_one_message(capsys):
    say_once.cache_clear()
    assert pick_device("cuda") == pick_device("cuda:0") == pick_device(None) == torch.device("cpu")
    assert full_diff(RandomModel(), device="cuda", **SMALL).device.type == "cpu"
    said = capsys.readouterr().err
    assert said.count("no cuda device") == 1


def test_full_diff_rejects_model_on_other_device():
    with pytest.raises(ValueError, match="move it"):
        full_diff(RandomModel().to("meta"), device="cpu", **SMALL)


# -- models of our own --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def epsilon(shared):
    return smart_model_loader(shared / "golden" / "epsilon", device="cpu")


@pytest.fixture(scope="module")
def gamma(shared):
    return smart_model_loader(shared / "golden" / "gamma", device="cpu")


@pytest.mark.parametrize("alg", ALGORITHMS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_published_sampler_of_loaded_epsilon_model_writes_words(epsilon, sampler, alg):
    model, cfg, device, _, _ = epsilon
    tokens = sampler(
        model=model, prompt=PROMPT, alg=alg, steps=2, batch_size=2, context_length=32, eta=0.3, device=device
    )
    assert tokens.shape == (2, 32)
    assert tokens.max() < cfg.tokenizer.tokens
    assert torch.equal(tokens[:, :3], PROMPT.expand(2, -1))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_published_sampler_cache_keeps_tokens(epsilon, sampler):
    """Compares sampling with a cache and with full passes."""
    model = epsilon[0]
    mask = model.checkpoint.vocabulary.mask_id

    def uncached(ids: Tensor, positions: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        return model(ids, positions, attn_mask)

    options = {
        "prompt": PROMPT,
        "alg": "acs",
        "steps": 4,
        "batch_size": 2,
        "context_length": 32,
        "eta": 0.3,
        "seed": 1,
    }
    assert torch.equal(sampler(model, **options), sampler(uncached, dim=mask, **options))


def test_full_diff_accepts_loaded_metaschedule_and_annealing(epsilon):
    model, cfg, device, _, metaschedule = epsilon
    options = {"metaschedule": metaschedule, "context_length": 20, "alg": "acs", "device": device, "seed": 1}
    tokens = full_diff(model, annealing=cfg.annealing, **options)
    assert tokens.shape == (1, 20)
    assert tokens.max() < cfg.tokenizer.tokens
    assert torch.equal(full_diff(model, annealing=cfg.annealing, **options), tokens)


def test_full_diff_rejects_dim_of_other_vocabulary(epsilon):
    with pytest.raises(ValueError, match="97 for this model"):
        full_diff(epsilon[0], dim=11, context_length=8)


@pytest.mark.parametrize("peer", ["bd3lm", "duo", "gidd", "mdlm", "sedd", "sedd_uniform"])
def test_published_samplers_accept_peer_models(shared, peer):
    model, cfg, device, _, _ = smart_model_loader(shared / "golden" / "peers" / peer, device="cpu")
    words = model.checkpoint.vocabulary.num_words
    assert cfg.tokenizer.tokens == words
    tokens = full_diff(model, prompt=PROMPT, steps=2, context_length=LENGTH, device=device)
    assert torch.equal(tokens[:, :3], PROMPT)
    assert tokens.max() < words
    if "sedd" in peer:
        tokens = sampling.get_sa_sampling_fn(cfg, meta_schedule=Block(LENGTH, 4, 2), batch_dims=(2,))(model)
        assert tokens.shape == (2, LENGTH)
    elif peer in ("duo", "gidd"):
        with pytest.raises(ValueError, match="conditioned on the noise"):
            model(tokens, None)
    else:
        assert model(tokens, torch.arange(LENGTH)).shape == (1, LENGTH, words + 1)


def test_callable_denoiser_receives_block_mask_as_dense_mask():
    """On GPUs the loop passes block masks where dense masks would be large."""
    asked = RecordingModel(RandomModel())
    denoiser = CallableDenoiser(asked, Absorbing(WORDS), Mean())
    ids = torch.zeros(2, LENGTH, dtype=torch.long)
    seen = generation_attention(Block(LENGTH, 5, 2), 3)
    for attention in (seen.dense()[None], seen.block_mask()):
        denoiser.predict(ids, torch.zeros(2, LENGTH), ForwardContext(attention=attention))
    dense, blocks = (each["attn_mask"] for each in asked.asked)
    assert dense.any()
    assert torch.equal(dense, blocks)


# -- scores -------------------------------------------------------------------------------------------------

SCORES = {"nar": sampling.get_sa_sampling_fn, "sar": sampling_sar.get_sa_sampling_fn}
CONFIG = {
    "tokenizer": {"tokens": WORDS},
    "graph": {"type": "absorb"},
    "noise": {"type": "loglinear"},
    "annealing": {"type": "block", "width": 4, "tau": 5, "eval_tau": 3},
    "sampling": {"predictor": "analytic", "noise_removal": True},
    "model": {"length": LENGTH},
}


def changed(**sampling_options: Any) -> dict[str, Any]:
    return {**CONFIG, "sampling": {**CONFIG["sampling"], **sampling_options}}


def confident_log_score(word: Tensor, sigma: Tensor) -> Tensor:
    """The log score of masks whose word is known: `1 / (e^sigma - 1)` at the word."""
    at_word = nn.functional.one_hot(word, WORDS + 1).bool()
    return torch.where(at_word, -torch.expm1(sigma).log()[..., None], -torch.inf)


@pytest.mark.parametrize("predictor", ["analytic", "euler", "none"])
@pytest.mark.parametrize("order", SCORES)
def test_score_sampler_writes_word_of_confident_model(order, predictor):
    def model(ids: Tensor, sigma: Tensor, positions: Tensor) -> Tensor:
        return confident_log_score(positions % WORDS, sigma)

    tokens = SCORES[order](config=changed(predictor=predictor), batch_dims=(4, LENGTH), seed=1)(model)
    assert torch.equal(tokens, (torch.arange(LENGTH) % WORDS).expand(4, -1))


def test_score_sampler_mask_share_follows_sigma():
    asked: list[tuple[Tensor, Tensor]] = []

    def model(ids: Tensor, sigma: Tensor, positions: Tensor) -> Tensor:
        asked.append((ids, sigma))
        return confident_log_score(positions % WORDS, sigma)

    config = {**CONFIG, "annealing": {"type": "none", "tau": 4}}
    SCORES["nar"](config=config, batch_dims=(64, 64), seed=1, eps=1e-3)(model)
    for ids, sigma in asked:
        assert sigma.shape == ids.shape
        share = float((ids == MASK).double().mean())
        assert share == pytest.approx(1 - float((-sigma[0, 0]).exp()), abs=0.04)
    assert len(asked) == 4


@pytest.mark.parametrize("graph", ["QGamma", "absorb", "uniform"])
@pytest.mark.parametrize("kind", ["block", "simple", "hybrid", "none"])
def test_score_sampler_writes_words_for_every_graph_and_annealing(graph, kind):
    annealing = {"type": kind, "width": 4, "tau": 4}
    config = {**CONFIG, "graph": {"type": graph, "gamma": 0.1}, "annealing": annealing}
    toy = RandomModel(columns=WORDS if graph == "uniform" else WORDS + 1)
    tokens = SCORES["sar"](config=config, batch_dims=(2,), seed=1)(
        lambda ids, sigma, positions: toy(ids, positions)
    )
    assert tokens.shape == (2, LENGTH)
    assert tokens.max() < WORDS


def test_score_sampler_uses_eval_tau():
    asked: list[int] = []

    def model(ids: Tensor, sigma: Tensor, positions: Tensor) -> Tensor:
        asked.append(ids.shape[1])
        return confident_log_score(positions % WORDS, sigma)

    SCORES["nar"](config=CONFIG, batch_dims=(64,), seed=1)(model)
    assert asked == [4] * 3 + [8] * 3 + [12] * 3


def test_score_sampler_accepts_pieces_without_config():
    tokens = SCORES["nar"](
        config={},
        graph=Absorbing(WORDS),
        noise=LogLinear(),
        meta_schedule=Block(LENGTH, 3, 2),
        batch_dims=(2,),
        seed=1,
    )(lambda ids, sigma, positions: confident_log_score(positions % WORDS, sigma))
    assert torch.equal(tokens, (torch.arange(LENGTH) % WORDS).expand(2, -1))


def test_score_sampler_seed_repeats_tokens():
    def tokens(**options: Any) -> Tensor:
        toy = RandomModel()
        return SCORES["nar"](config=CONFIG, batch_dims=(2,), **options)(
            lambda ids, sigma, positions: toy(ids, positions)
        )

    assert torch.equal(tokens(seed=1), tokens(seed=1))
    assert torch.equal(tokens(seed=1)[1], tokens(seed=1, first_sequence=1)[0])
    torch.manual_seed(1)
    first, second = tokens(), tokens()
    torch.manual_seed(1)
    assert torch.equal(first, tokens())
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (changed(predictor="magic"), {}, "analytic, euler, none"),
        (changed(noise_removal=False), {}, "noise_removal"),
        (changed(algorithm="magic"), {}, "original, exact, acs"),
        ({**CONFIG, "annealing": {"type": "magic"}}, {}, "block, simple, hybrid, none"),
        ({}, {}, "batch_dims"),
        (CONFIG, {"batch_dims": (1, 2, 3)}, "batch_dims"),
        (CONFIG, {"eps": 0.5}, "eps"),
    ],
)
def test_score_sampler_rejects_bad_config(config, options, message):
    with pytest.raises(ValueError, match=message):
        SCORES["sar"](config=config, **options)


@pytest.mark.parametrize("name", [*ALGORITHMS, "exact"])
def test_score_sampler_of_every_algorithm_writes_words(gamma, name):
    model, cfg, device, _, metaschedule = gamma
    cfg = {**cfg, "sampling": {"algorithm": name, "eta": 0.3}}
    tokens = SCORES["sar"](config=cfg, meta_schedule=metaschedule, batch_dims=(2, 16), device=device)(model)
    assert tokens.shape == (2, 16)
    assert tokens.max() < 97


@pytest.mark.parametrize("predictor", ["analytic", "euler", "none"])
def test_nar_and_sar_score_samplers_write_same_tokens(gamma, predictor):
    """Compares NAR, SAR and the network behind a function without a cache."""
    model, cfg, device, _, _ = gamma

    def uncached(ids: Tensor, sigma: Tensor, positions: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        return model(ids, sigma, positions=positions, attn_mask=attn_mask)

    cfg = cfg.copy()
    cfg.sampling.predictor = predictor
    nar, sar = (
        SCORES[order](
            config=cfg, meta_schedule=Block(16, 8, 3), batch_dims=(2, 16), eps=1e-4, device=device, seed=2
        )
        for order in ("nar", "sar")
    )
    tokens = nar(model)
    assert tokens.shape == (2, 16)
    assert tokens.max() < 97
    assert torch.equal(tokens, sar(model))
    assert torch.equal(tokens, nar(uncached))


def test_score_sampler_rejects_config_with_unknown_noise_or_graph():
    assert score_samplers._noise_of({}) == LogLinear(5e-3)
    with pytest.raises(ValueError, match="geometric"):
        score_samplers._noise_of({"noise": {"type": "pink"}})
    with pytest.raises(ValueError, match="QGamma"):
        score_samplers._process_of({"tokenizer": {"tokens": 3}, "graph": {"type": "web"}})
    with pytest.raises(ValueError, match="number of words"):
        score_samplers._process_of({})
