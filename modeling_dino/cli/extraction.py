# SPDX-License-Identifier: Apache-2.0
"""The command that extracts features."""

from ..extraction.options import ExtractOptions


def extract(options: ExtractOptions):
    """Computes features of images, as Parquet shards and a manifest; run again, it goes on where it stopped."""
    from ..extraction.extract import extract_features

    return extract_features(options)
