# SPDX-License-Identifier: Apache-2.0
"""The command `bench`."""

from ..benchmark.options import BenchOptions


def bench(options: BenchOptions):
    """Measures how fast models are on this machine, beside the same models in other libraries."""
    from ..benchmark.run import run_benchmarks

    return run_benchmarks(options)
