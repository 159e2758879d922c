"""Static buffers change no result: sequences in slots get the features of the plain network.

What a CUDA graph does is done on the CPU by `Tape`: it writes down every kernel that runs while it records, and replays
those very kernels on those very tensors. Whatever would be lost to a graph (a length that Python read, a shape, a
tensor that is no buffer) is lost to the tape, and a host that waits for a number is an error in both.
"""

from __future__ import annotations

import contextlib
import copy
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hdlm.denoiser import Denoiser, Guided
from hdlm.hyperschedule import Block, Slide, Wave, autoregressive
from hdlm.network import DDiT, DDiTConfig, KVCache, Pass, static
from hdlm.parameterization import LogScore, Mean, Shifted
from hdlm.process import EpsilonHybrid, GammaHybrid
from hdlm.regime import Regime
from hdlm.sampling import AdaptiveCorrection, Analytic, Ancestral, ApproximateCache, Chain, Prompt, sample
from tests.along import sample_along
from tests.conftest import NO_CUDA
from tests.tiny import tiny_denoiser

WORDS, CONTEXT = 11, 40
CORRECTED = Chain((Ancestral(), AdaptiveCorrection(0.5)))
EXACT = {"atol": 1e-12, "rtol": 0}


class Tape(TorchDispatchMode):
    """Records the kernels of a pass and replays them, as a CUDA graph does."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = []
        self.num_replays = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "the host waits for a number"
        assert "nonzero" not in str(func), "the shape depends on a number"
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        self.num_replays += 1
        for func, args, kwargs, out in self.calls:
            given = {_storage(one) for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)}
            for old, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and _storage(old) not in given:
                    old.copy_(new)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@contextlib.contextmanager
def recorded_on_tapes(*networks: DDiT):
    """Let networks record on tapes on the CPU, as they record graphs on CUDA."""
    tapes = []

    class Stream:
        def wait_stream(self, other) -> None:
            pass

    def new_tape() -> Tape:
        tapes.append(Tape())
        return tapes[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "Stream", Stream)
        patch.setattr(torch.cuda, "current_stream", Stream)
        patch.setattr(torch.cuda, "stream", contextlib.nullcontext)
        patch.setattr(torch.cuda, "CUDAGraph", new_tape)
        patch.setattr(torch.cuda, "graph", lambda tape, pool: tape)
        for network in networks:
            network.static.records = True
        yield tapes


@pytest.fixture(autouse=True)
def _small_shapes(monkeypatch) -> None:
    """Small limits, so that small tests use several shapes."""
    monkeypatch.setattr(static, "_NARROWEST", 2)
    monkeypatch.setattr(static, "_WIDEST", 16)
    monkeypatch.setattr(static, "_NEAREST", 8)


def random_network(told: bool = False, dtype: torch.dtype = torch.float64) -> DDiT:
    torch.manual_seed(0)
    switches = dict.fromkeys(("timestep_embedding", "condition_blocks", "condition_output"), told)
    network = DDiT(DDiTConfig(WORDS, 32, 2, 4, cond_dim=8, max_length=CONTEXT, **switches))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network.to(dtype).eval()


def networks_with_and_without_slots(slots: int, told: bool = False) -> tuple[DDiT, DDiT]:
    """The same network, with slots and without."""
    fast = random_network(told)
    fast.speed_up(slots=slots)
    return fast, random_network(told)


@st.composite
def questions(draw, told: bool):
    """A random pass of a sequence: its width and its arguments."""
    width = draw(st.integers(1, 6))
    chosen = draw(st.lists(st.sampled_from(range(width)), unique=True, max_size=width))
    stores = (None, torch.arange(len(chosen)), torch.tensor(chosen, dtype=torch.long))
    return {
        "width": width,
        "store": draw(st.sampled_from(stores)),
        "masked": draw(st.booleans()),
        "placed": draw(st.booleans()),
        "blended": draw(st.booleans()),
        "told": draw(st.sampled_from([1, width])) if told else None,
        "seed": draw(st.integers(0, 999)),
    }


def made(question, cache: KVCache) -> Pass:
    generator = torch.Generator().manual_seed(question["seed"])
    width, num_keys = question["width"], len(cache) + question["width"]
    visible = torch.rand(1, width, num_keys, generator=generator) < 0.4  # some queries may attend nobody
    share = {"generator": generator, "dtype": torch.float64}
    return Pass(
        torch.randint(WORDS, (1, width), generator=generator),
        torch.randint(100, (1, width), generator=generator) if question["placed"] else None,
        None if question["told"] is None else 5 * torch.rand(1, question["told"], **share),
        torch.rand(1, width, **share) if question["blended"] else None,
        visible if question["masked"] else None,
        cache,
        question["store"],
    )


@settings(
    deadline=None,
    max_examples=10,
    phases=(Phase.generate,),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data(), st.booleans(), st.booleans())
@torch.no_grad()
def test_static_buffers_equal_plain_network_for_any_sequences(data, told, on_tape) -> None:
    """Three slots with sequences that start, make some passes and end."""
    fast, plain = networks_with_and_without_slots(3, told)
    caches, pairs = [], []
    with recorded_on_tapes(fast) if on_tape else contextlib.nullcontext():
        for call in range(1, 6):
            if len(caches) == 3 and data.draw(st.booleans()):
                del caches[data.draw(st.integers(0, 2))]
            while len(caches) < 3:
                caches.append((fast.new_cache(), plain.new_cache()))
            asking = data.draw(st.lists(st.sampled_from(range(3)), unique=True, min_size=1))
            asked = [(data.draw(questions(told)), *caches[number]) for number in asking]
            found = fast.features_of_many([made(question, cache) for question, cache, _ in asked])
            expected = plain.features_of_many([made(question, cache) for question, _, cache in asked])
            assert fast.static.num_calls == call
            pairs += zip(found, expected, strict=True)
            assert [len(own) for own, _ in caches] == [len(other) for _, other in caches]
    for one, other in pairs:  # the first answers hold after the last call
        torch.testing.assert_close(one, other, **EXACT)


@torch.no_grad()
def test_static_buffers_serve_single_pass() -> None:
    fast, plain = networks_with_and_without_slots(2)
    cache, other = fast.new_cache(), plain.new_cache()
    for begin in (0, 3):
        tokens = torch.arange(begin, begin + 3)[None]
        found = fast.features(tokens, cache=cache, store=torch.arange(2))
        torch.testing.assert_close(found, plain.features(tokens, cache=other, store=torch.arange(2)), **EXACT)
    assert fast.static.num_calls == 2
    assert len(cache) == 4


@torch.no_grad()
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -1e30])
def test_static_slot_ignores_padding_and_other_slots(poison: float) -> None:
    """Scratch memory and other slots have no weight, and a new sequence gets a slot of zeros, even after a NaN."""
    fast, plain = networks_with_and_without_slots(2, told=True)
    memory, sigma = fast.static._memory, torch.ones(1, 1).double()
    memory.fill_(poison)  # of those who were there
    cache, neighbour, other = fast.new_cache(), fast.new_cache(), plain.new_cache()
    for width in (5, 2, 3, 1):
        one = Pass(torch.arange(width)[None], condition=sigma, cache=cache, store=torch.arange(1))
        found = fast.features_of_many([one, one._replace(cache=neighbour)])[0]
        expected = plain.features_of_many([one._replace(cache=other)])[0]
        torch.testing.assert_close(found, expected, **EXACT)
        fast.static._condition.fill_(poison)
        fast.static._blend.fill_(poison)
        if torch.tensor(poison).isfinite():
            memory[:, :, 0, :, len(cache) :] = poison
        memory[:, :, 1] = poison
    del neighbour
    newcomer, tokens = fast.new_cache(), torch.arange(3)[None]
    found = fast.features(tokens, condition=sigma, cache=newcomer)
    torch.testing.assert_close(found, plain.features(tokens, condition=sigma), **EXACT)
    assert fast.static.num_calls == 5


@torch.no_grad()
def test_static_shape_is_recorded_once_and_replayed() -> None:
    fast, _ = networks_with_and_without_slots(2)
    caches = [fast.new_cache(), fast.new_cache()]
    with recorded_on_tapes(fast) as tapes:
        for width in (2, 1, 3, 2, 4):  # shapes: 2, 2, 4, 2, 4 queries, 8 or 16 places
            tokens = torch.arange(width)[None]
            fast.features_of_many([Pass(tokens, cache=cache, store=torch.arange(width)) for cache in caches])
    assert fast.static.shapes == ((2, 8), (4, 8), (4, 16))
    assert [tape.num_replays for tape in tapes] == [3, 1, 1]
    kernels = {len(tape.calls) for tape in tapes}
    fast.speed_up(slots=8)
    with recorded_on_tapes(fast) as tapes:
        fast.features_of_many([Pass(torch.ones(1, 2, dtype=torch.long), cache=KVCache()) for _ in range(8)])
    assert kernels == {len(tapes[0].calls)}, "a pass has as many kernels for eight sequences as for two"


def _pass_too_wide(fast: DDiT, cache: KVCache) -> list[Pass]:
    return [Pass(torch.ones(1, 17, dtype=torch.long), cache=cache)]


def _pass_of_several_rows(fast: DDiT, cache: KVCache) -> list[Pass]:
    return [Pass(torch.ones(3, 4, dtype=torch.long), cache=KVCache())]


def _block_mask(fast: DDiT, cache: KVCache) -> list[Pass]:
    mask = create_block_mask(lambda b, h, q, k: q >= 0, None, None, 3, 3 + len(cache), device="cpu")
    return [Pass(torch.ones(1, 3, dtype=torch.long), attention=mask, cache=cache)]


def _pass_without_cache(fast: DDiT, cache: KVCache) -> list[Pass]:
    return [Pass(torch.ones(1, 3, dtype=torch.long)), Pass(torch.ones(1, 3, dtype=torch.long), cache=cache)]


def _passes_of_one_cache(fast: DDiT, cache: KVCache) -> list[Pass]:
    return [Pass(torch.full((1, 3), token), cache=cache) for token in (1, 2)]


def _too_many_passes(fast: DDiT, cache: KVCache) -> list[Pass]:
    return [Pass(torch.ones(1, 3, dtype=torch.long), cache=one) for one in (cache, KVCache(), KVCache())]


def _pass_beyond_context(fast: DDiT, cache: KVCache) -> list[Pass]:
    for _ in range(5):
        fast.features(torch.ones(1, 7, dtype=torch.long), cache=cache, store=torch.arange(7))
    return [Pass(torch.ones(1, 7, dtype=torch.long), cache=cache)]


@torch.no_grad()
@pytest.mark.parametrize(
    "passes",
    [
        _pass_too_wide,
        _pass_of_several_rows,
        _block_mask,
        _pass_without_cache,
        _passes_of_one_cache,
        _too_many_passes,
        _pass_beyond_context,
    ],
)
def test_static_buffers_fall_back_for_unsupported_passes(passes) -> None:
    """A long prompt, several rows, a block mask, no cache, the same cache twice, too many sequences or positions."""
    fast, plain = networks_with_and_without_slots(2)
    cache, start = fast.new_cache(), torch.tensor([[4, 2, 7]])
    fast.features(start, cache=cache, store=torch.tensor([2, 0]))
    asked = passes(fast, cache)
    calls = fast.static.num_calls
    found = fast.features_of_many([one._replace(cache=copy.deepcopy(one.cache)) for one in asked])
    again = fast.features_of_many(asked)
    assert fast.static.num_calls == calls
    for one, other in zip(found, plain.features_of_many(asked), strict=True):
        torch.testing.assert_close(one, other, **EXACT)
    for one, other in zip(found, again, strict=True):
        torch.testing.assert_close(one, other, **EXACT)
    if passes is not _pass_beyond_context:
        back = Pass(torch.tensor([[1, 5]]), cache=cache)
        moved = plain.features(back.tokens, cache=copy.deepcopy(cache))
        torch.testing.assert_close(fast.features_of_many([back])[0], moved, **EXACT)
        assert fast.static.num_calls == calls + 1


@torch.no_grad()
def test_static_slot_after_long_prompt_and_retain_equals_plain() -> None:
    fast, plain = networks_with_and_without_slots(1)
    cache, other = fast.new_cache(), plain.new_cache()
    for network, own in ((fast, cache), (plain, other)):
        network.features(torch.arange(20)[None] % WORDS, cache=own, store=torch.arange(20))
        own.retain(torch.tensor([3, 1, 2, 7]))
    assert fast.static.num_calls == 0
    for _ in range(2):
        tokens = torch.tensor([[1, 2, 3]])
        found = fast.features(tokens, cache=cache, store=torch.tensor([2, 1]))
        expected = plain.features(tokens, cache=other, store=torch.tensor([2, 1]))
        torch.testing.assert_close(found, expected, **EXACT)
        for own in (cache, other):
            own.retain(torch.arange(len(own) - 2).flip(0))
    assert fast.static.num_calls == 2


@torch.no_grad()
def test_static_slot_is_released_by_sequence_that_outgrows_it() -> None:
    fast, plain = networks_with_and_without_slots(1)
    cache, other, tokens = fast.new_cache(), plain.new_cache(), torch.ones(1, 16, dtype=torch.long)
    for _ in range(4):
        found = fast.features(tokens, cache=cache, store=torch.arange(16))
        torch.testing.assert_close(
            found, plain.features(tokens, cache=other, store=torch.arange(16)), **EXACT
        )
    assert fast.static.num_calls == 2
    fast.features(tokens, cache=KVCache())
    assert fast.static.num_calls == 3


@torch.no_grad()
def test_static_full_slot_has_room_for_padding() -> None:
    fast, plain = networks_with_and_without_slots(2)
    full, other, tokens = fast.new_cache(), plain.new_cache(), torch.arange(10)[None]
    for network, cache in ((fast, full), (plain, other)):
        for _ in range(4):
            network.features(tokens, cache=cache, store=torch.arange(10))
    fast.features(torch.ones(1, 16, dtype=torch.long), cache=(neighbour := fast.new_cache()))
    assert fast.static.num_calls == 5
    full.retain(torch.arange(30))
    other.retain(torch.arange(30))
    found = fast.features(tokens, cache=full)
    torch.testing.assert_close(found, plain.features(tokens, cache=other), **EXACT)
    assert len(neighbour) == 0


def test_static_buffers_reject_bad_arguments() -> None:
    fast, _ = networks_with_and_without_slots(1)
    with pytest.raises(ValueError, match="no_grad"):
        fast.features(torch.ones(1, 3, dtype=torch.long), cache=KVCache())
    with pytest.raises(ValueError, match="at least 1, one for each sequence at a time; got -1"):
        fast.speed_up(slots=-1)
    with torch.no_grad():
        with pytest.raises(ValueError, match=r"positions of this pass; got 4"):
            fast.features(torch.ones(1, 3, dtype=torch.long), cache=KVCache(), store=torch.arange(4))
        cache = fast.new_cache()
        fast.features(torch.ones(3, 3, dtype=torch.long), cache=cache, store=torch.arange(1))
        with pytest.raises(ValueError, match="holds 3 sequences and the pass 1"):
            fast.features(torch.ones(1, 3, dtype=torch.long), cache=cache)
    fast.speed_up()
    assert fast.static is None


@torch.no_grad()
def test_static_buffers_are_dropped_for_copies_and_moved_weights() -> None:
    fast, plain = networks_with_and_without_slots(1)
    assert copy.deepcopy(fast).static is None
    tokens = torch.tensor([[1, 2]])
    for move in (
        lambda: fast.float().double(),
        lambda: fast.load_state_dict(copy.deepcopy(plain.state_dict()), assign=True),
        lambda: setattr(weight := fast.output_layer.linear.weight, "data", weight.data.clone()),
    ):
        fast.speed_up(slots=1)
        for _ in range(5):  # memory that is free again must not pass for that of the first weights
            move()
            torch.testing.assert_close(
                fast.features(tokens, cache=KVCache()), plain.features(tokens), atol=1e-5, rtol=0
            )
        assert fast.static.num_calls == 0


SCHEDULES = [autoregressive(9), Block(12, 4, 2), Slide(9, 4, 2), Wave(9, 3, 2)]
DENOISERS = {
    "epsilon": lambda: tiny_denoiser(EpsilonHybrid(WORDS, 0.2)),
    "shifted": lambda: tiny_denoiser(EpsilonHybrid(WORDS, 0.2), Shifted(Mean())),
    "gamma": lambda: tiny_denoiser(GammaHybrid(WORDS, 0.3), LogScore(blend_rate=0.5), conditioned=True),
}


def with_slots(denoiser: Denoiser, slots: int) -> Denoiser:
    denoiser.backbone.speed_up(slots=slots)
    return denoiser


@pytest.mark.parametrize(
    ("name", "schedule"),
    [*(("epsilon", one) for one in SCHEDULES), ("shifted", SCHEDULES[1]), ("gamma", SCHEDULES[3])],
    ids=str,
)
def test_sample_with_static_buffers_gets_same_tokens(name: str, schedule: Block) -> None:
    """Sequences run at their own pace, stop early and reuse slots. Every call is static."""
    step = Analytic() if name == "gamma" else CORRECTED
    prompt = Prompt.prefix([1, 2], schedule.length)

    def stop(sequence: int, tokens: Tensor) -> int | None:
        return 6 if len(tokens) > 5 and sequence == 0 else None

    options = {"num_sequences": 3, "batch_size": 2, "prompt": prompt, "stop": stop, "context": "causal"}
    plain = sample_along(DENOISERS[name](), schedule, step, **options)
    denoiser = with_slots(DENOISERS[name](), 2)
    with recorded_on_tapes(denoiser.backbone) as tapes:
        fast = sample_along(denoiser, schedule, step, **options)
    assert torch.equal(plain.tokens, fast.tokens)
    assert torch.equal(plain.lengths, fast.lengths)
    assert fast.lengths.tolist() == [6, schedule.length, schedule.length]
    served = denoiser.backbone.static
    assert served.num_calls == fast.num_evaluations == plain.num_evaluations
    assert len(tapes) == len(served.shapes) < fast.num_evaluations


@pytest.mark.parametrize(
    ("options", "share"),
    [
        ({"approximate": ApproximateCache(refresh=2), "context": "full"}, 1.0),
        ({"approximate": ApproximateCache(active=True)}, 1.0),
        ({"use_cache": False}, 0.0),
        ({"together": True}, 0.0),
        ({"together": True, "batch_size": 1}, 1.0),
    ],
    ids=str,
)
def test_static_buffers_serve_supported_sampling_options(options, share) -> None:
    """Approximate caches use static buffers. Calls without a cache and batched rows do not."""
    schedule = Block(8, 4, 2)
    options = {"num_sequences": 2, "batch_size": 2, "seed": 3} | options
    plain = sample_along(DENOISERS["epsilon"](), schedule, CORRECTED, **options)
    denoiser = with_slots(DENOISERS["epsilon"](), 2)
    fast = sample_along(denoiser, schedule, CORRECTED, **options)
    assert torch.equal(plain.tokens, fast.tokens)
    assert denoiser.backbone.static.num_calls == share * fast.num_evaluations


@pytest.mark.parametrize(("slots", "served"), [(1, 1), (2, 2)])
def test_guidance_uses_one_static_slot_per_cache(slots: int, served: int) -> None:
    schedule = Block(16, 4, 2)
    prompt = Prompt.prefix([1, 2], 16)
    plain, static_ = DENOISERS["epsilon"](), with_slots(DENOISERS["epsilon"](), slots)
    found = [
        sample(Guided(one, prompt.fixed, 0.7), Regime(schedule), CORRECTED, prompt=prompt)
        for one in (plain, static_)
    ]
    assert torch.equal(found[0].tokens, found[1].tokens)
    assert static_.backbone.static.num_calls == served * found[1].num_evaluations


GRAPHS = """
import sys
import torch
from hdlm import Ancestral, Block, DDiT, DDiTConfig, Denoiser, EpsilonHybrid, Execution, Mean, Regime, sample

device, tokens = torch.device(sys.argv[1]), []
for slots in (0, 3):
    torch.manual_seed(0)
    network = DDiT(DDiTConfig(12, 16, 2, 2)).double().eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    denoiser = Denoiser(network.to(device), EpsilonHybrid(11, 0.2), Mean())
    network.speed_up(slots=slots, compiled=bool(sys.argv[2:]))
    execution = Execution(batch_size=3, device=device)
    done = sample(denoiser, Regime(Block(24, 4, 3)), Ancestral(), num_sequences=5, execution=execution)
    tokens.append(done.tokens)
static = network.static
assert torch.equal(*tokens)
assert static.num_calls == done.num_evaluations > len(static.shapes) > 0
assert static.records == (device.type != "cpu")
"""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_CUDA)
@pytest.mark.parametrize("compiled", [False, True])
def test_static_buffers_record_cuda_graphs_with_same_tokens(compiled: bool) -> None:
    """Runs in a subprocess without the shape checks of the tests, because Dynamo would trace them."""
    device = str(torch.accelerator.current_accelerator())
    command = [sys.executable, "-c", GRAPHS, device, *(["compiled"] if compiled else [])]
    subprocess.run(command, check=True)
