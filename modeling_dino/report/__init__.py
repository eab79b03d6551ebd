# SPDX-License-Identifier: Apache-2.0
"""Writes one HTML page about a folder of features."""
