# SPDX-License-Identifier: Apache-2.0
"""Trains a classifier on a pretrained DINO, backbone included, in plain PyTorch."""

from pathlib import Path

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from modeling_dino import DinoImageProcessor, DinoModel


MODEL = "my-dino"  # folder or hub id of any DINO
IMAGES = "images"  # a folder with a sub-folder of PNG files for each class
EPOCHS = 20
BATCH_SIZE = 64
LEARNING_RATE = 1e-4


class Classifier(nn.Module):
    def __init__(self, num_classes: int):
        super().__init__()
        self.model = DinoModel.from_pretrained(MODEL, head_type=None)
        self.classifier = nn.Linear(self.model.config.hidden_size, num_classes)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.model(pixel_values).pooler_output)


paths = sorted(Path(IMAGES).glob("*/*.png"))
classes = sorted({path.parent.name for path in paths})
images = [Image.open(path).convert("RGB") for path in paths]
pixel_values = DinoImageProcessor.from_pretrained(MODEL)(images, return_tensors="pt")["pixel_values"]
labels = torch.tensor([classes.index(path.parent.name) for path in paths])
train, test = random_split(TensorDataset(pixel_values, labels), [0.8, 0.2])

device = "cuda" if torch.cuda.is_available() else "cpu"
classifier = Classifier(len(classes)).to(device)
optimizer = torch.optim.AdamW(classifier.parameters(), lr=LEARNING_RATE)

for epoch in range(EPOCHS):
    classifier.train()
    for pixels, targets in DataLoader(train, BATCH_SIZE, shuffle=True):
        loss = nn.functional.cross_entropy(classifier(pixels.to(device)), targets.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    classifier.eval()
    with torch.inference_mode():
        batches = DataLoader(test, BATCH_SIZE)
        correct = sum((classifier(x.to(device)).argmax(dim=1).cpu() == y).sum().item() for x, y in batches)
    print(f"epoch {epoch + 1}: loss {loss.item():.3f}, accuracy {100 * correct / len(test):.1f} %")
