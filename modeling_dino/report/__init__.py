# SPDX-License-Identifier: Apache-2.0
"""One HTML page about a folder of features."""
