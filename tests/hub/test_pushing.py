"""Pushed to a hub on loopback by the real client, and loaded from there by id in other processes."""

import json
from pathlib import Path

import pytest
import torch
from hub_code_files import CODE_FILES
from hub_server import running_hub
from huggingface_hub import ModelCard
from PIL import Image
from processes import run_python

from modeling_dino.hub.repository import stale_weights


# what is set up once takes long, so all of it runs in one process
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("pushing")]

HELPERS = str(Path(__file__).parents[1] / "helpers")
# what every process starts with; `dino` runs the command line
START = f"""
import contextlib, io, json, os, shutil, sys
from pathlib import Path
from unittest import mock
sys.path.insert(0, {HELPERS!r})
import torch
from PIL import Image
from transformers import AutoBackbone, AutoModel, AutoModelForImageClassification, pipeline
torch.manual_seed(0)

def outputs(model):
    with torch.no_grad():
        output = model.eval()(torch.load("images.pt").to(model.dtype))
    return dict(output)

def of_pipeline(model, **kwargs):
    return pipeline("image-feature-extraction", model=model, **kwargs)(Image.open("image.png"), return_tensors=True)

def assert_equal(actual, expected):
    assert list(actual) == list(expected)
    for name, value in expected.items():
        values = zip(actual[name], value) if isinstance(value, (tuple, list)) else [(actual[name], value)]
        assert all(torch.equal(a, b) for a, b in values), name

def run_card(path):
    (code,) = Path(path).read_text().split("```python\\n")[1:]
    names = {{}}
    exec(code.split("```")[0], names)
    return names

def dino(*arguments):
    from modeling_dino import cli
    out, err = io.StringIO(), io.StringIO()
    with mock.patch.object(sys, "argv", ["dino", *arguments]), contextlib.redirect_stdout(out):
        with contextlib.redirect_stderr(err):
            try:
                cli.main()
            except SystemExit as stop:
                return stop.code, out.getvalue().strip(), err.getvalue().strip()
"""

