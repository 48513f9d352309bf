"""Start Ray or connect to a cluster; whatever fails becomes one line that names what to mend."""

from __future__ import annotations

import logging
import os
import sys
import time

import grpc
import ray
from ray.exceptions import AuthenticationError, GetTimeoutError, RpcError

from diffplan.cluster.variables import FROM_OUTSIDE
from diffplan.errors import ClusterError, describe_error
from diffplan.runs import interrupts

ADDRESS = "RAY_ADDRESS"
ANSWER_SECONDS = 10.0
"""Wait for the head of a cluster to answer; Ray itself would try for a quarter of an hour."""
_CHECK = "/ray.rpc.NodeInfoGcsService/CheckAlive"
"""A method of Ray's heads without arguments: whatever else listens at an address does not know it."""
_LATE = ("timed out", "failed to start gcs", "deadline exceeded", "failed to connect to gcs")
"""Parts of the messages of a start that took too long; Ray raises them as many kinds of exceptions."""
_TOKEN_CURE = "export RAY_AUTH_MODE=token and RAY_AUTH_TOKEN=… (or RAY_AUTH_TOKEN_PATH=FILE)"


def start_ray() -> None:
    """Connect to the cluster of `RAY_ADDRESS`, or start Ray on this machine.

    A start that takes too long is repeated once: on a busy machine the second one finds its files in memory.

    Raises:
        ClusterError: no cluster answers at the address, or Ray does not start.
    """
    address = os.environ.get(ADDRESS, "")
    is_local = address in ("", "local")
    if not is_local:
        check_address(address)
    for attempt in (1, 2):
        since = time.monotonic()
        try:
            ray.init(
                address="local" if is_local else "auto",
                include_dashboard=False if is_local else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except Exception as error:  # Ray raises many kinds, also bare ones
            _stop_what_started(error)
            if interrupts.is_heard():
                raise KeyboardInterrupt from None
            seconds = time.monotonic() - since
            if not _is_late(error):
                raise ClusterError(_explain(error, is_local)) from error
            if attempt == 2:
                raise ClusterError(
                    f"ray: expected it to start, got no answer in {seconds:.0f} s, twice ({_shorten(error)}); try "
                    f"again when the machine is less busy{_blame()}"
                ) from error
            sys.stderr.write(f"ray: it has not started in {seconds:.0f} s; waiting once more\n")
        else:
            return


def check_address(address: str) -> None:
    """Check the value of `RAY_ADDRESS` before Ray uses it.

    Raises:
        ClusterError: it is no address, or no head of a cluster answers there.
    """
    if address == "auto":
        return
    wanted = f"{ADDRESS}: expected HOST:PORT of the head of a Ray cluster, such as 10.0.0.1:6379"
    cure = "mend it, or unset it to run on this machine"
    if address.startswith(("http://", "https://")):
        cure = f"name a job server by RAY_API_SERVER_ADDRESS and use `diffplan submit`, or unset {ADDRESS}"
    elif address.startswith("ray://"):
        cure = f"Ray's client is not supported: use `diffplan submit`, or unset {ADDRESS}"
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ClusterError(f"{wanted}, got {address!r}; {cure}")
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return  # only Ray has the certificates
    try:
        with grpc.insecure_channel(address, options=(("grpc.enable_http_proxy", 0),)) as channel:
            channel.unary_unary(_CHECK)(b"", timeout=ANSWER_SECONDS)
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()  # pyright: ignore[reportAttributeAccessIssue]  # a call, which has one
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            raise ClusterError(f"{wanted}, got no answer from {address}; {cure}") from None
        if code is grpc.StatusCode.UNIMPLEMENTED:
            raise ClusterError(f"{wanted}, got another server at {address}; {cure}") from None
        # Anything else, such as a missing token, is a head's answer.


def _is_late(error: Exception) -> bool:
    if isinstance(error, (TimeoutError, GetTimeoutError, RpcError)):
        return True
    return any(part in str(error).lower() for part in _LATE)


def _explain(error: Exception, is_local: bool) -> str:
    """One line about a start that failed, with the variable to mend where that is known."""
    if isinstance(error, AuthenticationError):
        return f"ray: expected the token of the cluster, got {_shorten(error)}; {_TOKEN_CURE}"
    for name in ("RAY_TMPDIR", "TMPDIR"):
        value = os.environ.get(name)
        if value and isinstance(error, OSError) and (value in str(error) or "AF_UNIX" in str(error)):
            return (
                f"{name}: expected a directory that can be written, with a short path because Ray makes sockets below "
                f"it, got {value} ({_shorten(error)}); set it to one such as /tmp"
            )
    where = "to start on this machine" if is_local else f"to connect to {ADDRESS}={os.environ[ADDRESS]}"
    return f"ray: expected it {where}, got {_shorten(error)}{_blame() or '; see the logs in /tmp/ray'}"


def _blame() -> str:
    """What may be the cause: variables that the user has set. Their values may be secret."""
    return f"; check the variables that are set: {', '.join(FROM_OUTSIDE)}" if FROM_OUTSIDE else ""


def _shorten(error: Exception) -> str:
    return describe_error(error)[:300].rstrip()


def _stop_what_started(error: Exception) -> None:
    """End the processes of a start that failed, which would run beside those of the next one."""
    from diffplan.cluster.ray_private import stop_node_of  # late: it imports Ray Train

    ray.shutdown()
    stop_node_of(error)
