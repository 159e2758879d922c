"""Make `tests/parity/data/golden.tar.xz`, the committed part of the golden figures, from the full set.

    python tests/parity/make_data.py ../shared/golden

The archive is the same byte for byte whenever it is made from the same full set by the same version of Python.
`left_out.json` lists what the full set has and the archive has not.
"""

from __future__ import annotations

import fnmatch
import io
import json
import lzma
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np

DATA = Path(__file__).parent / "data"
ARCHIVE, LEFT_OUT = DATA / "golden.tar.xz", DATA / "left_out.json"
MOST_BYTES = 3_985_000

FILES_LEFT_OUT = (
    "modern/*",  # networks that came later, with a set of their own
    "*_vocab50257/*",  # weights of 3.4 MB each
    "*/grads.npz",
    "*/pytorch_model.bin",  # the tensors of `model.safetensors` again
    "*.ckpt",
    "local_run/*",
    "metrics.npz",
    "*README.md",
    "*/.gitattributes",
)
"""Files that are not committed: patterns of paths in the full set."""

ARRAYS_LEFT_OUT = {
    "epsilon/io.npz": (
        "*block_w8_t4_s[145]_*",
        "*block_w8_t4_s9_*",
        "*block_w8_t4_s17_*",
        "*block_w8_t4_s6_full_full",
        "*block_w8_t4_s6_causal_causal",
        "*__causal",
        "*simple_w8_t8_s3_*",
        "*simple_w8_t8_s13_*",
        "*__pos_offset5",
        "*__offset5",
        "*__pos_scale3",
        "*__scale3",
    ),
    "gamma/io.npz": (
        "logits__raw_noscale_nopost",
        "*block_w8_t4_s[145]_*",
        "*block_w8_t4_s9_*",
        "*block_w8_t4_s17_*",
        "*block_w8_t4_s6_full_full",
        "*block_w8_t4_s6_causal_causal",
        "*__causal",
        "*simple_w8_t8_s3_*",
        "*simple_w8_t8_s13_*",
    ),
    "samplers.npz": ("gamma_?AR_simple_w4_t4__draw*", "semi_diff_remdm__draw*"),
    "peers/bd3lm/io.npz": ("*__bs[128]", "*__bs[128]_*", "*nucleus*"),
    "peers/duo/io.npz": ("*soft*", "*topk*", "*psi_kappa*", "*__ancestral_last", "*ckpt_raw"),
    "peers/gidd/io.npz": ("*flashpath", "step?_weights__pu0.2_minp0.02", "*_weights__pu0.1*"),
    "peers/mdlm/io.npz": ("log_p_x0_d3pm__timecond1", "step_cache_p_x0*", "*ckpt_raw"),
    "peers/sedd_uniform/io.npz": ("step_euler_weights",),
}
"""Arrays that are not committed, of a file that is: patterns of their names for each pattern of a path."""


def is_left_out(path: str, array: str | None = None) -> bool:
    """Whether the archive lacks a file of the full set, or an array of a file that it has."""
    if array is None:
        return any(fnmatch.fnmatchcase(path, pattern) for pattern in FILES_LEFT_OUT)
    return any(
        fnmatch.fnmatchcase(array, pattern)
        for file, patterns in ARRAYS_LEFT_OUT.items()
        if fnmatch.fnmatchcase(path, file)
        for pattern in patterns
    )


def _uncompressed(arrays: dict[str, np.ndarray]) -> bytes:
    """An `.npz` without compression of its own, since the archive compresses it better."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as file:
        for name, array in arrays.items():
            entry = io.BytesIO()
            np.save(entry, array)
            file.writestr(zipfile.ZipInfo(f"{name}.npy"), entry.getvalue())
    return content.getvalue()


def make(full: Path) -> None:
    """Write the archive and the list of what it leaves out.

    Args:
        full: The folder of the full set.

    Raises:
        ValueError: If the archive would be larger than `MOST_BYTES`.
    """
    files_out, arrays_out = [], {}
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for file in sorted(path for path in full.rglob("*") if path.is_file()):
            path = file.relative_to(full).as_posix()
            if is_left_out(path):
                files_out += [] if path.startswith("modern/") else [path]
                continue
            data = file.read_bytes()
            if file.suffix == ".npz":
                with np.load(file) as arrays:
                    lost = [name for name in arrays.files if is_left_out(path, name)]
                    data = _uncompressed({name: arrays[name] for name in arrays.files if name not in lost})
                arrays_out |= {path: lost} if lost else {}
            entry = tarfile.TarInfo(f"golden/{path}")  # no time, owner or group: the archive is reproducible
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    packed = lzma.compress(content.getvalue(), preset=9 | lzma.PRESET_EXTREME)
    print(f"{len(packed):,} bytes")
    if len(packed) > MOST_BYTES:
        raise ValueError(f"{len(packed):,} bytes are more than {MOST_BYTES:,}: add to what is left out.")
    ARCHIVE.write_bytes(packed)
    LEFT_OUT.write_text(json.dumps({"files": files_out, "arrays": arrays_out}, indent=1) + "\n")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