# pushed by each way there is: name -> outputs, of the model and of the pipeline
PUSH = """
from urllib.parse import urlsplit
from tiny_models import tiny_config
from huggingface_hub import ModelCard, get_session
from modeling_dino import DinoBackbone, DinoForImageClassification, DinoModel

# clients before 2.0 validate cards on the public hub, whatever HF_ENDPOINT says
post = get_session().post
get_session().post = lambda url, **kwargs: post(os.environ["HF_ENDPOINT"] + urlsplit(url).path, **kwargs)

def expect(name, model):
    torch.save(outputs(model), f"{name}.pt")
    ModelCard.load(f"me/{name}").validate()

for family in ("vit", "resnet"):
    model = DinoModel(tiny_config(family))
    url = model.push_to_hub(f"me/{family}", license="apache-2.0", tags=["extra"]).repo_url
    assert url == os.environ["HF_ENDPOINT"] + f"/me/{family}", url
    expect(family, model)
    model.save_pretrained(f"{family}-code", push_to_hub=True, with_code=True)  # under the folder's name
    expect(f"{family}-code", model)
    torch.save(of_pipeline(f"{family}-code"), f"{family}-pipeline.pt")
    classifier = DinoForImageClassification(tiny_config(family, num_labels=4))
    classifier.push_to_hub(f"me/{family}-classifier", with_code=True)
    expect(f"{family}-classifier", classifier)
    backbone = DinoBackbone(tiny_config(family, out_features=["stage1", "stage2"]))
    backbone.push_to_hub(f"{family}-backbone", private=True)
    expect(f"{family}-backbone", backbone)

# the command: what was saved is what is pushed, in its dtype, with what lies beside it
def dino_push(source, repo_id, *options):
    code, out, err = dino("push", source, repo_id, *options)
    assert code == 0 and out == os.environ["HF_ENDPOINT"] + f"/me/{repo_id.removeprefix('me/')}", (out, err)
    return err

classifier = DinoForImageClassification(tiny_config("resnet", num_labels=3)).to(torch.bfloat16)
classifier.save_pretrained("saved")
Path("saved/README.md").write_bytes(b"---\\r\\nlicense: mit\\r\\n---\\r\\n# Mine\\r\\n")
settings = json.loads(Path("saved/preprocessor_config.json").read_text())
settings["image_mean"] = [0.1, 0.2, 0.3]
Path("saved/preprocessor_config.json").write_text(json.dumps(settings))
dino_push("saved", "me/commanded", "--private", "--license", "apache-2.0")
expect("commanded", classifier)
dino_push("me/commanded", "copied")

# evaluated and pushed again over shards: the card is renewed, under the license it had
Path("README.md").write_text("of the working directory")
DinoModel(model.config).push_to_hub("me/evaluated", license="mit", max_shard_size="20KB")
model.save_pretrained("evaluated")
results = [{"task": "image-classification", "dataset": "cifar10", "metric": "accuracy", "value": 0.9}]
Path("evaluated/evaluation_results.json").write_text(json.dumps(results))
dino_push("evaluated", "me/evaluated", "--with-code")
expect("evaluated", model)

# a card that was edited on the hub is not renewed; nor is `main` changed by what goes to another branch
model.push_to_hub("me/edited")
card = ModelCard.load("me/edited")
card.text += "Edited."
card.push_to_hub("me/edited")
DinoModel.from_pretrained("me/edited").push_to_hub("me/edited", with_code=True)
DinoModel(model.config).push_to_hub("me/edited", revision="other")
expect("edited", model)

# a model of another library
from transformers import ViTConfig, ViTModel
theirs = ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, image_size=32)
ViTModel(theirs, add_pooling_layer=False).to(torch.bfloat16).save_pretrained("theirs")
Path("theirs/README.md").write_text("of another model")
dino_push("theirs", "converted")
expect("converted", DinoModel.from_pretrained("theirs", dtype="auto"))
"""

LOAD = """
from modeling_dino import DinoBackbone, DinoForImageClassification, DinoModel

def loaded_as(name, *classes, **kwargs):
    for model_class in classes:
        model = model_class.from_pretrained(f"me/{name}", **kwargs)
        assert_equal(outputs(model), torch.load(f"{name}.pt"))
    return model

for family in ("vit", "resnet"):
    loaded_as(family, DinoModel, AutoModel)
    loaded_as(f"{family}-code", DinoModel, AutoModel)
    loaded_as(f"{family}-classifier", DinoForImageClassification, AutoModelForImageClassification)
    loaded_as(f"{family}-backbone", DinoBackbone, AutoBackbone)
    expected = torch.load(f"{family}-pipeline.pt")
    assert torch.equal(of_pipeline(f"me/{family}"), expected)
    assert run_card(f"{family}.md")["features"].shape == (1, expected.shape[-1] if family == "vit" else 64)
    assert len(run_card(f"{family}-backbone.md")["maps"]) == 2
loaded_as("evaluated", DinoModel)
loaded_as("edited", DinoModel)
assert loaded_as("commanded", DinoForImageClassification).dtype == torch.bfloat16
converted = loaded_as("converted", DinoModel)
assert converted.dtype == torch.bfloat16 and converted.config.weights_source == "theirs (transformers' ViT)"
"""

LOAD_WHERE_NOT_INSTALLED = """
import importlib.util
assert importlib.util.find_spec("modeling_dino") is None
for family in ("vit", "resnet"):
    model = AutoModel.from_pretrained(f"me/{family}-code", trust_remote_code=True)
    assert_equal(outputs(model), torch.load(f"{family}-code.pt"))
    expected = torch.load(f"{family}-pipeline.pt")
    assert torch.equal(of_pipeline(f"me/{family}-code", trust_remote_code=True), expected)
    backbone = AutoBackbone.from_pretrained(f"me/{family}-classifier", trust_remote_code=True)
    assert type(backbone).__name__ == "DinoBackbone"
    names = run_card(f"{family}-classifier.md")
    assert names["probabilities"].shape == (1, 4)
    assert_equal(outputs(names["model"]), torch.load(f"{family}-classifier.pt"))
model.push_to_hub("me/again")  # has its code with it
"""

