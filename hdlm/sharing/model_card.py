"""Model cards: a README.md for weights, with their description, their results and an example of their use."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

from hdlm.checkpoint import Checkpoint, describe, description_text
from hdlm.network import Decoder, DiffusionGemma

__all__ = ["LICENCE", "Layout", "model_card"]

Layout = Literal["hdlm", "published"]
"""The layout of `hdlm.checkpoint`, or that of the paper's repositories."""

LICENCE = "mit"
"""The licence of weights by default."""

_LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]*")


def model_card(
    checkpoint: Checkpoint,
    source: str,
    *,
    layout: Layout = "hdlm",
    licence: str = LICENCE,
    evaluation: Mapping[str, Any] | None = None,
) -> str:
    """The text of a README.md.

    Args:
        checkpoint: Checkpoint of the model.
        source: Name that users will load: the id of a repository, or a folder.
        layout: Layout of the files.
        licence: Identifier of the weights' licence on the hub.
        evaluation: Results by name: numbers, or tables of numbers for data sets.

    Raises:
        ValueError: If the licence is not an identifier, or the layout is unknown.
    """
    if not _LICENCE.fullmatch(licence):
        raise ValueError(
            f"the licence must be an identifier of the hub, such as 'mit', 'apache-2.0' or 'other'; got {licence!r}."
        )
    if layout not in get_args(Layout):
        raise ValueError(f"the layout must be one of {', '.join(get_args(Layout))}; got {layout!r}.")
    usage = _use(checkpoint, source) + (_published_use(checkpoint, source) if layout == "published" else "")
    return f"""{_front_matter(checkpoint, licence)}
# {source.rstrip("/").rpartition("/")[2]}

{_summary(checkpoint)}

| | |
|---|---|
{_rows(_facts(checkpoint))}

## Use

{usage}
## Evaluation

{_results(evaluation)}

## Training

{_recipe(checkpoint)}

## Licence

The weights: {licence}. The program that reads them, [hdlm](https://arxiv.org/abs/2504.06416), is under the MIT licence.

## Citation

```bibtex
@article{{fathi2025unifying,
  title={{Unifying autoregressive and diffusion-based sequence generation}},
  author={{Fathi, Nima and Scholak, Torsten and No{{\\"e}}l, Pierre-Andr{{\\'e}}}},
  journal={{arXiv preprint arXiv:2504.06416}},
  year={{2025}}
}}
```
"""


def _front_matter(checkpoint: Checkpoint, licence: str) -> str:
    process = type(checkpoint.denoiser.process).__name__
    tags = ["diffusion-language-model", "hdlm", re.sub(r"(?<=[a-z])(?=[A-Z])", "-", process).lower()]
    listed = "\n".join(f"- {tag}" for tag in tags)
    return (
        f"---\nlicense: {licence}\nlibrary_name: hdlm\npipeline_tag: text-generation\ntags:\n{listed}\n---\n"
    )


def _summary(checkpoint: Checkpoint) -> str:
    process, origin = checkpoint.denoiser.process, checkpoint.training.get("format")
    kind = (
        "hybrid diffusion language model ([Unifying Autoregressive and Diffusion-Based Sequence Generation]"
        "(https://arxiv.org/abs/2504.06416))"
    )
    if isinstance(checkpoint.network, Decoder | DiffusionGemma):
        kind = "language model" + (f" in the format of {origin}," if isinstance(origin, str) else "")
    return (
        f"A {kind} of {_size(checkpoint)} parameters: noise process "
        f"`{description_text(describe(process))}`, {checkpoint.length} positions."
    )


def _size(checkpoint: Checkpoint) -> str:
    count = sum(weight.numel() for weight in checkpoint.network.parameters())
    for scale, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= scale:
            return f"{count / scale:.3g}{unit}"
    return str(count)


