"""The file of a study, and the jobs that it describes.

title = "Which noise?"
seeds = [0, 1]
tokens = [1e6]             # or flops = [1e14], or both

[recipe.data]              # the tables of a recipe file, which all arms and judges share
corpus = ["kjv"]

[[arms]]                   # a name, and tables of the recipe that differ
name = "absorbing"
process = { type = "Absorbing" }

[[arms]]                   # with a budget of its own, in place of those of the study
name = "causal"
tokens = 4e6
mixture = [{ hyperschedule = { type = "Block", width = 1, num_levels = 1 } }]

[[arms]]                   # the model of another arm, trained further
name = "converted"
start = "causal"

[[judges]]                 # autoregressive models that judge samples, with budgets of their own
name = "judge a"
tokens = 4e6

[[samplers]]               # a name, numbers of steps, and fields of `hdlm.Settings`
name = "acs"
evaluations = [8, 32]
algorithm = "acs"

[measure]
text = "validation"
"""

from __future__ import annotations

import itertools
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, final

from hdlm.evaluation.calibration import CalibrationOptions
from hdlm.evaluation.likelihood.evaluate import LikelihoodOptions
from hdlm.evaluation.repair import RepairOptions
from hdlm.generation import Settings
from hdlm.strict_config import read_table, require
from hdlm.study.budget import Spent, evaluation_flops, spent, steps_for
from hdlm.study.jobs import StudyJob
from hdlm.training import Recipe
from hdlm.training.recipe import import_own, with_options

__all__ = ["Arm", "Judge", "Measure", "Study", "StudySampler"]

_UNSET = re.compile(r"\$(\w+|\{\w+\})")
_BYTES_PER_TOKEN = 4


@final
@dataclass(frozen=True)
class Arm:
    """One arm of a study.

    Attributes:
        name: Name of the arm in tables and pictures. Arms whose names differ in one part between commas are compared
            with each other.
        start: Name of an arm whose model of the same seed is trained further, with `tokens` of its own; random
            weights by default. The budgets of an arm do not include those of its start.
        tokens: Training tokens, in place of the budgets of the study.
        recipe: Tables of the recipe that differ from those of the study.
    """

    name: str
    start: str = ""
    tokens: float | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)


@final
@dataclass(frozen=True)
class Judge:
    """An autoregressive model that judges samples.

    Attributes:
        name: Name of the judge in tables and pictures.
        tokens: Training tokens, if the study trains the judge.
        source: A model that exists already, as for `--judge`, in place of a training.
        recipe: Tables of the recipe that differ from those of the study.
    """

    name: str
    tokens: float | None = None
    source: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(
            (self.tokens is None) == bool(self.source), "judges", "with either tokens or a source", self.name
        )


@final
@dataclass(frozen=True)
class StudySampler:
    """A sampler at several numbers of steps.

    Attributes:
        name: Name of the sampler in tables and pictures.
        evaluations: Numbers of steps of the whole hyperschedule; the steps of a position follow from each.
        arms: Names of the arms whose models it samples; all arms by default.
        settings: Fields of `hdlm.Settings`, except for `steps` and `length`.
    """

    name: str
    evaluations: tuple[int, ...]
    arms: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(bool(self.evaluations), "samplers.evaluations", "at least one number", self.evaluations)
        own = {"steps": "evaluations", "length": "measure.length"}
        for name, instead in own.items():
            require(name not in self.settings, f"samplers.{name}", f"left out: {instead} has it", name)
        read_table(Settings, self.settings, "samplers")


@final
@dataclass(frozen=True)
class Measure:
    """What is measured. A measurement whose table is left out is not made.

    Attributes:
        text: Held-out texts, as for `--data`; `validation` is what the recipe sets aside. Generation, calibration and
            repair use the first one.
        samples: Number of samples of each model and sampler.
        length: Tokens in a sample; the context by default.
        controls: Writers without a model that are measured with the first samples.
        mauve: Whether MAUVE is measured by the features of the first judge that has them.
        likelihood: Fields of `LikelihoodOptions`.
        calibration: Fields of `CalibrationOptions`.
        repair: Fields of `RepairOptions`; every sampler repairs at all of its numbers of steps.
    """

    text: tuple[str, ...] = ("validation",)
    samples: int = 64
    length: int | None = None
    controls: tuple[str, ...] = ("repeat", "unigram", "shuffle", "data")
    mauve: bool = False
    likelihood: Mapping[str, Any] | None = None
    calibration: Mapping[str, Any] | None = None
    repair: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        classes = {
            "likelihood": LikelihoodOptions,
            "calibration": CalibrationOptions,
            "repair": RepairOptions,
        }
        for name, options in classes.items():
            read_table(options, getattr(self, name) or {}, f"measure.{name}")


