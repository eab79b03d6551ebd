from pathlib import Path

import pytest
import torch
from hub_code_files import CODE_FILES
from processes import run_python
from tiny_models import ALL_BACKBONES, tiny_config

from modeling_dino import DinoBackbone, DinoConfig, DinoForImageClassification, DinoForPreTraining, DinoModel


LOAD = """
import importlib.util, torch, transformers
assert importlib.util.find_spec("modeling_dino") is None
for name, auto_class, head_type in {saved!r}:
    auto_class = getattr(transformers, auto_class)
    model = auto_class.from_pretrained(name, trust_remote_code=True)
    config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=True)
    assert config.backbone == model.config.backbone
    assert model.config.head_type == head_type
    images, expected = torch.load(f"{{name}}/images.pt"), torch.load(f"{{name}}/output.pt")
    with torch.no_grad():
        output = model(images)
    assert list(output) == list(expected)
    for key, value in expected.items():
        values = zip(output[key], value) if isinstance(value, (tuple, list)) else [(output[key], value)]
        assert all(torch.equal(a, b) for a, b in values), (name, key)
    model.save_pretrained(f"{{name}}-again")
    assert auto_class.from_pretrained(f"{{name}}-again", trust_remote_code=True).config.to_dict()["backbone"]
"""


def save_with_output(model, folder, images):
    model.save_pretrained(folder, with_code=True)
    assert {path.name for path in folder.glob("*.py")} == CODE_FILES
    with torch.no_grad():
        torch.save(dict(model.eval()(images)), folder / "output.pt")
    torch.save(images, folder / "images.pt")


@pytest.mark.slow
def test_loads_where_the_package_is_not_installed(tmp_path):
    """In one process, as starting one takes longest."""
    saved = [entry for family in ALL_BACKBONES for entry in save_kinds(tmp_path, family)]
    blocked = ("modeling_dino", "conversion_scripts", "PIL", "torchvision", "typer")
    run_python(LOAD.format(saved=saved), tmp_path, blocked=blocked)


def save_kinds(folder: Path, family: str) -> list[tuple[str, str, str | None]]:
    """Saves what there is of a family; returns folder, class and head of each."""
    saved = []
    for head_type in ("dino", "simple", None):
        model = DinoModel(tiny_config(family, head_type=head_type, head_use_bn=True))
        saved.append((f"{family}-{head_type}", "AutoModel", head_type))
        save_with_output(model, folder / saved[-1][0], torch.randn(2, 3, 32, 40))
    run = DinoForPreTraining(tiny_config(family))
    save_with_output(run.teacher, folder / f"{family}-run", torch.randn(2, 3, 32, 32))
    run.save_pretrained(folder / f"{family}-run", with_code=True)  # of which the teacher is loaded
    classifier = DinoForImageClassification(tiny_config(family, num_labels=4))
    save_with_output(classifier, folder / f"{family}-classifier", torch.randn(2, 3, 32, 32))
    others = [
        (f"{family}-run", "AutoModel", "dino"),
        (f"{family}-classifier", "AutoModelForImageClassification", None),
    ]
    return saved + others


@pytest.mark.slow
def test_a_model_saved_with_code_is_all_the_other_classes_too(tmp_path):
    for family in ALL_BACKBONES:
        DinoModel(tiny_config(family, head_type=None)).save_pretrained(tmp_path / family, with_code=True)
    code = f"""
from transformers import AutoBackbone, AutoModelForImageClassification
from transformers.models.auto import auto_factory
auto_factory.hf_api().__class__.repo_exists = lambda self, repo_id: True  # else it takes the folder for a timm name
for family in {list(ALL_BACKBONES)!r}:
    backbone = AutoBackbone.from_pretrained(family, trust_remote_code=True, out_features=["stage1", "stage2"])
    assert type(backbone).__name__ == "DinoBackbone" and len(backbone.channels) == 2
    classifier = AutoModelForImageClassification.from_pretrained(family, trust_remote_code=True, num_labels=7)
    assert classifier.classifier.out_features == 7
"""
    run_python(code, tmp_path, blocked=("modeling_dino",))


@pytest.mark.slow
def test_registering_saves_code_from_then_on(tmp_path):
    code = f"""
from modeling_dino import DinoConfig, DinoModel
model = DinoModel(DinoConfig(**{tiny_config().to_diff_dict()!r}))
model.save_pretrained("without")
DinoModel.register_for_auto_class()
model.save_pretrained("with")
"""
    run_python(code, tmp_path)
    assert not list((tmp_path / "without").glob("*.py"))
    assert {path.name for path in (tmp_path / "with").glob("*.py")} == CODE_FILES
    load = 'from transformers import AutoModel; AutoModel.from_pretrained("with", trust_remote_code=True)'
    run_python(load, tmp_path, blocked=("modeling_dino",))


@pytest.mark.slow
def test_code_does_not_run_unless_trusted(tmp_path):
    DinoModel(tiny_config()).save_pretrained(tmp_path / "model", with_code=True)
    load = 'from transformers import AutoModel; AutoModel.from_pretrained("model")'
    done = run_python(load, tmp_path, blocked=("modeling_dino",), check=False)
    assert done.returncode != 0
    assert "trust_remote_code=True" in done.stderr


def test_saving_without_code_leaves_no_trace_of_it(tmp_path):
    model = DinoModel(tiny_config())
    model.save_pretrained(tmp_path / "with", with_code=True)
    model.save_pretrained(tmp_path / "without")
    for model_class in (DinoModel, DinoBackbone, DinoForImageClassification, DinoConfig):
        assert model_class._auto_class is None
    assert "auto_map" not in (tmp_path / "without" / "config.json").read_text()
