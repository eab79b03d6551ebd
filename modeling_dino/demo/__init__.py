# SPDX-License-Identifier: Apache-2.0
"""The whole story in one command."""