@final
@dataclass(frozen=True)
class Study:
    """A study: arms x seeds x budgets, judged by other models.

    Attributes:
        title: Title of the report.
        recipe: The tables that all arms and judges share; see `hdlm.training.Recipe`.
        arms: The arms, each with a name of its own.
        seeds: Seeds of the trainings.
        tokens: Budgets in training tokens.
        flops: Budgets in FLOPs of the network.
        judges: Models that judge samples.
        samplers: Samplers that write and repair.
        measure: The measurements of each model.
        description: What the study asks, in a few sentences.
    """

    title: str
    recipe: Mapping[str, Any]
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    tokens: tuple[float, ...] = ()
    flops: tuple[float, ...] = ()
    judges: tuple[Judge, ...] = ()
    samplers: tuple[StudySampler, ...] = ()
    measure: Measure = field(default_factory=Measure)
    description: str = ""

    def __post_init__(self) -> None:
        require(bool(self.arms), "arms", "at least one table, [[arms]]", self.arms)
        require(bool(self.seeds), "seeds", "at least one seed", self.seeds)
        require(bool(self.tokens or self.flops), "tokens or flops", "at least one budget", None)
        for kind in ("arms", "judges", "samplers"):
            names = [part.name for part in getattr(self, kind)]
            require(len(set(names)) == len(names), kind, "names that differ", names)
        known = [arm.name for arm in self.arms]
        for sampler in self.samplers:
            strange = [name for name in sampler.arms if name not in known]
            require(not strange, "samplers.arms", f"names of arms, of {known}", strange)
        starts = [""]
        for arm in self.arms:
            expected = "the name of an earlier arm with `tokens` of its own"
            require(arm.start in starts, "arms.start", expected, arm.start)
            starts += [arm.name] if arm.tokens is not None else []

    @classmethod
    def load(cls, path: Path) -> Study:
        """Read the file of a study.

        Raises:
            ValueError: If the file is missing or not TOML, a variable of the environment is not set, or an option is
                unknown, missing or out of range.
        """
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        except FileNotFoundError as error:
            raise ValueError(f"there is no study at {path}.") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not TOML: {error}.") from error
        table = _expanded(table)
        import_own(table)
        for kind, rest, own in (
            ("arms", "recipe", Arm),
            ("judges", "recipe", Judge),
            ("samplers", "settings", StudySampler),
        ):
            parts = table.get(kind, [])
            require(isinstance(parts, list), kind, f"a list of tables, [[{kind}]]", parts)
            table[kind] = [_nested(part, rest, {option.name for option in fields(own)}) for part in parts]
        return read_table(cls, table)

    def recipe_of(self, part: Arm | Judge, seed: int, budget: float, unit: str) -> Recipe:
        """The recipe of a run, with the number of steps for its budget.

        Raises:
            ValueError: If an option of the recipe is unknown or out of range.
        """
        run = {"steps": 1, "minutes": None, "seed": seed}
        table = with_options(self.recipe, part.recipe)
        try:
            recipe = Recipe.from_table(with_options(table, {"run": run}))
        except ValueError as error:
            raise ValueError(f"{part.name}: {error}") from error
        return replace(recipe, run=replace(recipe.run, steps=steps_for(recipe, budget, unit)))

    def jobs(self) -> list[StudyJob]:
        """All jobs, each after those that it needs."""
        judging: dict[str, StudyJob] = {}
        for judge in self.judges:
            if judge.tokens is not None:
                recipe = self.recipe_of(judge, 0, judge.tokens, "tokens")
                judging[judge.name] = _training(
                    f"judge/{judge.name}", recipe, len(judging), {"judge": judge.name}
                )
        jobs, group = list(judging.values()), len(judging)
        models, starts = [], dict[tuple[str, int], StudyJob]()
        for (arm, budget, unit), seed in itertools.product(self._runs(), self.seeds):
            recipe = self.recipe_of(arm, seed, budget, unit)
            labels = {"arm": arm.name, "budget": f"{budget:g} {unit}", "seed": seed}
            name = f"train/{arm.name}/{budget:g} {unit}/seed {seed}"
            needs = (starts[arm.start, seed],) if arm.start else ()
            training = _training(name, recipe, group, labels, needs)
            models.append((training, recipe))
            if arm.tokens is not None:
                starts[arm.name, seed] = training
            group += 1
        first = True
        for training, recipe in models:
            jobs.append(training)
            for job in self._measurements(training, recipe, judging, controls=first):
                first = first and job.kind != "generation"
                jobs.append(job)
        return [job for job in jobs if job.kind == "train"] + [job for job in jobs if job.kind != "train"]

    def _runs(self) -> Iterator[tuple[Arm, float, str]]:
        """Arm, budget and unit of all trainings; arms with a budget of their own come first."""
        for arm in self.arms:
            if arm.tokens is not None:
                yield arm, arm.tokens, "tokens"
        budgets = [(budget, "tokens") for budget in self.tokens] + [
            (budget, "flops") for budget in self.flops
        ]
        for budget, unit in budgets:
            for arm in self.arms:
                if arm.tokens is None:
                    yield arm, budget, unit

    def _measurements(
        self, training: StudyJob, recipe: Recipe, judging: Mapping[str, StudyJob], *, controls: bool
    ) -> Iterator[StudyJob]:
        """The measurements of one model."""
        measure, name = self.measure, training.name.removeprefix("train/")
        length = measure.length or recipe.data.context

        def job(
            kind: str, what: str, spec: dict[str, Any], passes: float, needs: tuple[StudyJob, ...] = ()
        ) -> StudyJob:
            flops = evaluation_flops(recipe, passes, length)
            labels = training.labels | spec.pop("labels", {})
            spec = {"text": measure.text[0], "recipe": recipe.to_table(), **spec}
            return StudyJob(
                kind,
                f"{kind}/{name}{what}",
                spec,
                (training, *needs),
                training.group,
                labels,
                Spent(0, flops),
            )

        if measure.likelihood is not None:
            for text in measure.text:
                options = read_table(LikelihoodOptions, measure.likelihood)
                tokens = options.limit or _size_of(text)
                yield job(
                    "likelihood",
                    f"/{Path(text).name}",
                    {"text": text, "options": measure.likelihood, "labels": {"text": Path(text).name}},
                    2 * options.replicates * tokens / length,
                )
        if measure.calibration is not None:
            how = read_table(CalibrationOptions, measure.calibration)
            yield job("calibration", "", {"options": measure.calibration}, 4.0 * how.num * how.replicates)
        sources = {judge.name: judge.source for judge in self.judges}
        arm = training.labels["arm"]
        for sampler in self.samplers:
            for evaluations in sampler.evaluations if arm in (sampler.arms or (arm,)) else ():
                what = f"/{sampler.name}/{evaluations}"
                labels = {"labels": {"sampler": sampler.name, "evaluations": evaluations}}
                spec = {"settings": sampler.settings, "evaluations": evaluations, "length": length, **labels}
                yield job(
                    "generation",
                    what,
                    spec
                    | {
                        "judges": sources,
                        "samples": measure.samples,
                        "mauve": measure.mauve,
                        "controls": measure.controls if controls else (),
                    },
                    float(measure.samples * evaluations),
                    tuple(judging.values()),
                )
                controls = False
                if measure.repair is not None:
                    num = read_table(RepairOptions, measure.repair).num
                    own = spec | {"options": measure.repair}
                    yield job("repair", what, own, 2.0 * num * evaluations)


