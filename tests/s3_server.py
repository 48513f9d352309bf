"""An S3 server on this machine for tests: moto, with what it lacks and with faults on demand.

Where moto departs from S3:
- It honours `If-None-Match: *` on PutObject and CompleteMultipartUpload, but looks first and puts then, in threads of
  its own: two puts at the same moment may both succeed. `S3Server` therefore takes puts one after the other, as S3
  does for one name. It never answers 409.
- Listings give times in whole seconds, and so does S3; objects are ordered and seen at once, as in S3.
- Credentials are not looked at, unless `require_known_users` is called; signatures never are.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import pytest
import requests
from moto.s3.responses import S3Response
from moto.server import ThreadedMotoServer


class S3Server:
    """A running server.

    Attributes:
        endpoint: its URL.
        ignores_conditions: whether `If-None-Match` is ignored, as old servers do.
        refusals: (status, code) that the next conditional puts are answered with, without being done.
        lost_answers: conditional puts that are done and then answered by 500.
        put_seconds: how long a put takes to arrive.
        num_puts: puts so far.
    """

    def __init__(self) -> None:
        self.endpoint = ""
        self._lock = threading.Lock()
        self._put = S3Response.put_object
        self.reset()

    def reset(self) -> None:
        self.ignores_conditions = False
        self.refusals: deque[tuple[int, str]] = deque()
        self.lost_answers = 0
        self.put_seconds = 0.0
        self.num_puts = 0

    def put(self, request: S3Response) -> Any:
        time.sleep(self.put_seconds)
        with self._lock:
            self.num_puts += 1
            if request.headers.get("If-None-Match") is None or self.ignores_conditions:
                request.headers = {k: v for k, v in request.headers.items() if k.lower() != "if-none-match"}
                return self._put(request)
            if self.refusals:
                return _fault(*self.refusals.popleft())
            answer = self._put(request)
            if self.lost_answers:
                self.lost_answers -= 1
                return _fault(500, "InternalError")
            return answer

    @property
    def variables(self) -> dict[str, str]:
        """Environment of a client."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def client(self) -> Any:
        """A client that is none of ours."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
        )

    @contextmanager
    def require_known_users(self) -> Iterator[None]:
        """Refuse everybody, as there are no users."""
        requests.post(f"{self.endpoint}/moto-api/reset-auth", data=b"0", timeout=10)
        try:
            yield
        finally:
            requests.post(f"{self.endpoint}/moto-api/reset-auth", data=b"inf", timeout=10)


def _fault(status: int, code: str) -> Any:
    return status, {}, f"<Error><Code>{code}</Code><Message>a fault on demand</Message></Error>"


@contextmanager
def run_s3_server() -> Iterator[S3Server]:
    server = S3Server()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(S3Response, "put_object", lambda request: server.put(request))
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        moto.start()
        server.endpoint = "http://{}:{}".format(*moto.get_host_and_port())
        try:
            yield server
        finally:
            moto.stop()
