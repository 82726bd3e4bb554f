"""`starling presets [NAME]`: list the presets, or show one."""

from cluster.commands.options import wants_help
from cluster.config import preset, presets
from starling.errors import check


def main(args: list[str]) -> int:
    """Print the presets with a line each, or one as it is written."""
    if wants_help(args):
        print("usage: starling presets [NAME]\n\nWithout NAME: a line for each preset. With it: the preset as TOML.")
        return 0
    check(len(args) <= 1, f"presets must be given at most one NAME, got {' '.join(args)}")
    if args:
        print(preset(args[0]).text, end="")
        return 0
    width = max(len(preset.name) for preset in presets())
    for found in presets():
        print(f"{found.name:<{width}}  {found.description}")
    return 0
