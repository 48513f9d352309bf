"""Commits to stores that cannot put on a condition: one actor makes all of them, one after the other.

Every coordinator and writer of a cluster asks the same actor, found by the address of the store. It belongs to the
process that needed it first; when that ends, the next who commits starts another, and an interrupted put is repeated:
either it is found to be there, or it is made.

Limit: the actor is the only one in its cluster. Two clusters must not write to one such dataset at the same time.
"""

from __future__ import annotations

import hashlib
import os
import time
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from diffplan.cluster.units import unwrap
from diffplan.data.object_store import ObjectStore
from diffplan.data.store import Store
from diffplan.errors import ClusterError

NAMESPACE = "diffplan"
MAX_COMMITTERS = 20
"""Committers that may be gone, one after the other, when one put asks them."""
RESTART_SECONDS = 0.5
"""Pause before another is started, in which Ray forgets the name of the one before."""
STORE_VARIABLES = ("AWS_", "FSSPEC_", "GCSFS_", "GOOGLE_", "STORAGE_EMULATOR_HOST")
"""What the names of environment variables begin with that tell where stores are and who may use them."""


@ray.remote(num_cpus=0)
class Committer:
    """Puts the objects of one store, one call after the other."""

    def __init__(self, store: ObjectStore, variables: dict[str, str]) -> None:
        adopt_variables(variables)
        self._store = store

    def put_if_absent(self, name: str, content: bytes) -> bool:
        """As that of a store."""
        return self._store.put_alone(name, content)


class CommittedStore(ObjectStore):
    """A store whose `put_if_absent` goes through the committer of the cluster. It may be pickled."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._committer: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_committer": None}  # every process looks it up by name

    def has_conditional_put(self) -> bool:
        """True: the committer gives it."""
        return True

    def put_if_absent(self, name: str, content: bytes) -> bool:
        """Create an object with its whole content unless there is one; returns whether this call did.

        False too where the committer died after it had put the object for this call, as after a lost answer.

        Raises:
            StoreError: the store cannot be reached or refuses.
            ClusterError: committers keep dying.
        """
        for _ in range(MAX_COMMITTERS):
            try:
                if self._committer is None:
                    self._committer = _find_committer(self)
                return ray.get(self._committer.put_if_absent.remote(name, content))
            except RayTaskError as error:
                raise unwrap(error) from None
            except RayActorError:
                self._committer = None
                time.sleep(RESTART_SECONDS)
        raise ClusterError(
            f"{self.locate(name)}: {MAX_COMMITTERS} committers died over it; look into the logs of the cluster, then "
            "go on with --resume"
        )


def _find_committer(store: CommittedStore) -> Any:
    name = f"committer-{hashlib.sha256(store.address.encode()).hexdigest()[:16]}"
    options = Committer.options(name=name, namespace=NAMESPACE, get_if_exists=True)
    return options.remote(ObjectStore(store.uri), find_variables())


def needs_committer(store: Store) -> bool:
    """Whether writers of this store must agree through a committer."""
    return isinstance(store, ObjectStore) and not store.has_conditional_put()


def serialize_commits(store: Store) -> Store:
    """A store of the same content that any number of processes of this cluster may write to.

    The store itself if it puts on a condition; else one that asks the committer, for which Ray must be connected where
    it is used.
    """
    return CommittedStore(store.uri) if needs_committer(store) else store


def find_variables() -> dict[str, str]:
    """Environment variables of this process that stores need, for processes on other machines.

    They are handed over as arguments rather than by Ray's `runtime_env`, which shows secrets in logs and dashboard.
    """
    return {name: value for name, value in os.environ.items() if name.startswith(STORE_VARIABLES)}


def adopt_variables(variables: dict[str, str]) -> None:
    """Set the variables of `find_variables` in this process, before it opens a store."""
    import fsspec.config

    os.environ.update(variables)
    fsspec.config.set_conf_env(fsspec.config.conf)  # read when fsspec is imported, which may have been before
