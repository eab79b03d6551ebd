# SPDX-License-Identifier: Apache-2.0
"""Measures how fast the models are, beside the same models in other libraries."""