# in a process that has the hub too, so that it can say when connections are cut
MISTAKES = f"""
import atexit, os, sys
sys.path.insert(0, {HELPERS!r})
from hub_server import Repository, running_hub
running = running_hub()
hub = running.__enter__()
atexit.register(running.__exit__, None, None, None)
os.environ.update(hub.environment())
{START}
from tiny_models import tiny_config
from modeling_dino import DinoModel

def refused(says, model="saved", repo_id="me/refused", *options):
    code, out, err = dino("push", model, repo_id, *options)
    assert code == 2 and not out, (says, out, err)
    assert err.startswith("dino: ") and "\\n" not in err and says in err, (says, err)

model = DinoModel(tiny_config())
model.save_pretrained("saved")
hub.repositories["other/public"] = Repository(private=False)
hub.repositories["other/public"].commit("main", {{}})
with mock.patch.dict(os.environ, HF_TOKEN="hf_wrong"):
    refused("does not accept the token: run `hf auth login`, or set HF_TOKEN")
with mock.patch.dict(os.environ, HF_TOKEN=""):
    refused("asks for a token: run `hf auth login`, or set HF_TOKEN")
refused("no right to write to other/new at http", "saved", "other/new")
refused("no right to write to other/public at http", "saved", "other/public")
refused("Repo id must be in the form", "saved", "me/a/b")
refused("Repo id must use alphanumeric", "saved", "me/a b")
refused("me/nothing is not a local folder and is not a valid model identifier", "me/nothing")
refused("./nothing is not a folder with a saved model", "./nothing")
refused("dino_vits16 is a configuration without weights", "dino_vits16")
with mock.patch("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9"):
    refused("the connection to http://127.0.0.1:9 failed (")
with mock.patch("huggingface_hub.constants.HF_HUB_OFFLINE", True):
    refused("offline mode is enabled")
shutil.copytree("saved", "evaluated")
Path("evaluated/evaluation_results.json").write_text("[3]")
refused("evaluation_results.json is not a list of results", "evaluated")
assert list(hub.repositories) == ["other/public"]
refused("license", "saved", "me/licensed", "--license", "nonsense")

weights = Path("saved/model.safetensors").read_bytes()
hub.cuts = 100
with mock.patch("time.sleep"):  # the client tries again, for half a minute
    refused("failed (", "saved", "me/cut")
assert hub.cuts < 100 and list(hub.files("me/cut")) == [".gitattributes"]
hub.cuts = 0
assert dino("push", "saved", "me/cut")[0] == 0
assert hub.files("me/cut")["model.safetensors"] == weights
assert DinoModel.from_pretrained("me/cut").config.backbone == "vit_tiny"

hub.large_files.clear()
hub.cuts = 1  # an upload that is cut once goes on
model.push_to_hub("me/once")
assert hub.cuts == 0 and hub.files("me/once")["model.safetensors"] == weights
try:
    model.push_to_hub("me/twice", token="hf_wrong")
    raise AssertionError
except PermissionError as error:
    assert "does not accept the token" in str(error)
"""


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    """A hub with models, and the folder of the process that pushed them, with what they gave."""
    folder = tmp_path_factory.mktemp("pushed")
    torch.save(torch.randn(2, 3, 32, 40), folder / "images.pt")
    Image.effect_noise((50, 40), 90).convert("RGB").save(folder / "image.png")
    with running_hub() as hub:
        run_python(START + PUSH, folder, environment=hub.environment())
        for repo_id in hub.repositories:
            (folder / f"{repo_id.removeprefix('me/')}.md").write_bytes(hub.files(repo_id)["README.md"])
        yield hub, folder


