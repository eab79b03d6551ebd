# SPDX-License-Identifier: Apache-2.0
"""Self-distillation on the Trainer, from a recipe to a run; and fine-tuning."""
