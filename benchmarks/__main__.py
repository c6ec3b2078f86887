"""Runs every benchmark there is, one after the other."""

import pkgutil
from importlib import import_module

import benchmarks
from benchmarks.harness import Row, main


def measure(quick: bool) -> list[Row]:
    """Run each module of this package that has a ``measure``, by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(benchmarks.__path__))
    modules = [import_module(f"benchmarks.{name}") for name in names if name != "__main__"]
    return [
        row for module in modules if hasattr(module, "measure") for row in module.measure(quick)
    ]


if __name__ == "__main__":
    main(measure)
