"""What a model consists of when the network is forbidden: by its folder's marker, and by the cache of Hugging Face's client.

The marker knows the files of an earlier download. The cache has, by commit, a folder of links to files that are named after
their content. Neither can say that a model is whole; so every pattern of its card, every part's weights, every shard that an
index names and every file of the marker must be there, but for those of styles.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from hwaga.cards import ModelCard
from hwaga.errors import HubError
from hwaga.weights.hub import RemoteFile
from hwaga.weights.verified import Verified


class Offline:
    """The files of a model that this machine has.

    Args:
        folder: where the model is or goes.
        cache: where Hugging Face's client keeps files.
        revision: what was asked for in place of the card's, or None.
    """

    def __init__(self, card: ModelCard, folder: Path, cache: Path, revision: str | None) -> None:
        self.card, self.folder, self.cache = card, folder, cache
        marker = Verified.read(folder)
        source = card.download
        self._sources = () if source is None else (source, *source.also)
        ours = marker is not None and source is not None and marker.repo == source.repo
        self._marker = marker if marker is not None and ours and revision in (None, marker.revision) else None
        self._styles = {
            (style.source.repo, style.source.file): style.file for style in card.styles.values() if style.source
        }

    def list_files(self, repo: str, revision: str) -> tuple[str, list[RemoteFile]]:
        """The commit that a revision stands for, and the files of it that are here.

        Raises:
            HubError: none is.
        """
        place = self.cache / f"models--{repo.replace('/', '--')}"
        marker = self._marker
        commit = marker.revision if marker is not None and marker.repo == repo else _commit(place, revision)
        files = _snapshot(place, repo, commit)
        if marker is not None:
            paths = [path for path in marker.files if path not in {*self._styles.values(), *marker.styles}]
            places = {source.place("") for source in self._sources if source.repo == repo}
            names = {path: path.removeprefix(into) for into in places for path in paths if path.startswith(into)}
            names |= {path: file for (owner, file), path in self._styles.items() if owner == repo and path is not None}
            for path, name in names.items():
                known = marker.files.get(path)
                if known is not None and _size(self.folder / path) == known.size:
                    files[name] = RemoteFile(name, known.size, known.sha256, known.sha256, repo, commit)
        if not files:
            raise self._refusal(f"the files of {repo}")
        return commit, list(files.values())

    def check_whole(self, files: Mapping[str, RemoteFile]) -> None:
        """Refuses a model of which something is known to be missing.

        Args:
            files: all that are here, by path below the model's folder.

        Raises:
            HubError: it names one.
        """
        source = self.card.download
        assert source is not None
        wanted = [each.place(pattern) for each in (source, *source.also) for pattern in each.include]
        missing = [pattern for pattern in wanted if not any(fnmatchcase(path, pattern) for path in files)]
        for part, patterns in source.parts.items():
            weights = [path for path in files if path.endswith(".safetensors")]
            if not any(fnmatchcase(path, pattern) for path in weights for pattern in patterns):
                missing.append(f"the weights of its {part}")
        if self._marker is not None:
            known = {*self._marker.files, *self._marker.missing} - {*self._marker.styles}
            missing += sorted(known - set(files))
        for path, file in files.items():
            if path.endswith(".safetensors.index.json"):
                missing += sorted(self._shards(file) - set(files))
        if missing:
            raise self._refusal(missing[0])

    def _shards(self, index: RemoteFile) -> set[str]:
        """Paths of the files that an index names; its own where it cannot be read, with a mark, so that it is missing."""
        blob = self.cache / f"models--{index.repo.replace('/', '--')}" / "blobs" / index.blob
        for place in (self.folder / index.path, blob):
            try:
                names = set(json.loads(place.read_text(encoding="utf-8"))["weight_map"].values())
                return {str(Path(index.path).with_name(name)) for name in names}
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
                continue
        return {f"{index.path} (in a readable form)"}

    def _refusal(self, what: str) -> HubError:
        return HubError(
            f"HF_HUB_OFFLINE forbids the network, and {what} of {self.card.name} is neither in {self.folder} nor in Hugging "
            f"Face's cache ({self.cache}). Unset it to fetch what is missing."
        )


def _commit(place: Path, revision: str) -> str:
    """The commit that the cache knows a branch or tag by, or ""."""
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    try:
        commit = (place / "refs" / revision).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""
    return commit if re.fullmatch(r"[0-9a-f]{40}", commit) else ""


def _snapshot(place: Path, repo: str, commit: str) -> dict[str, RemoteFile]:
    """The files that the cache has of a commit, by path. What leads to no file named after its content is left out.

    A link leads to ``blobs`` of the repository, where names are those of contents. That may be a link too, to what all
    repositories share; there names are hashes of another kind.
    """
    folder, files = place / "snapshots" / commit, dict[str, RemoteFile]()
    for link in folder.rglob("*") if commit else ():
        blob, path = link.readlink().name if link.is_symlink() else "", link.relative_to(folder).as_posix()
        size = _size(link)
        if size is not None and re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", blob) and link.is_file():
            files[path] = RemoteFile(path, size, blob if len(blob) == 64 else None, blob, repo, commit)
    return files


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return None
