# SPDX-License-Identifier: Apache-2.0
"""Demonstrates pretraining, extraction, evaluation and pictures in one command."""
