"""Diffusion models that were made from causal ones and keep their layout: one table, one line for each format.

| format | source | layout | outputs predict | context |
|---|---|---|---|---|
| Dream, DiffuCoder | arXiv 2508.15487 | Qwen2 | the next token | full |
| SDAR, TraDo | arXiv 2510.06303 | Qwen3 | the same token | block-causal |
| Fast-dLLM v2 | arXiv 2509.26328 | Qwen2 | the next token | block-causal |
| A2D (dllm) | `dllm` | Qwen2, Qwen3, Llama | the same token | full |
| DiffuGPT, DiffuLLaMA | arXiv 2410.17891 | GPT-2, Llama | the next token | full |

The mask is a row of the embedding. Dream and SDAR name it in their config, Fast-dLLM v2, A2D and DiffuGPT only in their
tokenizer, and nothing names that of DiffuLLaMA: load it with `mask_id=811`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

from hdlm.attention import Context
from hdlm.hub.card import AbstractCard, Blueprint, Evidence
from hdlm.hub.cards._decoder import CANVAS, PIECES, DecoderLayout, gpt2, llama, masked_rows, special_tokens
from hdlm.hub.cards._field import STEPS
from hdlm.hub.fields import Fields
from hdlm.hyperschedule import AbstractHyperschedule, Block, flat
from hdlm.parameterization import Mean, Shifted
from hdlm.process import Absorbing

__all__ = ["ADAPTED", "AdaptedCard"]

Layout = Literal["llama", "qwen2", "qwen3", "gpt2"]


@final
@dataclass(frozen=True)
class AdaptedCard(AbstractCard):
    """A diffusion model in the layout of a causal one.

    Attributes:
        name: What people call the format.
        model_type: What its config says.
        layout: Whose names its config and its tensors have.
        shifted: Whether the output at a position predicts the next token.
        block: Key of the config with the width of blocks; None for full attention.
        keys: Keys of the config that only this format has and that change no number.
    """

    name: str  # type: ignore[misc]
    model_type: str
    layout: Layout
    shifted: bool
    block: str | None = None
    keys: frozenset[str] = frozenset()

    def recognises(self, evidence: Evidence) -> bool:
        named = evidence.config.get("model_type") == self.model_type and PIECES not in evidence.config
        if not named or "embed_tokens.weight" not in evidence.shapes:
            return False
        return self.model_type != "llama" or evidence.config.get("mask_id") is not None

    def blueprint(self, evidence: Evidence) -> Blueprint:
        fields = Fields(evidence.config, evidence.origin)
        count = fields.whole("vocab_size")
        named = fields.get("mask_token_id")
        rows = masked_rows(evidence, count, evidence.mask_token if named is None else named, what=self.name)
        family = self._family(evidence, count)
        length = min(CANVAS, family.network.max_length)
        return Blueprint(
            network=family.network,
            vocabulary=special_tokens(evidence, rows),
            process=Absorbing(rows.words),
            parameterization=Shifted(Mean()) if self.shifted else Mean(),
            hyperschedules=(self._hyperschedule(fields, length),),
            tensors=family.tensors,
            ignored=family.ignored,
            mask_row=rows.mask,
            spare_rows=True,
            context=self.context,
            unknown=family.unknown,
        )

    @property
    def context(self) -> Context:
        """What settled positions see."""
        return "full" if self.block is None else "block_causal"

    def _hyperschedule(self, fields: Fields, length: int) -> AbstractHyperschedule:
        if self.block is None:
            return flat(length, min(STEPS, length))
        width = min(fields.whole(self.block), length)
        return Block(length - length % width, width, width)

    def _family(self, evidence: Evidence, rows: int) -> DecoderLayout:
        known = self.keys | {"mask_token_id"} | ({self.block} if self.block else set())
        if self.layout == "gpt2":
            return gpt2(evidence, rows, known, "denoise_model.", "embed_tokens")
        qwen = {"qwen2": {"qkv_bias": True}, "qwen3": {"qk_norm": True}}.get(self.layout, {})
        return llama(evidence, rows, known, **qwen)


_SDAR = frozenset(
    {"debug", "ep_size", "fuse_cross_entropy", "micro_forward", "skip_checkpoint", "use_deepep"}
)

ADAPTED: tuple[AbstractCard, ...] = (
    AdaptedCard("Dream", "Dream", "qwen2", shifted=True),
    AdaptedCard("SDAR", "sdar", "qwen3", shifted=False, block="block_size", keys=_SDAR),
    AdaptedCard(
        "Fast-dLLM v2",
        "Fast_dLLM_Qwen",
        "qwen2",
        shifted=True,
        block="bd_size",
        keys=frozenset({"conplemenrary_mask"}),
    ),
    AdaptedCard("A2D-Llama", "a2d-llama", "llama", shifted=False),
    AdaptedCard("A2D-Qwen2", "a2d-qwen2", "qwen2", shifted=False),
    AdaptedCard("A2D-Qwen3", "a2d-qwen3", "qwen3", shifted=False),
    AdaptedCard("DiffuGPT", "gpt2", "gpt2", shifted=True),
    AdaptedCard("DiffuLLaMA", "llama", "llama", shifted=True),
)
"""One card for each format."""
