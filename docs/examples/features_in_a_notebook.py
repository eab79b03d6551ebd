# SPDX-License-Identifier: Apache-2.0
# %% [markdown]
# # What a DINO sees
# This computes features of images, finds the images that are most alike, and shows what a ViT attends to. Editors open
# this file as a notebook; `python` runs it as a script.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from PIL import Image

from modeling_dino import DinoImageProcessor, DinoModel


MODEL = "my-dino"  # folder or hub id of a ViT
IMAGES = "images"  # a folder of PNG files, in sub-folders or not
QUERY = 0  # the image that is looked at
NEIGHBOURS = 5

# %%
model = DinoModel.from_pretrained(MODEL, head_type=None).eval()
processor = DinoImageProcessor.from_pretrained(MODEL)
images = [Image.open(path).convert("RGB") for path in sorted(Path(IMAGES).rglob("*.png"))]
pixel_values = processor(images, return_tensors="pt")["pixel_values"]  # (images, 3, height, width)

# %% [markdown]
# The feature of an image is a single vector. The cosine of two of them says how alike the images are.

# %%
with torch.inference_mode():
    features = torch.cat([model(batch).pooler_output for batch in pixel_values.split(32)])  # (images, width)
features = torch.nn.functional.normalize(features, dim=1)
similarities, nearest = (features @ features[QUERY]).topk(NEIGHBOURS + 1)  # the first is the image itself

figure, axes = plt.subplots(1, NEIGHBOURS + 1, figsize=(12, 2.5))
for axis, similarity, index in zip(axes, similarities.tolist(), nearest.tolist()):
    axis.imshow(images[index])
    axis.set_title(f"{similarity:.2f}")
    axis.axis("off")
plt.show()

# %% [markdown]
# Each head of a ViT looks at something else.

# %%
with torch.inference_mode():
    (attention,) = model.get_cls_attention(pixel_values[QUERY, None])  # (heads, rows of patches, columns)

figure, axes = plt.subplots(1, len(attention) + 1, figsize=(12, 2.5))
axes[0].imshow(images[QUERY])
for axis, head in zip(axes[1:], attention):
    axis.imshow(head, cmap="magma")
for axis in axes:
    axis.axis("off")
plt.show()
