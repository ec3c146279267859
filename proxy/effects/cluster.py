"""Calls of the Kubernetes API server, as the pod's service account."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Any, Final, Protocol

import aiohttp
import msgspec

from proxy.effects.protocol import EffectError

PATCH: Final = "application/strategic-merge-patch+json"
_CALL_SECONDS: Final = 30.0


class Place(Protocol):
    """The settings that say where the API server is."""

    @property
    def namespace(self) -> str | None:
        """None: the one that specbreaker runs in."""

    @property
    def api_url(self) -> str | None:
        """None: the cluster's own, from inside it."""

    @property
    def service_account_directory(self) -> str:
        """Where token, ca.crt and namespace are."""


class Refused(EffectError):
    """The API server answered, and not with what was asked for."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Cluster:
    """The API server and a namespace. ``section``: of the configuration, for messages."""

    def __init__(self, place: Place, section: str) -> None:
        self._place = place
        self._section = section

    def url(self, group: str, resource: str) -> str:
        """Of a resource ("deployments/vllm") of an API group ("apps/v1"). Raises EffectError."""
        api = self._place.api_url or self._inside()
        namespace = self._place.namespace or self._read("namespace")
        return f"{api}/apis/{group}/namespaces/{namespace}/{resource}"

    def _inside(self) -> str:
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        if host is None:
            raise EffectError(f"not in a cluster: KUBERNETES_SERVICE_HOST is not set (or set {self._section}.api_url)")
        return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"

    def _read(self, name: str) -> str:
        path = Path(self._place.service_account_directory) / name
        try:
            return path.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise EffectError(f"{path}: {error.strerror}") from None

    def session(self) -> aiohttp.ClientSession:
        """For some calls. The token is read anew each time: the kubelet renews it. Raises EffectError."""
        certificates: ssl.SSLContext | bool = True
        if (self._place.api_url or self._inside()).startswith("https://"):
            certificates = ssl.create_default_context(cadata=self._read("ca.crt"))
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=certificates),
            headers={"authorization": f"Bearer {self._read('token')}"},
            timeout=aiohttp.ClientTimeout(total=_CALL_SECONDS),
        )

    async def call(
        self,
        session: aiohttp.ClientSession,
        method: str,
        url: str,
        body: dict[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> dict[str, Any]:
        """The object that the API server answers with. Raises EffectError, Refused where it says no."""
        headers = {"content-type": content_type} if body is not None else {}
        data = msgspec.json.encode(body) if body is not None else None
        try:
            async with session.request(method, url, data=data, headers=headers) as answer:
                text = await answer.read()
        except TimeoutError:
            raise EffectError(f"{method} {url}: no answer within {_CALL_SECONDS:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise EffectError(f"{method} {url}: {error}") from None
        if answer.status != 200:
            said = text[:200].decode(errors="replace")
            raise Refused(f"{method} {url}: {answer.status}: {said}", answer.status)
        try:
            return dict(msgspec.json.decode(text))
        except (msgspec.DecodeError, TypeError, ValueError):
            raise EffectError(f"{method} {url}: the answer is not a JSON object") from None
