# SPDX-License-Identifier: Apache-2.0
"""What a model sees, as pictures and videos: attention, and principal components of patch tokens."""
