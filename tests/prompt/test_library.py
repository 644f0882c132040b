from __future__ import annotations

import re
from pathlib import Path

import pytest

from hwaga.errors import PackError
from hwaga.prompt import Library
from hwaga.prompt.keywords import has_korean, name_key
from hwaga.prompt.library import FILLED, by_name, names_of

LIBRARY = Library.load()

GOOD = {
    "styles": '[chalk]\ntitle = { en = "Chalk", ko = "분필" }\nz_image = "It is a chalk drawing."\nsdxl = "chalk drawing"\n',
    "industries": '[tea_room]\ntitle = { en = "Tea room", ko = "찻집" }\nkeywords = { ko = ["녹차"] }\n'
    + "".join(f'{slot} = "some {slot}"\n' for slot in FILLED),
    "uses": '[menu]\ntitle = { en = "Menu", ko = "메뉴판" }\naspect = "3:4"\ncomposition = "upright"\n',
    "avoid": '[rain]\nwords = { en = ["rain"] }\nz_image = "a dry day"\nsdxl_negative = "rain"\n',
    "cues": '[lighting]\nwords = { en = ["laser"] }\n',
}


def test_there_is_enough() -> None:
    assert {"realistic", "semi_realistic", "anime"} < set(LIBRARY.styles)
    assert len(LIBRARY.styles) >= 7
    assert len(LIBRARY.industries) >= 26
    assert list(LIBRARY.uses) == ["feed", "story", "banner", "poster"]
    for entry in (*LIBRARY.styles.values(), *LIBRARY.industries.values()):
        assert any(has_korean(word) for word in (entry.titles["ko"], *entry.aliases.ko)), entry.name
        assert not has_korean(entry.titles["en"] + "".join((*entry.aliases.en, *entry.keywords.en))), entry.name
        assert entry.keywords.en, entry.name
        assert entry.keywords.ko, entry.name


@pytest.mark.parametrize("entries", [LIBRARY.styles, LIBRARY.industries], ids=["styles", "industries"])
def test_every_name_is_one_entry_s_alone(entries: dict[str, object]) -> None:
    owners: dict[str, set[str]] = {}
    for entry in entries.values():
        for name in names_of(entry):  # type: ignore[arg-type]
            owners.setdefault(name_key(name), set()).add(entry.name)  # type: ignore[attr-defined]
            assert by_name(name, entries) is entry  # type: ignore[type-var]
    assert {name: owner for name, owner in owners.items() if len(owner) > 1} == {}


@pytest.mark.parametrize("entries", [LIBRARY.styles, LIBRARY.industries], ids=["styles", "industries"])
def test_keywords_are_one_entry_s_alone(entries: dict[str, object]) -> None:
    owners: dict[str, str] = {}
    for entry in entries.values():
        for word in (*names_of(entry), *entry.keywords):  # type: ignore[arg-type, attr-defined]
            assert owners.setdefault(name_key(word), entry.name) == entry.name, word  # type: ignore[attr-defined]


def test_wording_is_phrases_that_go_on() -> None:
    for industry in LIBRARY.industries.values():
        for slot, wording in industry.wording.items():
            assert re.fullmatch(r"[a-z][^.;:(){}\n]{15,}[a-z']", wording), (industry.name, slot)
    for style in LIBRARY.styles.values():
        assert style.z_image.startswith("It is a")
        assert style.z_image.endswith(".")
        assert not style.sdxl.endswith((".", ","))
        assert style.negative
    for rule in LIBRARY.avoid.values():
        assert not re.search(r"\b(no|not|without|avoid)\b", rule.z_image), rule.name


def test_a_users_folder_adds_and_replaces(tmp_path: Path) -> None:
    for kind, source in GOOD.items():
        (tmp_path / f"{kind}.toml").write_text(source, encoding="utf-8")
    cafe = GOOD["industries"].replace("[tea_room]", "[cafe]").replace("찻집", "우리 카페").replace("녹차", "커피")
    with (tmp_path / "industries.toml").open("a", encoding="utf-8") as file:
        file.write(cafe.replace("Tea room", "Our café"))
    library = Library.load(tmp_path)
    assert library.styles["chalk"].z_image == "It is a chalk drawing."
    assert library.industry("찻집").aspects == {
        "feed": "1:1",
        "story": "9:16",
        "banner": "16:9",
        "poster": "3:4",
        "menu": "3:4",
    }
    assert library.industries["cafe"].titles["ko"] == "우리 카페"
    assert len(library.industries) == len(LIBRARY.industries) + 1
    assert library.cues["lighting"].en == ("laser",)


