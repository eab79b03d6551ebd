# SPDX-License-Identifier: Apache-2.0
"""Images from where they lie to the tensor that a model takes: source, reader, transform."""
