"""An account of how passages were written: what was skipped, cached, compiled or approximated, and what is exact."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from hdlm.checkpoint import Checkpoint
from hdlm.generation.settings import Settings, planned
from hdlm.generation.text import Passage
from hdlm.network.packed import PackedLinear
from hdlm.regime import settled_lasts
from hdlm.sampling import ApproximateCache, exactness
from hdlm.sampling.algorithms import SPECULATIVE

__all__ = ["explain"]


def explain(
    checkpoint: Checkpoint,
    settings: Settings,
    passages: Sequence[Passage],
    *,
    infilling: bool = False,
    in_step: bool = False,
    approximate: ApproximateCache | None = None,
    compiled: bool = False,
) -> str:
    """The fast paths that were taken, which of them were exact, and the number of function evaluations.

    Args:
        checkpoint: The model.
        settings: How the passages were written.
        passages: The passages, at least one.
        infilling: Whether gaps of a text were filled in.
        in_step: Whether passages were written one at a time.
        approximate: The approximate cache, if there was one.
        compiled: Whether the network was compiled.
    """
    length = len(passages[0].tokens) if infilling else settings.canvas(passages[0].given, checkpoint.length)
    given = passages[0].given
    plan = planned(checkpoint, settings, length, infilling=infilling, given=given).hyperschedule
    dtype = str(next(checkpoint.network.parameters()).dtype).removeprefix("torch.")
    precision = "exact" if dtype == "float32" else "APPROXIMATE, logits change in the third digit"
    pace = "each sequence goes at its own pace, all share calls of the network: exact"
    apart = len(passages) > 1 and not in_step and not settings.guidance
    evaluations = mean(passage.evaluations for passage in passages)
    computed = sum(passage.computed for passage in passages) / max(sum(p.evaluations for p in passages), 1)
    law = exactness(settings.algorithm, checkpoint.denoiser.process, settings.eta)
    lines = {
        "tokens per forward": f"{_tokens_per_forward(passages):.2f}",
        "law": f"{settings.algorithm}, {law}",
        "reads": "vocabulary projection, softmax and draw only where a word may change: exact",
        "weights": f"{dtype}: {precision}{_packed(checkpoint)}",
        "passes": "compiled: exact" if compiled else "not compiled; --compile is for long runs",
        "buffers": _buffers(checkpoint),
        "draws": "float64 sums in two levels: exact down to the tail",
        "skips": "the network is not asked in steps that read nothing: exact",
        "answers": _answers(checkpoint),
        "cache": _cache(checkpoint, approximate),
        "window": f"{computed:.1f} positions computed in a call, of {length}",
        "batch": pace if apart else "one sequence at a time, or all in step",
        "NFE": f"{passages[0].num_evaluations} calls for {len(passages)}; {evaluations:.1f} a sequence, of "
        f"{plan.num_steps} steps",
    }
    if settings.algorithm == SPECULATIVE:
        del lines["skips"], lines["answers"]
        lines["drafts"] = (
            f"{settings.step(checkpoint, plan)}: a call verifies the drafts, settles those that are accepted and one "
            "more word, and drafts again: exact"
        )
    return "\n".join(f"{name:>18}: {text}" for name, text in lines.items())


def _tokens_per_forward(passages: Sequence[Passage]) -> float:
    """Mean number of written tokens for each network call that a passage took part in."""
    written = sum(len(passage.tokens) - passage.given for passage in passages)
    return written / max(sum(passage.evaluations for passage in passages), 1)


def _answers(checkpoint: Checkpoint) -> str:
    """Whether an answer of the network is used again while the tokens stay the same."""
    if checkpoint.denoiser.noise_dependence == "none":
        return "used again while the tokens stay the same: exact, as no noise is an input of the network"
    if checkpoint.denoiser.self_conditioned:
        return "computed in every step that reads, as the distributions of the call before may be an input"
    return "computed in every step that reads, as the noise is an input of the network"


def _cache(checkpoint: Checkpoint, approximate: ApproximateCache | None) -> str:
    """What is remembered from call to call, and whether that is exact."""
    lasts = settled_lasts(checkpoint.context, checkpoint.denoiser.noise_dependence)
    settled = f"settled positions are computed once: exact, as context is {checkpoint.context}"
    if approximate is None:
        sees = "settled positions see later ones"
        noise = (
            "the noise of the whole sequence is an input at every position, so no key or value stays valid"
        )
        why = sees if checkpoint.context == "full" else noise
        return settled if lasts else f"none, as {why}; --approximate-cache K trades exactness for speed"
    again = f"anew every {approximate.refresh} calls: APPROXIMATE, logits change"
    if not approximate.active:
        return f"settled positions are remembered, and computed {again}"
    part = "those not settled" if lasts else "all"
    return f"computed are positions that are read or have changed, and {part} {again}"


def _packed(checkpoint: Checkpoint) -> str:
    """How many weights are kept a second time."""
    count = sum(isinstance(part, PackedLinear) and part.packs for part in checkpoint.network.modules())
    return f"; {count} matrices packed for few rows: exact but for rounding" if count else ""


def _buffers(checkpoint: Checkpoint) -> str:
    """What static buffers were used for."""
    static = checkpoint.network.static
    if static is None:
        return "grow with the text; --slots N makes them static, for accelerators"
    how = "recorded as CUDA graphs" if static.records else "not recorded, as this is not CUDA"
    return (
        f"static, {static.slots} slots: {static.num_calls} calls, shapes: {len(static.shapes)}, {how}: exact"
    )
