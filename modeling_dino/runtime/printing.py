# SPDX-License-Identifier: Apache-2.0
"""Prints names that come out of files, which may hold what a terminal takes for commands."""

import unicodedata


KEPT = "\n\t\u200c\u200d"  # also the joiners of Persian words and of emoji
# control characters, invisible ones (which turn the direction of writing), halves of characters, ends of lines
ESCAPED = ("Cc", "Cf", "Cs", "Zl", "Zp")


def printable(text: object) -> str:
    """Returns a text in which characters that a terminal does not show, but obeys, are written as escapes."""
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in ESCAPED and character not in KEPT
        else character
        for character in str(text)
    )
