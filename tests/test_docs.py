"""Everything that the README and the pages of docs/ show is run, page by page, in order, in an empty folder.

A page runs with the extras that it installs and nothing else. Published ids are loaded from a hub on loopback,
which has models of that very format.
"""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_server import Repository, running_hub
from pages import PAGES, ROOT, Step, installed, modules_not_installed, steps
from PIL import Image
from processes import BLOCK
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

from modeling_dino import DinoConfig


# These start processes of their own; everything else that is typed runs in one process a page.
LAUNCHERS = ("torchrun", "accelerate")
NOT_RUN = ("make", "pip", "git", "cd", "hf")  # targets of make are looked up in the Makefile
MAX_LINES, MAX_WORDS = 150, 1200  # of the README
FOLDERS = ["docs", "tests", "configuration", "modeling_dino", "conversion_scripts"]
FOLDERS += [folder.parent.name for folder in (ROOT / "modeling_dino").glob("*/__init__.py")]

READER = """
import json, sys
from modeling_dino import cli

for kind, content, name in json.loads(sys.argv[1]):
    print(f"--- {kind} {content if kind == 'command' else name}", flush=True)
    if kind == "file":
        with open(name, "w", encoding="utf-8") as file:
            file.write(content)
    elif kind == "python":
        exec(compile(content, name, "exec"), {"__name__": "__main__"})
    else:
        sys.argv = content
        try:
            cli.main()
        except SystemExit as stop:
            if stop.code:
                raise RuntimeError(f"{content} ended with {stop.code}")
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A hub with the models and the picture that the pages load, in the formats they were published in."""
    folder = tmp_path_factory.mktemp("published")
    with running_hub() as running:
        sizes = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
        sizes["num_hidden_layers"] = 4  # of 12, for the time; no page takes more
        torch.manual_seed(0)
        model = ViTModel(ViTConfig(**sizes, qkv_bias=True, layer_norm_eps=1e-12), add_pooling_layer=False)
        model.save_pretrained(folder)
        ViTImageProcessorPil().save_pretrained(folder)
        publish(running, "facebook/dino-vits16", {file.name: file.read_bytes() for file in folder.iterdir()})
        Image.effect_noise((64, 48), 90).convert("RGB").save(folder / "cats_image.jpeg")
        picture = (folder / "cats_image.jpeg").read_bytes()
        publish(running, "datasets/huggingface/cats-image", {"cats_image.jpeg": picture})
        yield running


def publish(hub, name: str, files: dict[str, bytes]):
    hub.repositories[name] = Repository(private=False)
    hub.repositories[name].commit("main", files)


def steps_to_run(page: Path) -> list[Step]:
    return [step for step in steps(page) if not (step.kind == "command" and step.content[0] in NOT_RUN)]


@pytest.mark.slow
@pytest.mark.parametrize("page", filter(steps_to_run, PAGES), ids=lambda page: page.stem)
def test_page_runs_as_it_is_shown(page, hub, tmp_path):
    hidden = modules_not_installed(*installed(page))
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(BLOCK.format(blocked=hidden))
    folder = tmp_path / "empty"
    folder.mkdir()
    environment = {**os.environ, **hub.environment(), "HF_HOME": str(tmp_path / "hf_home"), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    for group in grouped(steps_to_run(page)):
        done = run(group, folder, environment, page.name)
        assert done.returncode == 0, f"{page.name}: {done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def grouped(shown: list[Step]) -> list[list[Step]]:
    """Groups of steps that run in one process: a launcher is a group of its own."""
    groups: list[list[Step]] = [[]]
    for step in shown:
        if step.kind == "command" and step.content[0] in LAUNCHERS:
            groups += [[step], []]
        else:
            assert step.kind != "command" or step.content[0] == "dino", f"the test cannot type {step.content}"
            groups[-1].append(step)
    return [group for group in groups if group]


def run(group: list[Step], folder: Path, environment: dict, page: str) -> subprocess.CompletedProcess:
    if group[0].kind == "command" and group[0].content[0] in LAUNCHERS:
        command = [str(Path(sys.executable).parent / group[0].content[0]), *group[0].content[1:]]
    else:
        plain = [[step.kind, step.content, step.name or page] for step in group]
        command = [sys.executable, "-c", READER, json.dumps(plain)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_readme_is_read_in_one_sitting():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_LINES
    assert len(text.split()) <= MAX_WORDS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_targets_files_and_presets_exist(page):
    text, makefile = page.read_text(encoding="utf-8"), (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make (\w[\w-]*)`?", text):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    for path in re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w/.]*)`", text):
        assert (ROOT / path).exists() or (ROOT / "modeling_dino" / path).exists(), path
    assert set(re.findall(r"`((?:dino|imagenet|cifar10)_(?:vit|resnet)\w+)`", text)) <= {
        *DinoConfig.presets(),
        *(file.stem for file in (ROOT / "configuration/recipes").glob("*.yaml")),
    }


@pytest.mark.parametrize("name", ["models", "formats"])
def test_pages_of_tables_are_made_from_what_they_show(name):
    made = runpy.run_path(str(ROOT / "docs" / f"make_{name}.py"))
    assert (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") == made["page"]()


def test_links_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text(encoding="utf-8")):
            target, _, anchor = link.partition("#")
            file = page if not target else page.parent / target
            assert file.exists(), f"{page.name}: {link}"
            if anchor:
                headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
                assert anchor in {re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in headings}, link
