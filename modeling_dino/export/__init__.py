# SPDX-License-Identifier: Apache-2.0
"""Models as graphs for other engines: exported, compared with PyTorch, quantized, and run."""
