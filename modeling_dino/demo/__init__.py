# SPDX-License-Identifier: Apache-2.0
"""Demonstrates pretraining, extraction, evaluation and pictures in one command."""

from .images import copy_photographs, cut_photographs


__all__ = ["copy_photographs", "cut_photographs"]