@pytest.mark.parametrize(
    ("kind", "old", "new", "line", "message"),
    [
        ("styles", 'sdxl = "chalk drawing"', 'sdxl = "chalk', 4, "this is no TOML"),
        ("styles", 'sdxl = "chalk drawing"\n', "", 1, 'has no sdxl. Add sdxl = "…"'),
        ("styles", 'sdxl = "chalk drawing"', "sdxl = 3", 4, "sdxl must be text, not 3"),
        ("styles", 'sdxl = "chalk drawing"', 'sdxl = " "', 4, "sdxl must be text"),
        ("styles", "z_image", "zimage", 1, "has no z_image"),
        ("styles", "sdxl =", 'lora = "a"\nsdxl =', 4, "lora is no key here. Keys are aliases, keywords, replaces, sdxl"),
        ("styles", "sdxl =", 'replaces = ["subject"]\nsdxl =', 4, "'subject' is none of setting, composition"),
        ("avoid", "z_image", 'clears = "wet"\nz_image', 3, "a list of words"),
        ("styles", 'ko = "분필"', 'kr = "분필"', 2, "its name in both languages"),
        ("styles", "[chalk]", "[Chalk board]", 1, "this is no TOML"),
        ("styles", "[chalk]", '["Chalk board"]', 1, "Use small letters, digits and _"),
        ("styles", "[chalk]", "# mine\ntop = 1\n[chalk]", 2, "stands outside of any table"),
        ("styles", '"분필"', '"수채화"', 1, "'수채화' already names watercolor"),
        ("styles", "z_image", 'aliases = { ko = ["분필화", "애니"] }\nz_image', 3, "'애니' already names anime"),
        ("industries", '{ ko = ["녹차"] }', '{ ko = "녹차" }', 3, "lists of words"),
        ("industries", '{ ko = ["녹차"] }', '{ jp = ["お茶"] }', 3, "lists of words"),
        ("industries", "keywords", 'aspects = { tv = "1:1" }\nkeywords', 3, "no use 'tv'. Uses are feed, story"),
        ("industries", "keywords", 'aspects = { feed = "square" }\nkeywords', 3, 'such as "3:4", not \'square\''),
        ("industries", "keywords", "aspects = 1\nkeywords", 3, "a shape for each use"),
        ("uses", '"3:4"', '"0:4"', 3, "an aspect is width to height"),
        ("avoid", '["rain"]', '["rain", "글자"]', 2, "'글자' already names text"),
        ("cues", "[lighting]", "[subject]", 1, "is no slot that packs fill. Slots are setting"),
    ],
)  # fmt: skip
def test_errors_name_file_line_and_remedy(
    tmp_path: Path, kind: str, old: str, new: str, line: int, message: str
) -> None:
    path = tmp_path / f"{kind}.toml"
    assert old in GOOD[kind]
    path.write_text("\n\n" + GOOD[kind].replace(old, new, 1), encoding="utf-8")
    with pytest.raises(PackError) as refused:
        Library.load(tmp_path)
    assert str(refused.value).startswith(f"{path}:{line + 2}: "), refused.value
    assert message in str(refused.value)


def test_the_line_of_a_subtable(tmp_path: Path) -> None:
    source = '[chalk]\nz_image = "a"\nsdxl = "b"\n\n[chalk.title]\nen = "Chalk"\n'
    (tmp_path / "styles.toml").write_text(source)
    with pytest.raises(PackError, match=r"styles\.toml:5: \[chalk\] needs title"):
        Library.load(tmp_path)


def test_folders_and_files_that_are_no_packs(tmp_path: Path) -> None:
    with pytest.raises(PackError, match=r"is no folder. Name one that holds styles\.toml"):
        Library.load(tmp_path / "absent")
    (tmp_path / "style.toml").write_text("")
    with pytest.raises(PackError, match=r"style\.toml:1: this is no pack. Rename it to one of styles\.toml"):
        Library.load(tmp_path)
    (tmp_path / "style.toml").rename(tmp_path / "styles.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(PackError, match="Save it as a text file in UTF-8"):
        Library.load(tmp_path)


def test_a_pack_that_is_nested_without_end(tmp_path: Path) -> None:
    (tmp_path / "styles.toml").write_text("[chalk]\ntitle = " + "[" * 5000 + "]" * 5000)
    with pytest.raises(PackError, match=r"styles\.toml: .*nested too deeply"):
        Library.load(tmp_path)
