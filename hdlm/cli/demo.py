"""Show what the package does: a model writes and corrects English; then a new model is trained, in minutes.

Act 1 takes seconds, with two small models that ship with hdlm. A model of characters repairs a verse with spelling
errors. A model of words writes the same text with plain ancestral sampling and with ACS, which corrects words that it
has written, and fills the gaps of a sentence.
Act 2 takes less than six minutes on two cores. It trains a tokenizer and a model on the King James Bible (or your own
text), compares the likelihood before and after with n-gram counts, writes samples, and makes a report with pictures.
On a slow or busy machine it trains until the model beats the bigram counts, for at most ten minutes in all, unless
--minutes is given.

Examples:
  hdlm demo
  hdlm demo --act 1 --seed 7
  hdlm demo --act 2 --text my-novel.txt --minutes 2 --output runs/novel
Ctrl-C ends training after the current step; the model of that step is evaluated and kept.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shlex
import shutil
import string
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hdlm.atomic import check_folder
from hdlm.cli._options import add_device, add_seed, chosen_device
from hdlm.cli._outputs import FOLDER
from hdlm.package_data import pretrained, recipes

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from hdlm.checkpoint import Checkpoint
    from hdlm.generation import Settings
    from hdlm.hyperschedule import AbstractHyperschedule
    from hdlm.training import TrainingSetup
    from hdlm.view.report import Measurement

PROMPTS = ("And the LORD said unto", "In the beginning", "And it came to pass")
GAPS = (
    "And the word of the LORD came unto [MASK], saying, Go, and speak unto the children of [MASK], and say unto them, "
    "Thus [MASK:3], Go ye up to [MASK], and do that which is right in the sight of the LORD."
)
ETA = 0.3
WORDS, SPELLING = "kjv-epsilon-4m", "kjv-spelling-2m"
"""The models of act 1."""
VERSE = (
    "The LORD is my shepherd; I shall not want. He maketh me to lie down in green pastures: he leadeth me beside the "
    "still waters."
)
"""From a chapter that was set aside when the model of characters was trained."""
MISSPELLED, NOISE = 0.08, 0.5
"""Share of the letters of the verse that are replaced, and the noise fraction at which the repair begins."""
LONGEST = 10.0
"""Minutes after which act 2 stops training in any case."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the acts, the text and the output folder."""
    parser.add_argument("--act", choices=("1", "2", "both"), default="both", help="which act (default: both)")
    parser.add_argument("--output", type=FOLDER, help="folder of act 2 (default: demo, or demo-2 and so on)")
    parser.add_argument(
        "--minutes",
        type=float,
        help="how long act 2 trains (default: as its recipe says, then until it beats the bigram, at most "
        f"{LONGEST:.0f} minutes)",
    )
    parser.add_argument("--text", nargs="+", metavar="TEXT", help="train on these files instead of the Bible")
    add_seed(parser, default=1)
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    """Run the acts."""
    from rich.console import Console

    from hdlm.training.launch import check_vacant

    console = Console(highlight=False)
    device = chosen_device(args.device, args.threads)
    args.output = args.output or _vacant(Path("demo"))
    check_folder(args.output)
    check_vacant(args.output, "hdlm train --resume")
    if args.act != "2":
        act_one(console, args.seed, device)
    if args.act != "1":
        act_two(console, args, device)
    served = "" if args.act == "1" else f" {shlex.quote(str(args.output))}"
    console.print("\nWatch it write and correct itself in the browser, at http://127.0.0.1:8000:")
    console.print(f"  {_program()} serve{served}", markup=False, soft_wrap=True)
    return 0


def _program() -> str:
    """The word or the path by which a shell finds this program."""
    if shutil.which("hdlm"):
        return "hdlm"
    called = Path(sys.argv[0])
    return shlex.quote(str(called)) if called.name == "hdlm" else f"{shlex.quote(sys.executable)} -m hdlm"


def _vacant(folder: Path) -> Path:
    """The folder, or the first of `folder-2`, `folder-3` ... that does not exist."""
    numbered = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))
    return next(path for path in itertools.chain([folder], numbered) if not path.exists())


