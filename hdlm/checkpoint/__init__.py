"""A checkpoint: a folder with everything that is needed to use a model, and nothing that can run code.

    model.safetensors    the weights (of a training run, their moving average)
    raw.safetensors      the weights without averaging, if they were kept
    config.json          network, vocabulary, process, parameterization, noise schedule, hyperschedules, training
    tokenizer.json       the tokenizer, if there is one

Each piece of `config.json` is the name of a class and the fields of that frozen dataclass:
`{"type": "Block", "length": 128, "width": 4, "num_levels": 4}`. The class is one of this package, or the user's own,
`{"type": "mypackage.MyProcess", ...}`, whose module was imported before: reading a checkpoint imports nothing. Loading
is strict: a missing or unexpected tensor, or one of another shape, is an error. Every file is written under another
name and then renamed, so a run that is killed at any moment leaves complete files.
"""

from hdlm.checkpoint.checkpoint import FORMAT, MODEL_TYPE, Checkpoint
from hdlm.checkpoint.format import WeightsName, assemble, load_checkpoint, save_checkpoint
from hdlm.checkpoint.pieces import build, describe, description_text, piece_class

__all__ = [
    "FORMAT",
    "MODEL_TYPE",
    "Checkpoint",
    "WeightsName",
    "assemble",
    "build",
    "describe",
    "description_text",
    "load_checkpoint",
    "piece_class",
    "save_checkpoint",
]
