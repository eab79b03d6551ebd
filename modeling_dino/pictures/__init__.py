# SPDX-License-Identifier: Apache-2.0
"""Pictures and videos of what a model sees: its attention, and the principal components of its patch tokens."""
