"""Training in one call: `train` a model on text, and `finetune` one.

They run the same code as `hdlm train`. Each piece is an object of this package or of the user's own, or a table of a
recipe.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from rich.console import Console

from hdlm.checkpoint import Checkpoint, describe, load_checkpoint
from hdlm.data import AbstractCorpus, corpus
from hdlm.data.corpora import Documents
from hdlm.data.shards import Shards
from hdlm.devices import find_device
from hdlm.evaluation.during_training import Observer
from hdlm.hub import load
from hdlm.hyperschedule import AbstractHyperschedule
from hdlm.network import DDiTConfig
from hdlm.noise_schedule import AbstractNoiseSchedule
from hdlm.objective import AbstractObjective
from hdlm.parameterization import AbstractParameterization
from hdlm.process import AbstractNoiseProcess
from hdlm.training import Recipe, ResumePoint
from hdlm.training.conversion import CONVERSION, Target, prepared
from hdlm.training.finetuning import recipe_of
from hdlm.training.launch import begin, carry_out, recipe_file, run_to_resume
from hdlm.training.recipe import import_own, with_options
from hdlm.training.text import Corpora

__all__ = ["finetune", "train"]

_Table: TypeAlias = Mapping[str, Any]
TrainingData: TypeAlias = str | Path | AbstractCorpus | Shards | Iterable[object]
_IN_MEMORY = "in memory: "
"""Beginning of the name that a recipe records for text without files."""


def train(
    text: TrainingData | None = None,
    *,
    output: str | Path,
    minutes: float | None = None,
    steps: int | None = None,
    process: AbstractNoiseProcess | _Table | None = None,
    noise_schedule: AbstractNoiseSchedule | _Table | None = None,
    parameterization: AbstractParameterization | _Table | None = None,
    objective: AbstractObjective | _Table | None = None,
    hyperschedule: AbstractHyperschedule | _Table | None = None,
    network: DDiTConfig | _Table | None = None,
    recipe: Recipe | _Table | str | Path = "demo",
    seed: int | None = None,
    device: torch.device | str | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Checkpoint:
    """Train a model on text.

    Options that are left out are those of the recipe. The sizes of objects are those of the run: the number of words of
    a process is the vocabulary, the length of a hyperschedule is the context.

    Args:
        text: A file, a folder, a glob or the name of a corpus; documents, as a list of strings or any iterable; a
            corpus; or shards. By default the text of the recipe.
        output: Folder of the run: checkpoints, metrics and the state that is needed to resume it.
        minutes: Duration of the training in minutes.
        steps: Number of optimizer steps instead, which is repeatable to the bit on a CPU.
        process: The noise process.
        noise_schedule: Noise as a function of time.
        parameterization: The meaning of the network's outputs.
        objective: Loss that is minimised.
        hyperschedule: The hyperschedule, in place of the recipe's mixture.
        network: Options of the network; a `DDiTConfig` sets all of them.
        recipe: A recipe, its table, its TOML file, or the name of one of the package.
        seed: Seed of all random numbers.
        device: Device of the training; by default an accelerator if there is one.
        resume: Whether to resume the run in the folder, exactly, or begin one if there is none. Without further
            options the run keeps its recipe.
        progress: Whether progress is shown, as a bar in a terminal or a notebook and as lines elsewhere.

    Returns:
        The trained model, with averaged weights.

    Raises:
        ValueError: If an option is out of range, the options do not fit, the text cannot be used, or the folder
            cannot take the run; the message says what to do.
    """
    console, folder = _console(progress=progress), Path(output)
    resume_point = run_to_resume(folder, console.print, resume=resume, option="resume=True")
    table = _table(recipe) if resume_point is None or recipe != "demo" else resume_point.recipe.to_table()
    _put_pieces(table, process, noise_schedule, parameterization, objective, hyperschedule, network)
    corpora = _put_text(table, text)
    _put_run(table, minutes, steps, seed)
    return _carried_out(
        Recipe.from_table(table), folder, console, device, resume_point=resume_point, text=corpora
    )


def finetune(
    checkpoint: Checkpoint | str | Path,
    text: TrainingData | None = None,
    *,
    output: str | Path,
    minutes: float | None = None,
    steps: int | None = None,
    process: AbstractNoiseProcess | _Table | None = None,
    noise_schedule: AbstractNoiseSchedule | _Table | None = None,
    parameterization: AbstractParameterization | _Table | None = None,
    objective: AbstractObjective | _Table | None = None,
    hyperschedule: AbstractHyperschedule | _Table | None = None,
    recipe: Recipe | _Table | str | Path | None = None,
    to: Target | None = None,
    seed: int | None = None,
    device: torch.device | str | None = None,
    keep_optimizer: bool = False,
    resume: bool = False,
    progress: bool = True,
) -> Checkpoint:
    """Train a model further, on other text or as something else.

    Network and tokenizer are those of the checkpoint, and so is every piece that is left out. The optimizer is the
    default one with a tenth of its rates.

    Args:
        checkpoint: A model, or a source for `hdlm.load`.
        text: As for `train`.
        output: As for `train`.
        minutes: As for `train`.
        steps: As for `train`.
        process: As for `train`.
        noise_schedule: As for `train`.
        parameterization: As for `train`.
        objective: As for `train`; by default the recorded one, or one that matches the process and the outputs.
        hyperschedule: As for `train`.
        recipe: Tables that replace options of the checkpoint's, `{"optimizer": {"head_rate": 1e-4}}`; or a complete
            recipe. With `to`, a file or a name of a recipe replaces options as well.
        to: `"diffusion"` to convert a causal model: it gets a mask, and the recipe is `"diffusion"` by default.
        seed: As for `train`.
        device: As for `train`.
        keep_optimizer: Whether to begin with the state of the optimizers; the checkpoint must be the folder of a run.
        resume: As for `train`.
        progress: As for `train`.

    Returns:
        The trained model, with averaged weights.

    Raises:
        ValueError: As for `train`, or if the recipe does not fit the checkpoint.
    """
    if keep_optimizer and isinstance(checkpoint, Checkpoint):
        raise ValueError(
            "keep_optimizer=True needs the folder of a run as the checkpoint: a model has no optimizer state."
        )
    console, folder = _console(progress=progress), Path(output)
    resume_point = run_to_resume(folder, console.print, resume=resume, option="resume=True")
    start = checkpoint if isinstance(checkpoint, Checkpoint) else load(checkpoint)
    if to is not None:
        start = prepared(
            start, "a model in memory" if isinstance(checkpoint, Checkpoint) else str(checkpoint)
        )
    if resume_point is not None and recipe is None:
        table = resume_point.recipe.to_table()
    elif to is not None and not isinstance(recipe, Recipe):
        table = _conversion(start, recipe)
    elif recipe is None or isinstance(recipe, Mapping):
        import_own(recipe)
        table = with_options(recipe_of(start), recipe or {})
    else:
        table = _table(recipe)
    _put_pieces(table, process, noise_schedule, parameterization, objective, hyperschedule)
    corpora = _put_text(table, text)
    _put_run(table, minutes, steps, seed)
    memory = str(checkpoint) if keep_optimizer else None
    full = Recipe.from_table(table)
    return _carried_out(
        full, folder, console, device, resume_point=resume_point, text=corpora, start=start, memory=memory
    )


def _conversion(start: Checkpoint, recipe: _Table | str | Path | None) -> dict[str, Any]:
    """The table of a recipe that converts a model: that of a file, or the default one with other options."""
    file = recipe_file(recipe if isinstance(recipe, str | Path) else CONVERSION)
    table = Recipe.load(file, base=recipe_of(start)).to_table()
    if isinstance(recipe, Mapping):
        import_own(recipe)
        table = with_options(table, recipe)
    return table


def _carried_out(
    recipe: Recipe,
    folder: Path,
    console: Console,
    device: torch.device | str | None,
    *,
    resume_point: ResumePoint | None,
    text: Corpora | None,
    start: Checkpoint | None = None,
    memory: str | None = None,
) -> Checkpoint:
    """Begin or resume a run, carry it out, and load its model."""
    place = device if isinstance(device, torch.device) else find_device(device or "auto")
    session = begin(
        recipe, folder, place, console.print, resume_point=resume_point, start=start, text=text, memory=memory
    )
    carry_out(session, console, (Observer(session.run, session, folder, console.print),))
    return load_checkpoint(folder, place)


def _console(*, progress: bool) -> Console:
    is_main = os.environ.get("RANK", "0") == "0"
    return Console(quiet=not (progress and is_main), highlight=False, soft_wrap=True)


def _table(recipe: Recipe | _Table | str | Path) -> dict[str, Any]:
    """The plain values of a recipe."""
    if isinstance(recipe, Mapping):
        import_own(recipe)
        return dict(recipe)
    return (recipe if isinstance(recipe, Recipe) else Recipe.load(recipe_file(recipe))).to_table()


def _put_run(table: dict[str, Any], minutes: float | None, steps: int | None, seed: int | None) -> None:
    """Enter the limit of a run and its seed into a table.

    Raises:
        ValueError: If both limits are given.
    """
    if minutes is not None and steps is not None:
        raise ValueError(f"give minutes or steps, not both; got minutes={minutes} and steps={steps}.")
    given: dict[str, Any] = {} if seed is None else {"seed": seed}
    if (minutes, steps) != (None, None):
        given |= {"minutes": minutes, "steps": steps}
    table["run"] = {**table.get("run", {}), **given}


def _put_pieces(
    table: dict[str, Any],
    process: AbstractNoiseProcess | _Table | None,
    noise_schedule: AbstractNoiseSchedule | _Table | None,
    parameterization: AbstractParameterization | _Table | None,
    objective: AbstractObjective | _Table | None,
    hyperschedule: AbstractHyperschedule | _Table | None,
    network: DDiTConfig | _Table | None = None,
) -> None:
    """Enter given pieces into a table, with the vocabulary and the context that follow from their sizes.

    Raises:
        ValueError: If two of them need different sizes.
    """
    sizes: list[tuple[str, str, int]] = []
    pieces = {"process": process, "noise_schedule": noise_schedule, "objective": objective}
    for name, piece in (pieces | {"parameterization": parameterization}).items():
        if piece is not None:
            table[name] = described = _described(piece)
            if (words := described.pop("num_words", None)) is not None:
                sizes.append(("vocabulary", f"the {name}", words))
    if hyperschedule is not None:
        described = _described(hyperschedule)
        length = getattr(hyperschedule, "length", None)
        described.pop("length", None)
        table["mixture"] = [{"hyperschedule": described}]
        if length is not None:
            sizes.append(("context", "the hyperschedule", length))
    if isinstance(network, DDiTConfig):
        options = network.to_dict()
        sizes.append(("vocabulary", "the network", options.pop("vocab_size") - 1))
        sizes.append(("context", "the network", options.pop("max_length")))
        if not options.pop("timestep_embedding"):
            options = {name: value for name, value in options.items() if not name.startswith("cond")}
        network = options
    if network is not None:
        table["network"] = {**table.get("network", {}), **network}
    data = dict(table.get("data", {}))
    for option in ("vocabulary", "context"):
        wanted = {piece: size for name, piece, size in sizes if name == option}
        if len(set(wanted.values())) > 1:
            listed = " and ".join(f"{piece} {size}" for piece, size in wanted.items())
            raise ValueError(f"the pieces must be of one {option}; got {listed}.")
        for size in wanted.values():
            data[option] = size
    table["data"] = data


def _described(piece: Any) -> dict[str, Any]:
    """A piece as a table of a recipe.

    Raises:
        ValueError: If it is neither a table nor a dataclass.
    """
    if isinstance(piece, Mapping):
        import_own(piece)
        return dict(piece)
    return describe(piece)


def _put_text(table: dict[str, Any], text: TrainingData | None) -> Corpora | None:
    """Enter the source of the text into a table; returns the text itself if a recipe cannot name it.

    Raises:
        ValueError: If the text is invalid, or a resumed run needs its text again.
    """
    data = table["data"]
    names = data.get("corpus", ())
    if text is None:
        kept = next((name for name in names if name.startswith(_IN_MEMORY)), None)
        if kept is not None:
            raise ValueError(f"the run was trained on text without a file, {kept}: give the same text again.")
        return None
    if isinstance(text, Shards):
        text = text.folder
    if isinstance(text, str | Path):
        data["corpus"] = [str(text)]
        return None
    if not isinstance(text, AbstractCorpus):
        items = tuple(text)
        if items and all(isinstance(item, Path) for item in items):
            data["corpus"] = [str(item) for item in items]
            return None
        text = Documents.of(items)
    data["corpus"] = [f"{_IN_MEMORY}{text!r}"]
    other = data.get("validation_corpus")
    return Corpora(text, corpus(*other, key=data.get("key", "text")) if other else None)
