"""Fetching and preparing: only what was named is taken, and pictures become what they are called."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from training import fetch
from training.everyday import everyday_words
from training.recipe import Recipe


def _package(folder: Path, source: fetch.Source, **changes: str) -> Path:
    """An archive as npm packs one."""
    inside = folder / "package"
    inside.mkdir(parents=True)
    stated = {"name": source.package, "version": source.version, "license": source.license, **changes}
    (inside / "package.json").write_text(json.dumps(stated))
    archive = folder / "archive.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(inside, "package")
    return archive


def test_packages_are_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(source: fetch.Source, _folder: Path) -> Path:
        asked.append(source.spec)
        return _package(tmp_path / f"made-{source.name}", source)

    monkeypatch.setattr(fetch, "_download", download)
    monkeypatch.setattr("shutil.which", lambda _name: "/usr/bin/npm")
    fetch.fetch(tmp_path / "packages")
    fetch.fetch(tmp_path / "packages")
    assert asked == [source.spec for source in fetch.sources()]
    assert {path.name for path in (tmp_path / "packages").iterdir()} == {"solid", "flat", "names"}


@pytest.mark.parametrize(
    ("change", "message"), [({"license": "GPL-3.0"}, "Read its licence first"), ({"version": "9.9.9"}, "Delete it")]
)
def test_another_package_or_licence_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, str], message: str
) -> None:
    monkeypatch.setattr(fetch, "_download", lambda source, _: _package(tmp_path / source.name, source, **change))
    monkeypatch.setattr("shutil.which", lambda _name: "/usr/bin/npm")
    with pytest.raises(RuntimeError, match=message):
        fetch.fetch(tmp_path / "packages")


def test_a_package_that_was_tampered_with_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = fetch.sources()[0]

    def npm(command: list[str], **_: object) -> object:
        target = Path(command[command.index("--pack-destination") + 1]) / "archive.tgz"
        target.write_bytes(_package(tmp_path / "made", source).read_bytes())
        return type("Done", (), {"returncode": 0, "stdout": "archive.tgz\n", "stderr": ""})()

    monkeypatch.setattr("subprocess.run", npm)
    monkeypatch.setattr("shutil.which", lambda _name: "/usr/bin/npm")
    with pytest.raises(RuntimeError, match="arrived with the integrity"):
        fetch.fetch(tmp_path / "packages")
    assert not (tmp_path / "packages" / "solid").exists()


def test_no_word_stands_for_two_objects() -> None:
    words = everyday_words()
    assert len(words) > 400
    for language in ("en", "ko"):
        every = [word for entry in words.values() for word in entry[language]]
        assert len(set(every)) == len(every)


def test_a_recipe_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    text = (Path(fetch.__file__).parent / "recipes" / "tiny.toml").read_text(encoding="utf-8")
    path = tmp_path / "odd.toml"
    path.write_text(text.replace("hidden = 32", "hiden = 32"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"odd.toml, text_encoder: unknown entries hiden"):
        Recipe.load(str(path))


SVG = (
    '<g fill="none"><path fill="#f8312f" d="M4 4h24v24H4z"/><path fill="#402a32" d="M10 10h3v3h-3z"/>'
    '<path fill="#ff6723" d="M2 16h8v.8H2z"/></g>'
)


def test_a_line_drawing_has_outlines_a_pale_wash_and_inked_eyes() -> None:
    pytest.importorskip("resvg_py", reason="pip install '.[training]'")
    from training import drawing

    picture = drawing.line(SVG)
    inside, edge, eye, outside = (picture.getpixel(at) for at in ((180, 180), (32, 128), (92, 92), (250, 10)))
    assert min(inside[:3]) > 100
    assert inside[0] > inside[1] + 30
    for ink in (edge, eye):
        assert max(ink[:3]) < 70
        assert ink[3] == 255
    assert outside[3] == 0
    flat = drawing.flat(SVG).getpixel((180, 180))
    assert flat[:3] == (0xF8, 0x31, 0x2F)
