# SPDX-License-Identifier: Apache-2.0
"""Results of evaluations, as they lie beside a model."""

RESULTS = [
    {"task": "image-classification", "dataset": "ImageNet 1k, val", "metric": "accuracy", "value": 74.5, "k": 20},
    {
        "task": "image-classification",
        "dataset": "cifar10",
        "metric": "accuracy",
        "value": 0.9,
        "metric_name": "linear",
    },
]
