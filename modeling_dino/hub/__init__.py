# SPDX-License-Identifier: Apache-2.0
"""Models from and to folders and the hub: loading, pushing, model cards, evaluation results."""
