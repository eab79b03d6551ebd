# SPDX-License-Identifier: Apache-2.0
"""Makes model cards: metadata for the hub in YAML, and a page in Markdown.

The metadata follow https://github.com/huggingface/hub-docs/blob/main/modelcard.md.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedModel
from transformers.utils import logging


logger = logging.get_logger(__name__)

CARD_NAME = "README.md"
# licenses that the hub does not know, with their pages; a card names them beside "other"
OTHER_LICENSES = {"dinov3-license": "https://ai.meta.com/resources/models-and-libraries/dinov3-license"}
MARK = "<!-- modeling-dino wrote this card, and renews it unless it is edited ({digest}) -->"

# for each class the Auto class that loads it, its task on the hub, and a line of code that uses it
USES = {
    "DinoModel": (
        "AutoModel",
        "image-feature-extraction",
        "features = model(**images).pooler_output  # (1, {hidden_size})",
    ),
    "DinoBackbone": (
        "AutoBackbone",
        "image-feature-extraction",
        "maps = model(**images).feature_maps  # a map (1, channels, height, width) for each of out_features",
    ),
    "DinoForImageClassification": (
        "AutoModelForImageClassification",
        "image-classification",
        "probabilities = model(**images).logits.softmax(-1)  # (1, {num_labels})",
    ),
}

CODE = """\
{install}from PIL import Image
from {library} import {processor}, {model}

images = {processor}.from_pretrained("{repo_id}")(Image.open("image.png"), return_tensors="pt")
model = {model}.from_pretrained("{repo_id}"{trust}).eval()
{line}
"""
WITH_CODE = {"install": "", "library": "transformers", "processor": "AutoImageProcessor"}
WITH_CODE |= {"trust": ", trust_remote_code=True"}
WITHOUT_CODE = {"install": "# pip install modeling-dino\n", "library": "modeling_dino"}
WITHOUT_CODE |= {"processor": "DinoImageProcessor", "trust": ""}
BODY = """
# {name}

A {kind} of [DINO](https://arxiv.org/abs/2104.14294), self-distillation with no labels, for transformers.

{facts}

```python
{code}```
{results}"""


def renew_card(
    earlier: Sequence[str | None], model: PreTrainedModel, repo_id: str, license: str | None = None, **kwargs
) -> str:
    """
    Returns the first of the earlier cards that somebody wrote or edited; if there is none, a new card, under the
    license of the earlier ones by default. `kwargs` are those of [`make_card`].
    """
    earlier = [card for card in earlier if card is not None]
    for card in earlier:
        if not is_ours(card):
            if license is not None:
                logger.warning(f"{repo_id} keeps its own {CARD_NAME}: license={license!r} is not written into it")
            return card
    earlier_data = [ModelCard(card).data for card in earlier]
    licenses = [getattr(data, "license_name", None) or data.license for data in earlier_data]
    return make_card(model, repo_id, license=license or next(filter(None, licenses), None), **kwargs)


def make_card(
    model: PreTrainedModel,
    repo_id: str,
    with_code: bool = False,
    license: str | None = None,
    results: Sequence[EvalResult] = (),
    tags: Sequence[str] = (),
) -> str:
    """
    Makes the card of a model.

    Args:
        model: of one of the classes of this package, or derived from one.
        repo_id: the id under which others load it.
        with_code: whether its code is in the repository too.
        license: an identifier that the hub knows, e.g. `"apache-2.0"`, or `"dinov3-license"`; by default that of the
            weights, which is not stated if it is not known.
        results: results of evaluations.
        tags: further tags.
    """
    name = repo_id.rpartition("/")[2]
    backbone = _loaded(model).backbone
    model_class = next((cls.__name__ for cls in type(model).__mro__ if cls.__name__ in USES), "DinoModel")
    auto_class, task, line = USES[model_class]
    data = ModelCardData(
        **_license(license or model.config.weights_license),
        library_name="transformers",
        pipeline_tag=task,
        tags=["dino", "self-supervised", backbone.tag, *tags],
        **({"model_name": name, "eval_results": list(results)} if results else {}),
    )
    line = line.format(hidden_size=model.config.hidden_size, num_labels=model.config.num_labels)
    way, model_name = (WITH_CODE, auto_class) if with_code else (WITHOUT_CODE, model_class)
    code = CODE.format(model=model_name, repo_id=repo_id, line=line, **way)
    body = BODY.format(name=name, kind=backbone.kind, facts=_facts(model), code=code, results=_results_table(results))
    content = f"---\n{data.to_yaml()}\n---\n{body}"
    return f"{content}\n{MARK.format(digest=_digest(content))}\n"


def _license(name: str | None) -> dict[str, str | None]:
    """Returns the metadata of a license."""
    if name not in OTHER_LICENSES:
        return {"license": name}
    return {"license": "other", "license_name": name, "license_link": OTHER_LICENSES[name]}


def is_ours(card: str) -> bool:
    """Returns whether a card is exactly as [`make_card`] made it, and nobody wrote or edited it."""
    content, _, mark = card.removesuffix("\n").rpartition("\n")
    return mark == MARK.format(digest=_digest(content))


def read_card(folder: str | os.PathLike) -> str | None:
    """Reads the card in a folder, if there is one."""
    path = Path(folder) / CARD_NAME
    return path.read_bytes().decode() if path.is_file() else None  # without changing its line ends


def _loaded(model: PreTrainedModel) -> PreTrainedModel:
    """Returns the network that others load: the teacher of a model in pretraining."""
    return getattr(model, "teacher", model)


def _facts(model: PreTrainedModel) -> str:
    config, model = model.config, _loaded(model)
    total = sum(parameter.numel() for parameter in model.parameters())
    backbone = sum(parameter.numel() for parameter in model.backbone.parameters())
    head = "none" if config.head_type is None else f"{config.head_type}, {config.projection_dim:,} outputs"
    rows = {
        "backbone": f"{config.backbone}: {model.backbone.describe(config)}",
        "images": f"{config.image_size} x {config.image_size}, {config.num_channels} channels; other sizes work",
        "feature": f"{config.hidden_size} wide",
        "projection head": head,
        "parameters": f"{backbone:,} in the backbone, {total:,} in all; {str(model.dtype).removeprefix('torch.')}",
        "weights from": config.weights_source or "not recorded",
    }
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {fact} |" for name, fact in rows.items())])


def _results_table(results: Sequence[EvalResult]) -> str:
    if not results:
        return ""
    rows = [
        f"| {result.task_name or result.task_type} | {result.dataset_name} | "
        f"{result.metric_name or result.metric_type} | {result.metric_value} |"
        for result in results
    ]
    return "\n".join(["", "| task | data set | metric | value |", "| --- | --- | --- | --- |", *rows, ""])


def _digest(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()[:12]
