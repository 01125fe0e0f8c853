"""Only the path of an existing small image or document counts."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest

from catty.client.paste import file_in


@pytest.mark.parametrize(
    "name", ["a.png", "with space.PDF", "ümläut.md", "quo'te.txt", "per%cent.json", "back\\slash.csv"]
)
@pytest.mark.parametrize(
    "form", ["{}", " {} ", "'{}'", '"{}"', "file://{url}", "file://localhost{url}", "{escaped}"], ids=str
)
def test_paths_as_terminals_paste_them(tmp_path: Path, name: str, form: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"x")
    escaped = "".join(f"\\{letter}" if letter in " '\\%" else letter for letter in str(path))
    text = form.format(path, url=quote(str(path)), escaped=escaped)
    assert file_in(text.encode()) == path


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "a.png",
        "./a.png",
        "/nowhere/a.png",
        "{d}/b.exe",
        "{d}",
        "{d}/a.png\n{d}/a.png",
        "{d}/a.png x",
        "{d}/big.png",
        "/\0",
    ],
)
def test_other_texts(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "b.exe").touch()
    with (tmp_path / "big.png").open("wb") as big:
        big.truncate(10 * 1024 * 1024 + 1)
    assert file_in(text.replace("{d}", str(tmp_path)).encode()) is None
