"""Gymnasium environments of diffplan, one at a time and in batches: D4RL's Maze2D, and Gymnasium's walking robots.

Installing the package is enough: `gymnasium.make("diffplan/Maze2D-Large-v1")` needs no import of this package.

Gymnasium 1.x loads no plug-ins, so the wheel carries a `.pth` file that imports this module when the interpreter
starts. It must stay cheap: it only arranges for the registration to follow the import of Gymnasium, whenever that
comes. Without the `.pth` (a checkout on `PYTHONPATH`), `import diffplan_envs` does the same.
"""

import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


class _RegisterAfterGymnasium:
    """Import hook that registers our environments as soon as Gymnasium has been imported, then goes away."""

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "gymnasium":
            return None
        sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not cls]
        spec = PathFinder.find_spec(name)
        if spec is None or spec.loader is None:
            return None
        exec_module = spec.loader.exec_module

        def exec_module_then_register(module: ModuleType) -> None:
            exec_module(module)
            _register()

        spec.loader.exec_module = exec_module_then_register
        return spec


def _register() -> None:
    from diffplan_envs.registration import register_envs

    register_envs()


if "gymnasium" in sys.modules:
    _register()
elif _RegisterAfterGymnasium not in sys.meta_path:
    sys.meta_path.insert(0, _RegisterAfterGymnasium)  # type: ignore[arg-type]
