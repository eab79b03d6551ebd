# SPDX-License-Identifier: Apache-2.0
"""Features of images: what kinds there are, computed on any number of processes, stored as Parquet."""