def _training(
    name: str, recipe: Recipe, group: int, labels: dict[str, Any], needs: tuple[StudyJob, ...] = ()
) -> StudyJob:
    assert recipe.run.steps is not None
    return StudyJob(
        "train", name, {"recipe": recipe.to_table()}, needs, group, labels, spent(recipe, recipe.run.steps)
    )


def _nested(part: Any, rest: str, own: set[str]) -> dict[str, Any]:
    """A table with the options that are not its own in a table `rest`."""
    require(isinstance(part, Mapping), rest, "a table", part)
    others = {name: value for name, value in part.items() if name not in own}
    return {name: value for name, value in part.items() if name in own} | {rest: others}


def _expanded(value: Any) -> Any:
    """Values with the variables of the environment in their strings, `$HDLM_SHARED/data`.

    Raises:
        ValueError: If a variable is not set.
    """
    if isinstance(value, Mapping):
        return {name: _expanded(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_expanded(inner) for inner in value]
    if not isinstance(value, str):
        return value
    text = os.path.expandvars(value)
    if missing := _UNSET.search(text):
        raise ValueError(f"{value!r} needs the variable {missing[1]} of the environment, which is not set.")
    return text


def _size_of(text: str) -> float:
    """About as many tokens as a text has, for an estimate of the cost; 0 if it is not a file."""
    path = Path(text)
    return path.stat().st_size / _BYTES_PER_TOKEN if path.is_file() else 0.0
