# SPDX-License-Identifier: Apache-2.0
"""How fast the models are, beside the same in other libraries."""