def metadata(hub, name: str) -> dict:
    return ModelCard(hub.files(f"me/{name}")["README.md"].decode()).data.to_dict()


def test_what_is_pushed(pushed, family):
    hub, _ = pushed
    whole = {".gitattributes", "README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    assert set(hub.files(f"me/{family}")) == whole
    for name in (f"{family}-code", f"{family}-classifier"):
        assert set(hub.files(f"me/{name}")) == whole | CODE_FILES
        assert "auto_map" in json.loads(hub.files(f"me/{name}")["config.json"])
    assert [name for name, repository in hub.repositories.items() if repository.private] == [
        "me/vit-backbone",
        "me/resnet-backbone",
        "me/commanded",
    ]
    assert metadata(hub, family) == {
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["dino", "self-supervised", family, "extra"],
    }


def test_pushed_in_one_commit(pushed):
    hub, _ = pushed
    assert len(hub.repositories["me/vit"].branches["main"]) == 2  # the first is the hub's own


def test_what_lies_in_the_folder_goes_along(pushed):
    hub, _ = pushed
    assert hub.files("me/commanded")["README.md"] == b"---\r\nlicense: mit\r\n---\r\n# Mine\r\n"
    for name in ("commanded", "copied"):  # from a folder, and from the hub
        settings = json.loads(hub.files(f"me/{name}")["preprocessor_config.json"])
        assert settings["image_mean"] == [0.1, 0.2, 0.3]


def test_pushed_again(pushed):
    hub, _ = pushed
    shards, whole = ([set(files) for _, files in hub.repositories["me/evaluated"].branches["main"]])[1:]
    assert "model.safetensors.index.json" in shards
    assert {name for name in whole if "safetensors" in name} == {"model.safetensors"}
    assert metadata(hub, "evaluated")["license"] == "mit"
    (index,) = metadata(hub, "evaluated")["model-index"]
    assert index["name"] == "evaluated"
    assert index["results"][0]["metrics"] == [{"type": "accuracy", "value": 0.9}]
    assert "working directory" not in hub.files("me/evaluated")["README.md"].decode()


def test_a_card_edited_on_the_hub_is_kept(pushed):
    hub, _ = pushed
    assert hub.files("me/edited")["README.md"].decode().endswith("Edited.")
    assert "modeling_dino.py" in hub.files("me/edited")
    assert hub.files("me/edited", "other")["model.safetensors"] != hub.files("me/edited")["model.safetensors"]


def test_another_librarys_model(pushed):
    hub, _ = pushed
    card = hub.files("me/converted")["README.md"].decode()
    assert "| weights from | theirs (transformers' ViT) |" in card
    assert "bfloat16 |" in card


def test_loads_by_id(pushed):
    hub, folder = pushed
    run_python(START + LOAD, folder, environment={**hub.environment(), "HF_HOME": str(folder / "another")})


def test_loads_by_id_where_the_package_is_not_installed(pushed):
    hub, folder = pushed
    blocked = ("modeling_dino", "conversion_scripts")
    environment = {**hub.environment(), "HF_HOME": str(folder / "third")}
    run_python(START + LOAD_WHERE_NOT_INSTALLED, folder, blocked, environment=environment)
    assert set(hub.files("me/again")) >= CODE_FILES


def test_a_users_mistake_is_one_line_and_a_cut_push_completes(tmp_path):
    run_python(MISTAKES, tmp_path)


def test_stale_weights():
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    others = ["center.safetensors", "model.fp16.safetensors", "adapter_model.safetensors", "config.json"]
    assert stale_weights(shards + others, ["model.safetensors", "config.json"]) == shards
    assert stale_weights(["model.safetensors", *others], shards) == ["model.safetensors"]
    assert stale_weights(shards, shards) == []
    assert stale_weights(["model.safetensors"], ["adapter_model.safetensors"]) == []
