# SPDX-License-Identifier: Apache-2.0
"""Pretrains a ResNet-18 on images of 32 x 32 pixels, without labels."""

from pathlib import Path

from PIL import Image

from modeling_dino import (
    DinoConfig,
    DinoForPreTraining,
    DinoModel,
    DinoTrainer,
    DinoTrainingArguments,
    MultiCrop,
    MultiCropConfig,
    MultiCropDataset,
)


IMAGES = "images"  # a folder of PNG files, in sub-folders or not
OUTPUT = "resnet18"
EPOCHS = 200
BATCH_SIZE = 256
WORKERS = 4  # processes that make crops


def main():
    config = DinoConfig(backbone="resnet18", resnet_stem="cifar", image_size=32, projection_dim=8192)
    crops = MultiCropConfig(global_crop_size=32, local_crop_size=16, num_local_crops=6, blur_radius=(0.1, 0.5))
    images = [Image.open(path).convert("RGB") for path in sorted(Path(IMAGES).rglob("*.png"))]

    arguments = DinoTrainingArguments(
        OUTPUT,
        optim="sgd",  # with the learning rate and the weight decay of the original's ResNet-50
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH_SIZE,
        teacher_momentum=0.9995,  # small batches want a slow teacher
        dataloader_num_workers=WORKERS,
        save_strategy="epoch",
        save_total_limit=2,
    )
    dataset = MultiCropDataset(images, MultiCrop(crops))
    trainer = DinoTrainer(DinoForPreTraining(config), arguments, train_dataset=dataset)
    trainer.train()
    trainer.save_model()

    teacher = DinoModel.from_pretrained(OUTPUT)
    print(f"{OUTPUT} has features of {teacher.config.hidden_size} numbers; {OUTPUT}/curves.png shows the training")


if __name__ == "__main__":
    main()