def _facts(checkpoint: Checkpoint) -> Iterator[tuple[str, str]]:
    """The properties of a model that users must know."""
    shape, vocabulary = checkpoint.network.config, checkpoint.vocabulary
    yield "parameters", f"{sum(weight.numel() for weight in checkpoint.network.parameters()):,}"
    yield (
        "network",
        f"{type(checkpoint.network).__name__}, hidden size {shape.hidden_size}, {shape.num_blocks} blocks, "
        f"{shape.num_heads} heads, context {shape.max_length}",
    )
    yield "process", description_text(describe(checkpoint.denoiser.process))
    yield "outputs", description_text(describe(checkpoint.denoiser.parameterization))
    yield "noise schedule", description_text(describe(checkpoint.noise_schedule))
    known = [description_text(describe(hyperschedule)) for hyperschedule in checkpoint.hyperschedules]
    yield "hyperschedules, the best first", "; ".join(known) or "none listed"
    yield "attention", f"settled positions {checkpoint.context}, active ones {checkpoint.active}"
    where = "in `tokenizer.json`" if checkpoint.tokenizer_json else "not included"
    yield "tokenizer", f"{vocabulary.num_words:,} words, {where}; the mask is id {vocabulary.mask_id}"


def _use(checkpoint: Checkpoint, source: str) -> str:
    if checkpoint.tokenizer_json is None:
        write = (
            "step = hdlm.algorithm('acs', model.denoiser.process)\n"
            f"schedule = hdlm.Block({checkpoint.length}, width={checkpoint.length}, num_levels=32)\n"
            "print(hdlm.sample(model.denoiser, model.regime(schedule), step, seed=1).tokens)"
        )
    else:
        write = (
            "settings = hdlm.Settings(algorithm='acs', temperature=0.8)\n"
            "for passage in hdlm.write(model, 'Once', settings, seed=1):\n"
            "    print(passage.text)"
        )
    return f"""```python
import hdlm

model = hdlm.load("{source}")
{write.replace("'", '"')}
```

On the command line, `hdlm sample {source}`; with `transformers`, after `import hdlm.integrations.transformers`,
`AutoModel.from_pretrained("{source}").generate(algorithm="acs")` where the files are in the layout of `hdlm`.
"""


def _published_use(checkpoint: Checkpoint, source: str) -> str:
    """Usage through the names of the published code."""
    length, words = checkpoint.length, checkpoint.vocabulary.num_words
    if checkpoint.network.config.timestep_embedding:
        imported = "from hdlm.gamma_hybrid.sampling import get_sa_sampling_fn"
        write = (
            "sampler = get_sa_sampling_fn(\n"
            f"    config=cfg, meta_schedule=metaschedule, batch_dims=(1, {length}), eps=1e-4, device=device\n"
            ")\ngenerated = sampler(model)"
        )
    else:
        shifted = "_shifted" if checkpoint.denoiser.lookback else ""
        imported = f"from hdlm.epsilon_hybrid.sample import full_diff{shifted}"
        write = (
            f"generated = full_diff{shifted}(\n"
            f'    model=model, batch_size=1, alg="acs", steps={length}, context_length={length}, dim={words}, '
            "device=device\n)"
        )
    return f"""
The files have the layout of the published code of the paper, whose own lines read them, there and here. Training
options in `config.json` are published defaults unless they are recorded below.

```python
{imported}
from hdlm.hf_utils import smart_model_loader

model, cfg, device, accelerator, metaschedule = smart_model_loader(
    model_path="{source}", model_type="auto", device="cpu"
)
{write}
```
"""


def _results(evaluation: Mapping[str, Any] | None) -> str:
    if not evaluation:
        return "No results were recorded with these weights."
    rows = [
        (name, ", ".join(f"{metric} {_number(v)}" for metric, v in result.items()))
        if isinstance(result, Mapping)
        else (name, _number(result))
        for name, result in evaluation.items()
    ]
    return f"| | result |\n|---|---|\n{_rows(iter(rows))}"


def _number(value: Any) -> str:
    return f"{value:,.5g}" if isinstance(value, float) else str(value)


def _rows(cells: Iterator[tuple[str, str]]) -> str:
    """Rows of a Markdown table, escaped."""
    return "\n".join(
        "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in row) + " |" for row in cells
    )


def _recipe(checkpoint: Checkpoint) -> str:
    if not checkpoint.training:
        return "The training of these weights is not recorded."
    document = json.dumps(dict(checkpoint.training), indent=2, ensure_ascii=False, default=str)
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", document) or [""]))
    return f"The checkpoint records:\n\n{fence}json\n{document}\n{fence}"
