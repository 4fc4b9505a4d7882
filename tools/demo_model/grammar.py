"""Reads the template files and expands their wordings.

A template file is a list of entries: a line `## name [weight]`, then `key: value` lines; a key may repeat.  In a
wording `<a|b>` draws one alternative (nesting allowed), `$name` inserts a shared alternation of macros.txt, and
`{...}` is a slot that the caller fills.
"""
import re
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "templates"
SLOT = re.compile(r"\{([A-Za-z]+)(?:\.(is|rel|not|do))?(?: ([A-Za-z]+))?\}")
INNERMOST = re.compile(r"<([^<>]*)>")
MACRO = re.compile(r"\$([a-z]+)")


class Entry:
    """One `##` entry: its name, its weight and the list of values under each key."""

    def __init__(self, name, weight):
        self.name, self.weight, self.values = name, weight, {}

    def all(self, key):
        """Every value of the key, in file order."""
        return self.values.get(key, [])

    def one(self, key, default=""):
        """The first value of the key."""
        return self.values.get(key, [default])[0]

    def pairs(self, key, separator):
        """`a:int b:str` as [("a", "int"), ("b", "str")]."""
        return [tuple(pair.split(separator, 1)) for pair in self.one(key).split()]


def read_entries(file_name):
    """Parses one template file."""
    entries = []
    for line in (FOLDER / file_name).read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            name, _, weight = line[3:].partition(" ")
            entries.append(Entry(name, float(weight or 1)))
        elif line and not line.startswith("# "):
            key, _, value = line.partition(":")
            entries[-1].values.setdefault(key, []).append(value.removeprefix(" "))
    return entries


def read_macros():
    """macros.txt as {language: {name: text}}."""
    macros, language = {}, None
    for line in (FOLDER / "macros.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            language = line.strip("[]")
            macros[language] = {}
        elif line and not line.startswith("#"):
            name, _, text = line.partition(": ")
            macros[language][name] = text
    return macros


MACROS = read_macros()


def expand(rng, text, language):
    """Draws one reading of a wording; slots stay."""
    while MACRO.search(text) or INNERMOST.search(text):
        text = INNERMOST.sub(lambda match: rng.choice(match.group(1).split("|")), text)
        text = MACRO.sub(lambda match: MACROS[language][match.group(1)], text)
    return text


def fill(text, lookup):
    """Replaces every slot by lookup(name, attribute, operand); attribute and operand may be None."""
    return SLOT.sub(lambda match: lookup(*match.groups()), text)