def act_one(console: Console, seed: int, device: torch.device) -> None:
    """Repair a verse, write and correct text, and fill in gaps, with the models that ship."""
    from hdlm.generation import Settings

    console.rule("[bold]Act 1: a small model corrects what is wrong, also what it has written itself")
    _repair(console, _shipped(console, SPELLING, device), seed)
    checkpoint = _shipped(console, WORDS, device)
    calm = Settings(eta=ETA, temperature=0.6, top_p=0.9, length=min(64, checkpoint.length))
    ways = {name: replace(calm, algorithm=name) for name in ("original", "acs")}
    console.print(f"[bold]Writing[/] after {PROMPTS[0]!r}, without and with correction:")
    _side_by_side(console, checkpoint, ways, PROMPTS[0], seed)
    console.print("\n[bold]Filling in[/], with context on both sides:")
    console.print(GAPS, markup=False)
    _side_by_side(console, checkpoint, {"filled in": replace(calm, length=None)}, GAPS, seed)


def _shipped(console: Console, name: str, device: torch.device) -> Checkpoint:
    """A model that ships, introduced by a line."""
    from hdlm.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(pretrained() / name, device)
    parameters = sum(weight.numel() for weight in checkpoint.network.parameters())
    console.print(f"\n{name}: {parameters / 1e6:.1f}M parameters, {_kind(checkpoint)}")
    return checkpoint


def _repair(console: Console, checkpoint: Checkpoint, seed: int) -> None:
    """Replace some letters of a verse, let the model correct it, and count."""
    from hdlm.generation import Settings

    damaged = _misspelled(VERSE, seed)
    repair = Settings("acs", eta=1.0, temperature=0.5, hyperschedule="flat", steps=16)
    console.print("\n[bold]Repairing[/] a verse that the model was not trained on, with wrong letters:")
    console.print(damaged, markup=False)
    texts = _side_by_side(console, checkpoint, {"repaired": repair}, damaged, seed, noise=NOISE)
    wrong = {i for i, (bad, right) in enumerate(zip(damaged, VERSE, strict=True)) if bad != right}
    left = {i for i, (new, right) in enumerate(zip(texts["repaired"], VERSE, strict=False)) if new != right}
    console.print(
        f"{len(wrong - left)} of {len(wrong)} wrong letters are right now; {len(left - wrong)} of the "
        f"{len(VERSE) - len(wrong)} others were changed.\n"
    )


def _misspelled(text: str, seed: int) -> str:
    """A text in which a share of the letters is replaced by other letters."""
    draw = random.Random(seed)
    places = [place for place, sign in enumerate(text) if sign.islower() and place]
    letters = list(text)
    for place in draw.sample(places, round(MISSPELLED * len(places))):
        letters[place] = draw.choice([sign for sign in string.ascii_lowercase if sign != text[place]])
    return "".join(letters)


def act_two(console: Console, args: argparse.Namespace, device: torch.device) -> None:
    """Train a model, and report how well it predicts text."""
    from hdlm.evaluation.held_out import UntilBigram, counted, measured
    from hdlm.threads import is_fixed
    from hdlm.training import Recipe, listening
    from hdlm.training.launch import begin, carry_out
    from hdlm.view.report import table

    began = time.perf_counter()
    console.rule("[bold]Act 2: a new model is trained")
    changes: dict[str, dict[str, object]] = {"run": {"seed": args.seed}}
    if args.text:
        changes["data"] = {"corpus": args.text}
    if args.minutes is not None:
        changes["run"] |= {"minutes": args.minutes, "steps": None}
    recipe = Recipe.load(recipes() / "demo.toml", changes)
    with console.status("reading, learning a tokenizer"):
        session = begin(recipe, args.output, device, lambda line: console.print(line, soft_wrap=True))
    trainer = session.trainer

    def report() -> None:
        name = f"network, after {trainer.step} steps"
        rows.append(measured(console, session.run, name, replicates=goal.replicates))
        console.print(f"\n{table(rows)}")
        samples = _samples(console, session.run.checkpoint(), args.seed)
        _write_up(args.output, session.run, rows, samples, time.perf_counter() - began)

    with listening() as stop:
        rows = [*counted(session.run), measured(console, session.run, "network, untrained", replicates=1)]
        goal = UntilBigram(session, stop, rows[:2], console, began + 60 * LONGEST)
        goals = (goal,) if args.minutes is None and recipe.run.minutes is not None else ()
        adapts = not is_fixed(args.threads)
        carry_out(session, console, goals, stop=stop, last=report, adapts=adapts, ends_early=True)
    prompt = "" if args.text else f' --prompt "{PROMPTS[0]}"'
    console.print(f"\n[bold]{args.output}[/] holds the checkpoint, report.md and the pictures. Go on with")
    console.print(
        f"  {_program()} sample {args.output}{prompt} --algorithm acs --replay",
        markup=False,
        soft_wrap=True,  # a line that can be copied
    )
    console.print(f"[dim]act 2 took {(time.perf_counter() - began) / 60:.1f} minutes[/]")


