"""Exported folders in transformers.js, as they are."""

import json
import shutil

import pytest
import torch
import transformers_js
from PIL import Image
from tiny_models import tiny_config

from modeling_dino import DinoModel, convert_checkpoint, export_model


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not transformers_js.FOLDER.is_dir(), reason="needs Node: `make test` installs transformers.js"),
]
SCRIPT = """
import { AutoModel, pipeline, RawImage, Tensor, env } from "@huggingface/transformers";
import fs from "node:fs";
env.allowRemoteModels = false;
env.localModelPath = process.cwd() + "/";
const pixels = new Float32Array(fs.readFileSync("pixels.bin").buffer);
const found = {};
for (const name of NAMES) {
  const model = await AutoModel.from_pretrained(name, { dtype: "fp32" });
  const outputs = await model({ pixel_values: new Tensor("float32", pixels, SHAPE) });
  const extract = await pipeline("image-feature-extraction", name, { dtype: "fp32" });
  const { pixel_values } = await extract.processor(await RawImage.read("image.png"));
  const pooled = await extract("image.png", { pool: true });
  found[name] = {
    pooler_output: [...outputs.pooler_output.data],
    last_hidden_state: [...outputs.last_hidden_state.data],
    pixel_values: [pixel_values.dims, [...pixel_values.data]],
    pooled: [...pooled.data],
  };
}
console.log(JSON.stringify(found));
"""


def close(values: list[float], expected: torch.Tensor) -> bool:
    found = torch.tensor(values).view(expected.shape)
    return bool((found - expected).abs().max() <= 1e-5 * expected.abs().max())


@torch.no_grad()
def test_it_runs_exported_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = DinoModel(tiny_config("vit", head_type=None)).eval()
    model.save_pretrained("model")
    export_model(model="model", output="dino")
    # the graph in a folder of a kind that transformers.js knows
    convert_checkpoint(source="model", output="known", to="transformers")
    shutil.copytree("dino/onnx", "known/onnx")
    pixels = torch.randn(2, 3, 48, 40)
    (tmp_path / "pixels.bin").write_bytes(pixels.numpy().tobytes())
    Image.effect_noise((60, 50), 90).convert("RGB").save("image.png")
    script = SCRIPT.replace("NAMES", json.dumps(["dino", "known"])).replace("SHAPE", json.dumps(list(pixels.shape)))
    for name, found in json.loads(transformers_js.run(script, tmp_path)).items():
        outputs = model(pixels)
        assert close(found["pooler_output"], outputs.pooler_output), name
        assert close(found["last_hidden_state"], outputs.last_hidden_state), name
        shape, values = found["pixel_values"]  # its own resizing, which differs
        assert close(found["pooled"], model(torch.tensor(values).view(shape)).pooler_output), name
