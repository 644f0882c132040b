"""The wire to a model hub: what a repository holds, and byte ranges of its files.

The variables are those of Hugging Face's own client: HF_ENDPOINT, HF_TOKEN, HF_TOKEN_PATH, HF_HOME, HF_HUB_CACHE and
HF_HUB_OFFLINE, some of which have older names too; proxies come from HTTP_PROXY, HTTPS_PROXY and NO_PROXY, and SSL_CERT_FILE
names other certificates. The token goes to the endpoint itself and to nobody else, whatever redirects say, and into no message.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Generator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

from hwaga.errors import HubError, SettingsError
from hwaga.version import __version__
from hwaga.weights.patience import Pace, Patience, TooSlow, Unanswered

STALL = 30.0
"""Seconds without a byte after which a connection is given up and made anew."""

CHUNK = 2**18
REDIRECTS = 8
METADATA_LIMIT = 2**26


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository.

    Attributes:
        path: where it is to lie below the model's folder, with slashes.
        size: bytes.
        sha256: of its content, or None for a small file that git itself keeps.
        blob: what the hub calls this content: its sha256, or git's sha1 of it.
        repo, commit: where it is from.
        source: where it lies in the repository, if not at ``path``.
    """

    path: str
    size: int
    sha256: str | None
    blob: str
    repo: str = ""
    commit: str = ""
    source: str = ""