def _kind(checkpoint: Checkpoint) -> str:
    """A short description of the model."""
    process = checkpoint.denoiser.process
    return f"{process!r}, context {checkpoint.length}"


def _side_by_side(
    console: Console,
    checkpoint: Checkpoint,
    ways: dict[str, Settings],
    prompt: str,
    seed: int,
    noise: float | None = None,
) -> dict[str, str]:
    """Write one text with several settings from one seed; print the settings and the texts, and return the texts."""
    from hdlm.generation.recording import record
    from hdlm.view.replay import play, replay_of

    replays, texts, notes = {}, {}, {}
    for name, settings in ways.items():
        (passage,), trace = record(checkpoint, prompt, settings, seed=seed, noise=noise)
        replays[name] = replay_of(trace)
        corrected = sum(change.reason == "corrected" for change in trace.changes)
        texts[name] = passage.text
        notes[name] = f"({passage.num_evaluations} evaluations, {corrected} tokens corrected)"
    play(replays)
    if not console.is_terminal:
        for name, text in texts.items():
            console.print(f"\n{name} {notes[name]}\n{text}", markup=False, soft_wrap=True)
    return texts


def _plan(setup: TrainingSetup) -> AbstractHyperschedule:
    return setup.mixture.hyperschedules[0]


def _samples(console: Console, checkpoint: Checkpoint, seed: int) -> dict[str, str]:
    """The continuations of a few prompts by the trained model."""
    from hdlm.generation import Settings, write

    settings = Settings(
        algorithm="acs", eta=ETA, temperature=0.7, top_p=0.9, length=min(64, checkpoint.length)
    )
    texts = {}
    console.print("\n[bold]It writes[/]")
    for prompt in PROMPTS:
        texts[prompt] = write(checkpoint, prompt, settings, seed=seed)[0].text
        console.print(f"  {texts[prompt]}\n", markup=False, soft_wrap=True)
    return texts


def _write_up(
    folder: Path, setup: TrainingSetup, rows: list[Measurement], samples: dict[str, str], seconds: float
) -> None:
    """Draw the pictures and write the report."""
    from hdlm.view.curves import RunMetrics, draw_curves
    from hdlm.view.hyperschedule import draw_hyperschedule
    from hdlm.view.report import table, write_report

    plan = _plan(setup)
    draw_hyperschedule(plan, folder / "hyperschedule.png")
    pictures = "![noise levels: positions from left to right, steps from top to bottom](hyperschedule.png)"
    metrics = folder / "metrics.jsonl"
    if metrics.is_file() and metrics.stat().st_size:
        draw_curves([RunMetrics.read(metrics)], folder / "loss.png", title="Training loss", panels=())
        pictures = f"![training loss](loss.png)\n\n{pictures}"
    process = setup.denoiser.process
    recipe = json.dumps(setup.recipe.to_table(), indent=2)
    write_report(
        folder / "report.md",
        "A new epsilon-hybrid model",
        {
            "Likelihood": f"{table(rows)}\n\nUpper bounds with standard errors, on {len(setup.validation.tokens):,} "
            f"tokens unseen in training; along `{plan!r}`, noise `{process!r}`.",
            "What it writes": "\n\n".join(f"**{prompt}** → {text}" for prompt, text in samples.items()),
            "Pictures": pictures,
            "How": f"{seconds / 60:.1f} minutes in all. Recipe:\n\n```json\n{recipe}\n```",
        },
    )
