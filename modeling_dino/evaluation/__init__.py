# SPDX-License-Identifier: Apache-2.0
"""How good features are: k-NN, linear classifiers, retrieval, video object segmentation."""
