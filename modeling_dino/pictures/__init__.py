# SPDX-License-Identifier: Apache-2.0
"""Pictures of what a model sees: its attention, the components of its patch tokens, and what matches in two images."""
