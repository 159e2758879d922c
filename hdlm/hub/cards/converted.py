"""Diffusion models that hdlm made from a causal one and exported in the layout of Llama, Qwen2, Qwen3 or GPT-2.

Their config is one that `transformers` reads as a causal model. The table `hdlm` in it says what the model is: its
process, the meaning of its outputs, its hyperschedules and its attention. `hdlm.sharing.decoder_layout` writes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, final

from hdlm import hyperschedule as hyperschedules
from hdlm import noise_schedule as noise_schedules
from hdlm import parameterization as parameterizations
from hdlm import process as processes
from hdlm.checkpoint.pieces import build
from hdlm.hub.card import AbstractCard, Blueprint, Evidence
from hdlm.hub.cards._decoder import PIECES, causal_family, masked_rows, special_tokens
from hdlm.hub.fields import Fields

__all__ = ["ConvertedCard"]


@final
class ConvertedCard(AbstractCard):
    """A causal layout with the pieces of a diffusion model."""

    name: ClassVar[str] = "converted"

    def recognises(self, evidence: Evidence) -> bool:
        table = evidence.config.get(PIECES)  # exports in the published layout have another table of this name
        return isinstance(table, Mapping) and "parameterization" in table

    def blueprint(self, evidence: Evidence) -> Blueprint:
        fields = Fields(evidence.config, evidence.origin)
        count = fields.whole("vocab_size")
        rows = masked_rows(evidence, count, fields.get("mask_token_id"), what="converted")
        family = causal_family(evidence, count)
        table: Mapping[str, Any] = evidence.config[PIECES]
        try:
            process = build(processes, table["process"])
            pieces: dict[str, Any] = {
                "parameterization": build(parameterizations, table["parameterization"]),
                "noise_schedule": build(noise_schedules, table["noise_schedule"]),
                "hyperschedules": tuple(build(hyperschedules, item) for item in table["hyperschedules"]),
                "context": table["context"],
                "active": table["active"],
            }
        except KeyError as error:
            raise ValueError(
                f"{evidence.origin}: the table `{PIECES}` of its config lacks {error}."
            ) from error
        except (TypeError, ValueError) as error:
            raise ValueError(f"{evidence.origin}: the table `{PIECES}` of its config: {error}") from error
        if process.num_words != rows.words:
            raise ValueError(
                f"{evidence.origin}: the process of its table `{PIECES}` is for {process.num_words} words, and its "
                f"embedding has {rows.words}."
            )
        return Blueprint(
            network=family.network,
            vocabulary=special_tokens(evidence, rows),
            process=process,
            tensors=family.tensors,
            ignored=family.ignored,
            mask_row=rows.mask,
            spare_rows=True,
            unknown=family.unknown,
            **pieces,
        )
