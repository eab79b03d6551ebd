# SPDX-License-Identifier: Apache-2.0
"""Loads models from folders and the hub, and pushes them with model cards and evaluation results."""
