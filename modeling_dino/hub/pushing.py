# SPDX-License-Identifier: Apache-2.0
"""Pushes models to the hub, with their image transforms and model cards."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from huggingface_hub import CommitInfo
from huggingface_hub.utils import enable_progress_bars
from transformers import PreTrainedModel
from transformers.utils import IMAGE_PROCESSOR_NAME, cached_file

from ..runtime.options import takes_options
from .evaluation_results import read_evaluation_results
from .loading import load_model
from .model_card import CARD_NAME, read_card, renew_card
from .options import PushOptions
from .repository import HubRepository


@takes_options(PushOptions, command="push")
def push_model(options: PushOptions) -> str:
    """
    The model is pushed as it is, in its class and dtype.

    Returns:
        its address on the hub.

    Raises:
        ValueError, OSError: see [`upload_model`].
    """
    model = load_model(options.model, dtype="auto", model_class=None)
    if sys.stderr.isatty():
        enable_progress_bars()  # of uploads
    commit = model.push_to_hub(
        options.repo_id, private=options.private or None, with_code=options.with_code, license=options.license
    )
    return commit.repo_url


def upload_model(
    model: PreTrainedModel,
    repo_id: str,
    save: Callable,
    *,
    with_code: bool = False,
    license: str | None = None,
    folder: str | os.PathLike | None = None,
    tags: Sequence[str] | str = (),
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str = "Upload model",
    commit_description: str | None = None,
    create_pr: bool = False,
    is_main_process: bool = True,
    **kwargs,
) -> CommitInfo | None:
    """
    Puts a model on the hub in one commit: weights, configuration, image transform and a model card.

    A card that somebody wrote or edited, in the folder or on the hub, is kept.

    Args:
        repo_id: `name` or `namespace/name`; the repository is made if it is not there.
        save: a function that writes the model into a folder.
        with_code: also push the code, so that the model loads with `trust_remote_code=True` without this package.
        license: an identifier that the hub knows, e.g. `"apache-2.0"`, for the card.
        folder: where a `README.md` and an `evaluation_results.json` may be; by default where the model was loaded
            from.
        tags: further tags of the card.
        private, token, revision, commit_message, commit_description, create_pr: as everywhere in transformers.
        kwargs: arguments of [`~transformers.PreTrainedModel.save_pretrained`].

    Returns:
        the commit, which has a `repo_url`; None in processes other than the main one.

    Raises:
        ValueError: if the name, the evaluation results or the card's metadata are not valid.
        OSError: if the hub cannot be reached, or refuses; in one line.
    """
    folder = folder or model.name_or_path or None
    results = [] if folder is None else read_evaluation_results(folder)
    repository = HubRepository(repo_id, token, private, revision) if is_main_process else None
    kwargs.pop("distributed_checkpoint", None)  # the weights are pushed as one checkpoint
    with tempfile.TemporaryDirectory() as files:
        if (processor := _find_image_processor(model, folder)) is not None:
            shutil.copy(processor, files)
        save(files, is_main_process, with_code=with_code, **kwargs)
        if repository is None:
            return None
        earlier = [None if folder is None else read_card(folder), repository.read(CARD_NAME)]
        tags = [*(model.model_tags or ()), *([tags] if isinstance(tags, str) else tags)]
        card = renew_card(earlier, model, repository.repo_id, license, with_code=with_code, results=results, tags=tags)
        (Path(files) / CARD_NAME).write_bytes(card.encode())
        return repository.upload(
            files, commit_message=commit_message, commit_description=commit_description, create_pr=create_pr
        )


def _find_image_processor(model: PreTrainedModel, source: str | os.PathLike | None) -> str | None:
    """Finds the `preprocessor_config.json` in a folder, or on the hub if the model was loaded from there."""
    with suppress(OSError):  # such as a folder that is gone
        revision = getattr(model.config, "_commit_hash", None)
        return source and cached_file(
            source, IMAGE_PROCESSOR_NAME, revision=revision, _raise_exceptions_for_missing_entries=False
        )
    return None
