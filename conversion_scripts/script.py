# Copyright 2026 The modeling-dino authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Each format's module as a script: into our format, or, from any, out of it."""

from typing import Annotated

import typer

from conversion_scripts.convert import convert
from modeling_dino.cli import run


def main(format: str):
    """Runs `python -m conversion_scripts.FORMAT SOURCE OUTPUT`; errors a user can cause are one line."""

    def command(
        source: Annotated[str, typer.Argument(help="File, folder or hub id of any DINO.")],
        output: Annotated[str, typer.Argument(help="Folder or file to write.")],
        to: Annotated[str, typer.Option(help="Format to write, of those `dino convert` knows.")] = format,
        which: Annotated[
            str, typer.Option(help="Network of a full checkpoint: teacher, student or both.")
        ] = "teacher",
        num_heads: Annotated[
            int | None, typer.Option(min=1, help="Attention heads, if not one a width of 64.")
        ] = None,
        verify: Annotated[bool, typer.Option("--verify", help="Compare outputs with the source's library.")] = False,
    ):
        for line in convert(source, output, to, which, num_heads, verify):
            typer.echo(line)

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(help=f"Writes a DINO of any format as {format}, or with --to dino reads one of {format}.")(command)
    run(app)
