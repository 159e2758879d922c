"""Sharing: write a checkpoint with its model card into a folder, and push it to the Hugging Face hub.

push_to_hub(checkpoint, "me/my-model", dry_run=True)      # list what would be sent, without a network
push_to_hub(checkpoint, "me/my-model")                    # a private repository
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from hdlm.atomic import replacing
from hdlm.checkpoint import Checkpoint, save_checkpoint
from hdlm.hub_access import hub_errors
from hdlm.sharing.export import export
from hdlm.sharing.model_card import LICENCE, Layout, model_card

__all__ = ["Shared", "push_to_hub", "save_pretrained", "tokenizer_files"]


@final
@dataclass(frozen=True)
class Shared:
    """What `push_to_hub` sent, or would send.

    Attributes:
        repo_id: Id of the repository.
        private: Whether only its owners can see it.
        files: Name and size in bytes of every file.
        card: The model card.
        url: Address of the repository; None after a dry run.
    """

    repo_id: str
    private: bool
    files: tuple[tuple[str, int], ...]
    card: str
    url: str | None = None

    def __str__(self) -> str:
        done = f"sent to {self.url}" if self.url else f"would be sent to {self.repo_id}"
        listed = "\n".join(f"  {size:>13,}  {name}" for name, size in self.files)
        return f"{done} ({'private' if self.private else 'public'}):\n{listed}"


def save_pretrained(
    checkpoint: Checkpoint,
    folder: str | Path,
    *,
    source: str | None = None,
    licence: str = LICENCE,
    evaluation: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint folder that can be shared: with a model card and all files that `transformers` needs.

    Args:
        checkpoint: The model.
        folder: The folder; it is made if it does not exist.
        source: Name by which users load the model, for the card; the folder by default.
        licence: Identifier of the licence of the weights, as the hub spells it, for the model card.
        evaluation: Results for the card; see `hdlm.sharing.model_card`.

    Raises:
        ValueError: If the licence is not an identifier.
        OSError: If the folder cannot be written.
    """
    folder = Path(folder)
    card = model_card(checkpoint, source or str(folder), licence=licence, evaluation=evaluation)
    save_checkpoint(folder, checkpoint)
    for name, content in {**tokenizer_files(checkpoint), "README.md": card.encode()}.items():
        with replacing(folder / name) as aside:
            aside.write_bytes(content)


def tokenizer_files(checkpoint: Checkpoint) -> dict[str, bytes]:
    """`tokenizer.json` and the options of `AutoTokenizer`; nothing for a model without a tokenizer."""
    if checkpoint.tokenizer_json is None:
        return {}
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": checkpoint.length,
        "clean_up_tokenization_spaces": False,
    }
    document = json.loads(checkpoint.tokenizer_json)
    # By default, transformers 4 removes a space at the beginning of a text.
    if (space := (document.get("pre_tokenizer") or {}).get("add_prefix_space")) is not None:
        config["add_prefix_space"] = space
    names = {token["id"]: token["content"] for token in document.get("added_tokens", [])}
    for role in ("bos", "eos", "pad"):
        token = getattr(checkpoint.vocabulary, role)
        if token in names:
            config[f"{role}_token"] = names[token]
    return {
        "tokenizer.json": checkpoint.tokenizer_json.encode(),
        "tokenizer_config.json": (json.dumps(config, indent=2) + "\n").encode(),
    }


def push_to_hub(
    checkpoint: Checkpoint,
    repo_id: str,
    *,
    private: bool = True,
    layout: Layout = "hdlm",
    dry_run: bool = False,
    token: str | None = None,
    revision: str | None = None,
    licence: str = LICENCE,
    evaluation: Mapping[str, Any] | None = None,
    **export_options: Any,
) -> Shared:
    """Send a checkpoint to the hub, with its model card.

    Args:
        checkpoint: The model.
        repo_id: `owner/name`; it is created if it does not exist.
        private: Whether only its owners see it.
        layout: `"hdlm"`, files that hdlm and transformers read, or `"published"`, as `hdlm export` writes them.
        dry_run: Whether to send nothing, and only list the files that would be sent, without network access.
        token: Access token of the hub; by default the one that `hf auth login` stored.
        revision: Branch to send to, which is created if it does not exist; the main one by default.
        licence: Identifier of the licence of the weights, as the hub spells it, for the model card.
        evaluation: Results for the card; see `hdlm.sharing.model_card`.
        **export_options: For the published layout: arguments of `hdlm.sharing.export.export`.

    Raises:
        ValueError: If the name is invalid, the checkpoint has no published form, or the repository is public although
            `private` was requested.
        OSError: If the hub cannot be reached or refuses.
    """
    from huggingface_hub.utils._validators import validate_repo_id

    validate_repo_id(repo_id)
    if repo_id.count("/") != 1:
        raise ValueError(f"the repository must be named `owner/name`; got {repo_id!r}.")
    model_card(checkpoint, repo_id, layout=layout, licence=licence)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if layout == "published":
            export(
                checkpoint, folder, source=repo_id, licence=licence, evaluation=evaluation, **export_options
            )
        else:
            save_pretrained(checkpoint, folder, source=repo_id, licence=licence, evaluation=evaluation)
        files = tuple(sorted((path.name, path.stat().st_size) for path in folder.iterdir()))
        card = (folder / "README.md").read_text(encoding="utf-8")
        url = None if dry_run else _send(folder, repo_id, private, token, revision)
    return Shared(repo_id, private, files, card, url)


def _send(folder: Path, repo_id: str, private: bool, token: str | None, revision: str | None) -> str:
    """Make the repository and the branch if they do not exist, and commit the folder."""
    import huggingface_hub

    api = huggingface_hub.HfApi(token=token)
    try:
        with hub_errors():
            url = api.create_repo(repo_id, private=private, exist_ok=True)
            if private and api.repo_info(repo_id).private is not True:
                raise ValueError(
                    f"{repo_id} exists and is public, but this model was to be private: choose another name, make the "
                    "repository private, or allow a public one (`private=False`, `--public`)."
                )
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            api.upload_folder(
                repo_id=repo_id, folder_path=folder, revision=revision, commit_message="Model by hdlm"
            )
    except OSError as error:
        raise OSError(
            f"{repo_id} was not sent to the hub ({error}). Check that there is a network, that you are "
            "logged in (`hf auth login`, or a token), and that you may write there. To share without the hub, write a "
            "folder: `save_pretrained`, or `hdlm export`."
        ) from error
    return str(url)
