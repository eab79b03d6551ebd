# SPDX-License-Identifier: Apache-2.0
"""Writes the help of `dino`: no text is cut, and some commands have more to show than their options."""

from collections.abc import Callable
from typing import Any

from typer.core import TyperCommand, TyperGroup


Sections = dict[str, dict[str, str] | str]  # by their headings: texts beside names, or a text


class WholeHelpGroup(TyperGroup):
    """A group of commands whose help has each command's text as a whole."""

    def format_commands(self, ctx: Any, formatter: Any):
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.commands[name].help) for name in self.list_commands(ctx)])


class LongHelpCommand(TyperCommand):
    """A command whose help ends with the sections of [`MORE_HELP`]."""

    def format_epilog(self, ctx: Any, formatter: Any):
        super().format_epilog(ctx, formatter)
        if self.name not in MORE_HELP:
            return
        try:
            sections = MORE_HELP[self.name]()
        except ImportError as error:
            sections = {"More help": f"The rest of this help cannot be shown: {error}."}
        for heading, content in sections.items():
            with formatter.section(heading):
                if isinstance(content, str):
                    formatter.write_text(content)
                else:
                    formatter.write_dl(list(content.items()))


def help_of_recipes() -> Sections:
    """Returns the recipes of `dino pretrain`, and the keys that can be replaced in them."""
    from ..training.recipe_help import default_values, recipe_summaries

    sections: Sections = {"Recipes": recipe_summaries()}
    for name, values in default_values().items():
        sections[f"Keys of {name}, and their defaults"] = " ".join(f"{key}={text}" for key, text in values.items())
    sections["More keys"] = "training.NAME of every other argument of transformers' TrainingArguments"
    return sections


MORE_HELP: dict[str, Callable[[], Sections]] = {"pretrain": help_of_recipes}