class RangesIgnored(Exception):  # noqa: N818 - it never leaves this package
    """The server sends whole files only."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_arguments: Any) -> None:
        return None


class Hub:
    """A hub, as one user sees it.

    Args:
        endpoint: its address, without a slash at the end.
        token: the user's, or "".
        cache: where Hugging Face's client keeps files.
        offline: ask nobody.
    """

    def __init__(self, endpoint: str, token: str, cache: Path, *, offline: bool = False) -> None:
        self.endpoint, self.cache, self.offline, self._token = endpoint, cache, offline, token
        self._opener = urllib.request.build_opener(_NoRedirects)
        self._open: set[http.client.HTTPResponse] = set()
        self._lock = threading.Lock()

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Hub:
        """The hub that the usual variables describe.

        Raises:
            SettingsError: a variable or the token's file is not good.
        """
        told = environment.get("HF_HUB_OFFLINE") or environment.get("TRANSFORMERS_OFFLINE", "")
        offline = told.upper() in ("1", "ON", "YES", "TRUE")
        caches = environment.get("XDG_CACHE_HOME") or "~/.cache"
        home = _path(environment.get("HF_HOME") or f"{caches}/huggingface")
        endpoint = (environment.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
        try:
            good = bool(_origin(endpoint)[1])
        except ValueError:
            good = False
        if not good:
            raise SettingsError(f"HF_ENDPOINT must be an address such as https://huggingface.co, not {endpoint!r}.")
        for source in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            token = environment.get(source, "")
            if token:
                break
        else:
            file = _path(environment.get("HF_TOKEN_PATH") or str(home / "token"))
            source = str(file)
            try:
                token = file.read_text(encoding="utf-8")
            except FileNotFoundError:
                token = ""
            except (OSError, UnicodeDecodeError) as error:
                raise SettingsError(f"The token in {file} cannot be read: {type(error).__name__}.") from None
        if not re.fullmatch(r"[!-~]*", token.strip()):  # it would break the header, and the message would show it
            raise SettingsError(f"The token in {source} holds characters that no token has. Copy it anew.")
        cache = _path(environment.get("HF_HUB_CACHE") or environment.get("HUGGINGFACE_HUB_CACHE") or str(home / "hub"))
        return cls(endpoint, token.strip(), cache, offline=offline)

    def list_files(self, repo: str, revision: str) -> tuple[str, list[RemoteFile]]:
        """The commit that a revision stands for, and the files there.

        Raises:
            HubError: the hub cannot be reached, refuses, or answers with something else.
        """
        url = f"{self.endpoint}/api/models/{repo}/revision/{urllib.parse.quote(revision, safe='')}?blobs=true"
        patience = Patience(attempts=3)
        while True:
            try:
                with self._get(url, {}, repo)[0] as response:
                    text, pace = b"", Pace()
                    while len(text) < METADATA_LIMIT and (data := pace.read(response, CHUNK)):
                        text += data
                    if response.length:
                        raise Unanswered(f"{_host(url)} broke off in the middle")
                break
            except (Unanswered, OSError, http.client.HTTPException) as error:
                failure = error if isinstance(error, Unanswered) else Unanswered(f"{_host(url)}: {_reason(error)}")
                time.sleep(patience.wait_after(failure, f"The list of files of {repo} did not arrive"))
        try:
            values = json.loads(text)
            files = [_remote_file(entry) for entry in values["siblings"]]
            commit = str(values["sha"])
        except (ValueError, KeyError, TypeError, RecursionError):
            commit = ""
        if not re.fullmatch(r"[0-9a-f]{40}", commit):
            raise HubError(
                f"{self.endpoint} answered with something else than the files of {repo}. "
                "Open it in a browser: a proxy or a sign-in page may stand between."
            )
        if re.fullmatch(r"[0-9a-f]{40}", revision) and commit != revision:
            raise HubError(
                f"{self.endpoint} was asked for {repo} at {revision} and answered with {commit}. Use another mirror, or unset "
                "HF_ENDPOINT."
            )
        return commit, [replace(file, repo=repo, commit=commit) for file in files]

    def stream(self, file: RemoteFile, start: int, end: int, *, whole: bool) -> Generator[bytes, None, None]:
        """The bytes of a file from ``start`` to before ``end``, as they come; close it to hang up.

        Args:
            whole: do not ask for a range, since the server knows none; start is 0 and end the file's size.

        Raises:
            Unanswered: it failed, or broke off, and may go better next time.
            RangesIgnored: the server sent the whole file where a range was asked for.
            HubError: the hub refuses.
        """
        url = f"{self.endpoint}/{file.repo}/resolve/{file.commit}/{urllib.parse.quote(file.source or file.path)}"
        response, blob = self._get(url, {} if whole else {"Range": f"bytes={start}-{end - 1}"}, file.repo)
        try:
            with self._lock:
                self._open.add(response)
            if len(blob) == len(file.blob) and blob != file.blob:  # of another length, it is some mirror's own tag
                raise HubError(f"The hub has another {file.path} now than when it was listed. Run it again.")
            total = _total(response, start)
            if total is None and (start, end) != (0, file.size):
                raise RangesIgnored
            total = _decimal(response.headers.get("Content-Length", "")) if total is None else total
            if total not in (None, file.size):
                raise Unanswered(f"{_host(response.url)} has {total} bytes in place of {file.size}")
            pace = Pace()
            while start < end:
                data = pace.read(response, min(CHUNK, end - start))
                if not data:
                    raise Unanswered(f"{_host(response.url)} broke off in the middle")
                start += len(data)
                yield data
        except TooSlow as error:
            raise TooSlow(f"{_host(response.url)}: {error}") from None
        except (OSError, http.client.HTTPException) as error:
            raise Unanswered(f"{_host(response.url)}: {_reason(error)}") from None
        finally:
            with self._lock:
                self._open.discard(response)
            response.close()

    def hang_up(self) -> None:
        """Ends all streams, also those that wait for bytes in another thread."""
        with self._lock:
            for response in self._open:
                # One that is closed meanwhile, or has been read to its end, has no connection any more.
                with (
                    suppress(OSError, ValueError, AttributeError),
                    socket.socket(fileno=os.dup(response.fileno())) as connection,
                ):
                    connection.shutdown(socket.SHUT_RDWR)

    def _get(self, url: str, headers: Mapping[str, str], repo: str) -> tuple[http.client.HTTPResponse, str]:
        """A response, after redirects, and what the hub called the content on the way, or ""."""
        if self.offline:
            raise HubError(
                f"HF_HUB_OFFLINE forbids the network, and not all of {repo} is here. Unset it to fetch the rest."
            )
        blob = target = ""
        for _ in range(REDIRECTS):
            try:
                before, url = url, urllib.parse.urljoin(url, target)
                if _origin(before)[0] == "https" and _origin(url)[0] != "https":
                    raise HubError(
                        f"{_host(before)} leads from https to http at {_host(url)}, where anyone on the way could read and "
                        "change what comes. Check HF_ENDPOINT and the proxy."
                    )
                at_hub = _origin(url) == _origin(self.endpoint)
                request = urllib.request.Request(url, headers={"User-Agent": f"hwaga/{__version__}", **headers})
                if self._token and at_hub:
                    request.add_header("Authorization", f"Bearer {self._token}")
                return self._opener.open(request, timeout=STALL), blob
            except urllib.error.HTTPError as error:
                with error:
                    target = error.headers.get("Location", "") if 300 <= error.code < 400 else ""
                    if not target:
                        raise self._refusal(error, repo, at_hub=at_hub) from None
                    blob = blob or error.headers.get("X-Linked-Etag", "").removeprefix("W/").strip('"')
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason = getattr(error, "reason", error)
                if isinstance(reason, ssl.SSLCertVerificationError):
                    raise HubError(
                        f"{_host(url)} shows a certificate that this machine does not trust ({reason.verify_message}). "
                        "If your network puts its own in place, name its file in SSL_CERT_FILE."
                    ) from None
                raise Unanswered(f"{_host(url)}: {_reason(reason)}") from None
        raise HubError(f"{self.endpoint} sends in circles. Check HF_ENDPOINT and the proxy.")

    def _refusal(self, error: urllib.error.HTTPError, repo: str, *, at_hub: bool) -> Exception:
        """What a status of 3xx, 4xx or 5xx means, as something to raise."""
        code, kind = error.code, error.headers.get("X-Error-Code", "")
        status = f"{_host(error.url)} answered {code} ({_phrase(code)})"
        # Storage behind the hub refuses an address that has grown old; the next attempt asks the hub for a new one.
        if code in (408, 416, 425, 429) or code >= 500 or not at_hub:
            return Unanswered(status, _retry_after(error.headers.get("Retry-After")))
        page = f"{self.endpoint}/{repo}"
        how = f"make a token at {self.endpoint}/settings/tokens and set HF_TOKEN to it"
        if kind == "GatedRepo":
            then = "check that the token may read it" if self._token else how
            return HubError(f"{repo} is given out on conditions ({code}). Accept them at {page}, then {then}.")
        if code == 403:
            then = "Check that the token may read it" if self._token else how.capitalize()
            return HubError(f"{self.endpoint} forbids {repo} ({code}). {then}; a proxy may forbid it too.")
        if code == 401 and self._token and kind != "RepoNotFound":
            return HubError(f"{self.endpoint} does not take the token that is set ({code}): {how}, or unset it.")
        if kind == "RevisionNotFound":
            return HubError(f"{repo} has no such revision. The branches and tags are listed at {page}/tree/main.")
        if kind == "EntryNotFound":
            return HubError(f"A file that {repo} listed is no longer there ({code}). Run it again.")
        if code in (401, 404):
            private = "check that its owner gave you access" if self._token else how
            return HubError(f"{page} is not there, or private ({code}). Check the name; if it is private, {private}.")
        return HubError(f"{status}, and there is no use in asking again. Check HF_ENDPOINT and the proxy.")


def _remote_file(entry: dict[str, Any]) -> RemoteFile:
    path, lfs = entry["rfilename"], entry.get("lfs")
    sha256 = lfs["sha256"] if lfs else None
    size, blob = (lfs or entry)["size"], sha256 or entry["blobId"]
    good = isinstance(path, str) and type(size) is int and 0 <= size < 2**63
    if not good or not re.fullmatch(r"[0-9a-f]{64}" if lfs else r"[0-9a-f]{40}", blob):
        raise ValueError(path)
    return RemoteFile(path, size, sha256, blob)


def _total(response: http.client.HTTPResponse, start: int) -> int | None:
    """The size of the whole file by a range's header, or None where the response is the whole file.

    Raises:
        Unanswered: it is neither that nor the range that was asked for.
    """
    if response.status == HTTPStatus.OK:
        return None
    found = re.fullmatch(r"bytes (\d{1,19})-\d{1,19}/(\d{1,19})", response.headers.get("Content-Range", ""))
    if response.status != HTTPStatus.PARTIAL_CONTENT or found is None or int(found[1]) != start:
        raise Unanswered(f"{_host(response.url)} sent another range than was asked for")
    return int(found[2])


def _decimal(value: str) -> int | None:
    """A number of bytes or seconds; None for what is none, or longer than Python cares to read."""
    return int(value) if re.fullmatch(r"\d{1,19}", value, re.ASCII) else None


def _retry_after(value: str | None) -> float | None:
    """Seconds to wait by a Retry-After header, which holds seconds or a date."""
    if not value:
        return None
    seconds = _decimal(value)
    if seconds is not None:
        return float(seconds)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _origin(url: str) -> tuple[str, str, int]:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise ValueError("neither http nor https")
    return parts.scheme, parts.hostname or "", parts.port or {"http": 80, "https": 443}[parts.scheme]


def _host(url: str | None) -> str:
    """The host alone: addresses of storage hold signatures."""
    return urllib.parse.urlsplit(url or "").hostname or "the hub"


def _reason(error: object) -> str:
    if isinstance(error, TimeoutError):
        return f"nothing came for {STALL:.0f} seconds"
    return str(error) or type(error).__name__


def _phrase(code: int) -> str:
    return HTTPStatus(code).phrase if code in HTTPStatus._value2member_map_ else "no known status"


def _path(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise SettingsError(f"The folder {text} is in a home that cannot be told: {error}. Write it out.") from error
