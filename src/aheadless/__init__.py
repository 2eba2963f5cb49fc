"""The asyncio client for Headless chat APIs."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aheadless._public import *  # noqa: F403
    from aheadless._public import __all__ as __all__
else:
    # All names are loaded when the first is asked for, as by `from aheadless import ChatClient`. `import aheadless.cli`
    # comes by here as well, and needs none of them: with aiohttp, `aheadless --help` takes ten times as long.
    def __getattr__(name: str) -> object:
        from importlib import import_module  # noqa: PLC0415

        public, names = import_module("aheadless._public"), globals()
        names.update({each: getattr(public, each) for each in ("__all__", *public.__all__)})
        # Not only those: `aheadless.exceptions` is there by now, too.
        if name in names:
            return names[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        __getattr__("__all__")
        return sorted(globals())
