"""Which settings of a file need `--trust`.

Settings can name code (a guide by import path) and locations (a value function by URL). On the command line the user
typed them. A file may come from someone else, so code and URLs in it are refused without `--trust`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from diffplan.errors import ConfigError
from diffplan.importing import is_import_path, load_object
from diffplan.planning.control.registry import list_missing
from diffplan.tasks.pretrained import PREFIX

FIELDS = ("guides", "value", "kind", "controller", "refine", "symmetries")
"""Last part of the dotted names of settings that may name code or a URL; `controller` is short for its kind."""


def list_named(values: Mapping[str, Any], prefix: str = "planning") -> Iterator[tuple[str, str]]:
    """Import paths and URLs in settings, each with the dotted name of its field.

    Args:
        values: settings as JSON values; sections may be nested.
        prefix: of the dotted names.
    """
    for name, value in values.items():
        field = f"{prefix}.{name}" if prefix else name
        if isinstance(value, Mapping):
            yield from list_named(value, field)
        elif field.rpartition(".")[2] in FIELDS:
            for text in value if isinstance(value, (list, tuple)) else (value,):
                if not isinstance(text, str) or not _names_code_or_place(text.strip()):
                    continue
                if not field.endswith(("kind", "controller")) or not _is_controller_class(text.strip()):
                    yield field, text


def _names_code_or_place(text: str) -> bool:
    return "://" in text or (is_import_path(text) and not text.startswith(PREFIX))


def _is_controller_class(path: str) -> bool:
    """Whether an import path names a class of controllers, which a file may name as any class of a contract."""
    try:
        found = load_object(path, "planning.controller")
    except ConfigError:
        return False
    return isinstance(found, type) and not list_missing(found)


def require_same_place(dataset: Mapping[str, Any], checkpoint: str) -> None:
    """Refuse a checkpoint whose dataset is at a URL in another store than the checkpoint itself.

    Args:
        dataset: what the checkpoint says of its dataset.
        checkpoint: its path or URL, as the user named it.

    Raises:
        ConfigError: another store, which the user has not named.
    """
    for name in ("path", "uri"):
        text = dataset.get(name)
        if isinstance(text, str) and "://" in text and _find_store(text) != _find_store(checkpoint):
            raise ConfigError(
                f"{checkpoint}: expected no URL that only a file names, got the dataset {text!r}; look at what it is, "
                "then give it by --data or add --trust"
            )


def _find_store(where: str) -> str:
    """Scheme and bucket of a URL; empty for a path."""
    scheme, separator, rest = where.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}" if separator else ""


def require_trust(values: Mapping[str, Any], where: str, known: Collection[str] = (), prefix: str = "planning") -> None:
    """Refuse settings of a file that hold import paths or URLs.

    Args:
        values: the settings as JSON values.
        where: the file, for messages.
        known: import paths and URLs that are trusted already, such as those on the command line.
        prefix: of the dotted names of the settings.

    Raises:
        ConfigError: the settings hold one that is not known.
    """
    for field, text in list_named(values, prefix):
        if text not in known:
            kind = "URL" if "://" in text else "function"
            raise ConfigError(
                f"{where}: expected no {kind} that only a file names, got {field} {text!r}; look at what it is, then "
                "add --trust"
            )
