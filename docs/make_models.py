"""Makes models.md, the page of published models, from the presets in configuration/: `python docs/make_models.py`."""

import json
from pathlib import Path


ROOT = Path(__file__).parents[1]
HEAD = """# Published models

Each of these is a preset: `DinoConfig.from_preset(name)` is its configuration, with random weights. Published weights
load by their id, from a file of the original through `dino convert`, or from timm. Accuracies are top-1 on ImageNet in
%, as the authors published them; `–` where they did not publish it for this model. `python docs/make_models.py` makes
this page from `configuration/`.

The weights of DINOv3 are under the DINOv3 License, which is not Apache-2.0: read it before you use or share them. They
are gated, so log in with `hf auth login` first.

| preset | weights | parameters | data | k-NN | linear | licence |
| --- | --- | --- | --- | --- | --- | --- |
"""


def page() -> str:
    """Returns the text of the page."""
    presets = {file.stem: json.loads(file.read_text()) for file in sorted((ROOT / "configuration").glob("*.json"))}
    published = {name: preset["published"] for name, preset in presets.items() if "published" in preset}
    return HEAD + "".join(map(row, published, published.values()))


def row(name: str, facts: dict) -> str:
    """Returns the line of a model in the table."""
    cells = [f"`{name}`", f"`{facts['hub_id']}`" if "hub_id" in facts else "original's file"]
    cells += [f"{facts['parameters'] / 1e6:,.1f} M", facts["data"]]
    cells += [str(facts.get(f"imagenet_{task}_top1", "–")) for task in ("knn", "linear")]
    cells.append({"apache-2.0": "Apache-2.0", "dinov3-license": "DINOv3 License"}[facts["license"]])
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    (ROOT / "docs" / "models.md").write_text(page(), encoding="utf-8")
