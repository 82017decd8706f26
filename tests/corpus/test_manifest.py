"""Manifests in every form, and all their problems in one message."""

import os
import re

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdml.corpus.manifest import Item, read_manifest, take_shard


@pytest.fixture
def slides(tmp_path):
    for name in ("a.svs", "b.tif", "c.jpg", "notes.txt", ".hidden.png"):
        (tmp_path / name).write_text(name)
    return tmp_path


def names(items):
    return [item.name for item in items]


def test_a_folder_a_pattern_a_list_and_one_path(slides, monkeypatch):
    assert names(read_manifest(slides)) == ["a", "b", "c"]
    assert names(read_manifest(str(slides / "*.svs"))) == ["a"]
    assert names(read_manifest([slides / "c.jpg", str(slides / "a.svs")])) == ["c", "a"]
    monkeypatch.chdir(slides)
    assert read_manifest("b.tif") == [Item("b", slides / "b.tif")]


def test_a_csv_is_relative_to_itself(slides, monkeypatch, tmp_path_factory):
    table = slides / "slides.csv"
    table.write_text("path,name,group,um_per_px\na.svs, biopsy 1,P1,0.5\nb.tif,007,P2,\n", encoding="utf-8-sig")
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert read_manifest(table) == [
        Item("biopsy 1", slides / "a.svs", "P1", 0.5),
        Item("007", slides / "b.tif", "P2", None),
    ]


def test_a_dataframe_gives_numbers_as_names_and_groups(slides):
    table = pd.DataFrame({"path": [slides / "a.svs", slides / "b.tif"], "name": [1, 2], "um_per_px": [0.25, None]})
    assert read_manifest(table) == [Item("1", slides / "a.svs", None, 0.25), Item("2", slides / "b.tif", None, None)]


def test_all_problems_are_told_at_once(slides):
    (slides / "link.svs").symlink_to(slides / "a.svs")
    table = pd.DataFrame(
        {
            "path": ["a.svs", "link.svs", "gone.svs", "c.jpg", None, "b.tif"],
            "name": ["x", "y", "z", "X", "w", "../escape"],
            "um_per_px": [0.5, -1, "half", 1, 1, 1],
        }
    )
    table["path"] = [None if path is None else str(slides / path) for path in table["path"]]
    with pytest.raises(ValueError, match="nothing was started") as caught:
        read_manifest(table)
    for told in (
        "'path' has 1 empty cell (rows 5)",
        "-1",
        "'half'",
        "'x' and 'X'",
        "2 times",
        "'../escape'",
        "gone.svs",
    ):
        assert told in str(caught.value), told


def test_missing_files_alone_are_file_not_found(slides):
    with pytest.raises(FileNotFoundError, match=r"(?s)2 problems.*one\.svs.*two\.svs"):
        read_manifest([slides / "one.svs", slides / "a.svs", slides / "two.svs"])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("file,name\na.svs,x\n", "(?s)'file' is unknown .*'path' is missing"),
        ("path,groupe\na.svs,x\n", "'groupe' is unknown .*'group'"),
        ("path,name\na.svs,\n", "'name' has 1 empty cell"),
        ("path,name\na.svs,x,y\n", "more cells"),
        ("path,name\na.svs,x\nb.tif,y,z\n", "no table"),
        ("path\n", "names no slide"),
        ("", "no table"),
    ],
)
def test_a_csv_that_is_no_manifest(slides, content, told):
    table = slides / "slides.csv"
    table.write_text(content)
    with pytest.raises(ValueError, match=told):
        read_manifest(table)


def test_columns_of_several_types(slides):
    with pytest.raises(ValueError, match="'group' has values of the types text and whole number"):
        read_manifest(pd.DataFrame({"path": [slides / "a.svs", slides / "b.tif"], "group": ["P1", 2]}))
    with pytest.raises(ValueError, match="'name' has values of the types float"):
        read_manifest(pd.DataFrame({"path": [slides / "a.svs"], "name": [1.5]}))


@pytest.mark.parametrize(("slides_", "kind"), [(3, TypeError), ([1], TypeError), ("no such folder", FileNotFoundError)])
def test_what_is_no_manifest(slides_, kind):
    with pytest.raises(kind, match="`slides`"):
        read_manifest(slides_)


def test_folders_and_patterns_without_slides(tmp_path):
    with pytest.raises(FileNotFoundError, match="no files with the suffixes"):
        read_manifest(tmp_path)
    with pytest.raises(FileNotFoundError, match="no file matches"):
        read_manifest(tmp_path / "*.svs")


@given(st.text(max_size=12))
def test_every_name_that_is_accepted_stays_in_its_folder(tmp_path_factory, name):
    folder = tmp_path_factory.getbasetemp() / "names"
    folder.mkdir(exist_ok=True)
    image = folder / "image.png"
    image.touch()
    try:
        (item,) = read_manifest(pd.DataFrame({"path": [image], "name": [name]}))
    except ValueError as error:
        assert re.search("cannot be that of a file|empty cell", str(error))
        return
    made = folder / f"{item.name}.json"
    made.touch()  # the system takes it
    assert made.parent.samefile(folder) and made.name in os.listdir(folder)
    made.unlink()


@given(st.integers(0, 40), st.integers(1, 9), st.randoms())
def test_shards_are_even_and_do_not_depend_on_the_order(n, parts, random):
    from pathlib import Path

    items = [Item(f"s{i}", Path(f"/s{i}")) for i in range(n)]
    mixed = random.sample(items, n)
    shards = [take_shard(mixed, f"{i}/{parts}") for i in range(1, parts + 1)]
    assert sorted(sum(map(names, shards), [])) == sorted(names(items))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    assert shards == [take_shard(items, f"{i}/{parts}") for i in range(1, parts + 1)]


@pytest.mark.parametrize("shard", ["0/4", "5/4", "3", "a/b", "-1/4", "1/0", "1.5/4", 3, "", "1/4/2"])
def test_shards_that_are_none(shard):
    with pytest.raises(ValueError, match="`shard` is .*'1/16' to '16/16'"):
        take_shard([], shard)
