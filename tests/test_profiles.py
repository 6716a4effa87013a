"""Profiles: the book's own and a reader's; every mistake in a file is named with its line."""

from pathlib import Path

import pytest
from test_book import write_notebook, write_profiles

from support import book, profiles, runner
from support.pages import assemble, build
from support.profiles import BookError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def root(tmp_path):
    """A small repository with one notebook."""
    (tmp_path / "requirements.lock").write_text("torch==2.13.0\n")
    write_notebook(tmp_path / "notebooks" / "01_one.ipynb", "raise SystemExit")
    return tmp_path


def test_unknown_profile_names_the_known_ones(root):
    write_profiles(root, "smoke: {}\nbook: {}\n")
    with pytest.raises(BookError, match="unknown profile 'smok'.*smoke, book"):
        profiles.read_profiles(root, "smok")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("smoke: {02_two: {n_images: 2}}", "line 1: there is no notebook '02_two'"),
        ("smoke: {01_one: {n_image: 2}}", "01_one: unknown parameter 'n_image'; did you mean 'n_images'"),
        ("smoke: {01_one: {n_images: two}}", "01_one: parameter 'n_images' must be an int"),
    ],
)
def test_mistakes_in_a_profile_are_found_before_anything_runs(root, text, said):
    write_notebook(root / "notebooks" / "01_one.ipynb", "raise SystemExit")
    write_profiles(root, text)
    with pytest.raises(BookError, match=said):
        runner.run("smoke", root)


WRONG = {
    "": "unknown profile 'smoke'",
    "smoke: {01_one: {n_images: 2}\n": "line 2: ",
    "smoke:\n  01_one: {n_images: 2}\n other: {}\n": "line 3: ",
    "smoke:\n\t01_one: {}\n": "line 2: ",
    "- smoke\n": "line 1: the file must hold profiles as `name: value`",
    "smoke\n": "line 1: the file must hold profiles",
    "smoke: 3\n": "line 1: smoke must hold notebooks",
    "smoke: [01_one]\n": "line 1: smoke must hold notebooks",
    "smoke:\n  01_one: 5\n": "line 2: smoke → 01_one must hold parameters",
    "smoke:\n  01_one: [n_images, 2]\n": "line 2: smoke → 01_one must hold parameters",
    "smoke:\n  01_one:\n    n_images: {a: 1}\n": "line 3: n_images must be a number, a text or a list",
    "smoke:\n  01_one:\n    n_images: [[1]]\n": "line 3: n_images must be a number, a text or a list",
    "smoke:\n  01_one:\n    n_images: 2020-13-45\n": "line 3: n_images cannot be read: month must be in 1",
    "smoke:\n  01_one:\n    n_images: !!int x\n": "line 3: n_images cannot be read",
    "smoke:\n  01_one:\n    n_images: !!timestamp x\n": "line 3: n_images cannot be read",
    "smoke:\n  01_one:\n    n_images: !!bool x\n": "line 3: n_images cannot be read",
    "smoke:\n  01_one:\n    n_images: !!int ''\n": "line 3: n_images cannot be read",
    "smoke:\n  01_one:\n    n_images: 2020-01-01\n": "line 3: 01_one: parameter 'n_images' must be an int",
    "smoke:\n  01_one:\n    scale: 1.0\n    n_images: two\n": "line 4: 01_one: parameter 'n_images' must be an int",
    "smoke:\n  01_one:\n    scale: 1.0\n    n_imagse: 2\n": "line 4: 01_one: unknown parameter 'n_imagse'; did you",
    "smoke:\n  01_one: {}\n  01_two: {}\n": "line 3: there is no notebook '01_two'; did you mean '01_one'",
    "smoke: {}\nbook: {}\nsmoke: {}\n": "line 3: 'smoke' stands twice in the file",
    "smoke:\n  01_one: {}\n  01_one: {}\n": "line 3: '01_one' stands twice in smoke",
    "smoke:\n  01_one:\n    n_images: 1\n    n_images: 2\n": "line 4: 'n_images' stands twice in smoke → 01_one",
    "smoke: {}\n1: {}\n": "line 2: a name in the file is not text: put it in quotes",
    "smoke: {}\nyes: {}\n": "line 2: a name in the file is not text",
    "smoke: {}\n? [a]\n: {}\n": "line 2: a name in the file is not text",
    "smoke: {}\n? {a: 1}\n: {}\n": "line 2: a name in the file is not text",
    "smoke: {}\n---\nbook: {}\n": "line 2: ",
    "smoke: *nothing\n": "line 1: found undefined alias",
    "smoke: &a\n  01_one: *a\n": "line 2: ",
    "smoke:\n  01_one: {n_images: !!python/object/apply:os.getcwd []}\n": "line 2: ",
    "smoke:\n  <<: 3\n": "line 2: ",
    "smoke: {}\n\x07: {}\n": "line 2: the character '\\x07' is not allowed",
    "smoke: " + "[" * 5000: "nested too deeply",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_mistake_in_a_file_is_named_with_its_line(root, text):
    write_profiles(root, text)
    with pytest.raises(BookError) as refused:
        profiles.read_profiles(root, "smoke")
    assert str(root / "notebooks" / "profiles.yml") in str(refused.value)
    assert WRONG[text] in str(refused.value)


def test_a_file_that_is_no_text_or_not_there(root):
    path = root / "notebooks" / "profiles.yml"
    with pytest.raises(BookError, match="profiles.yml cannot be read: No such file"):
        profiles.read_profiles(root, "smoke")
    path.write_bytes(b"smoke: {}\nb\xff: {}\n")
    with pytest.raises(BookError, match="profiles.yml, line 2: not UTF-8"):
        profiles.read_profiles(root, "smoke")
    path.unlink()
    path.mkdir()
    with pytest.raises(BookError, match="profiles.yml cannot be read: Is a directory"):
        profiles.read_profiles(root, "smoke")


def test_what_yaml_offers_still_works(root):
    """Byte order mark, comments, anchors, merges: the own value wins over the merged one."""
    (root / "notebooks" / "profiles.yml").write_bytes(
        b"\xef\xbb\xbf# mine\nsmoke: &s\n  01_one: &o {n_images: 2, scale: 1}\n"
        b"book:\n  <<: *s\npaper:\n  01_one: {<<: *o, n_images: 3}\nempty:\n"
    )
    found = {name: profiles.read_profiles(root, name) for name in ("smoke", "book", "paper", "empty")}
    values = [{"n_images": 2, "scale": 1}] * 2 + [{"n_images": 3, "scale": 1}, {}]
    assert [list(plan.values()) for plan in found.values()] == [[value] for value in values]


@pytest.mark.parametrize(
    "name",
    ["../../../x", "/tmp/x", "", ".", "..", "a/b", "a\\b", ".hidden", "x.", "-p", "nul\0", "new\nline", "a b", "x" * 61]
    + ["x" * 5000, "~", "C:", "*", None, 3],
)
def test_a_profile_stays_in_its_folder(root, name):
    with pytest.raises(BookError, match="is no name for a profile"):
        profiles.folder_of(root, name)
    for function in (assemble, build):
        with pytest.raises(BookError, match="is no name for a profile"):
            function(name, root)
    assert sorted(path.name for path in root.iterdir()) == ["notebooks", "requirements.lock"]


@pytest.mark.parametrize("name", ["smoke", "7", "über-1.2_b", "課程", "x" * 60, "課" * 60])
def test_names_of_profiles(root, name):
    folder = profiles.folder_of(root, name)
    folder.mkdir(parents=True)
    assert folder.resolve().parent == (root / "book" / "_build").resolve()


def test_a_bad_name_in_a_file_is_named_with_its_line(root):
    write_profiles(root, "smoke: {}\n'../../../x': {}\n")
    with pytest.raises(BookError, match=r"profiles.yml, line 2: '../../../x' is no name for a profile"):
        runner.run("../../../x", root)
    assert sorted(path.name for path in root.iterdir()) == ["notebooks", "requirements.lock"]


def test_profiles_of_the_reader_lie_anywhere(root, tmp_path_factory):
    write_profiles(root, "smoke: {01_one: {n_images: 2}}")
    mine = tmp_path_factory.mktemp("elsewhere") / "my profiles.yml"
    mine.write_text("mine: {01_one: {n_images: 9}}\nsmoke: {}\n")
    assert list(profiles.read_profiles(root, "mine", file=mine).values()) == [{"n_images": 9}]
    assert "n_images = 9" in runner.dry_run("mine", root, file=mine)
    with pytest.raises(BookError, match="line 2: the book has a profile 'smoke' already; choose another name"):
        profiles.read_profiles(root, "smoke", file=mine)
    with pytest.raises(BookError, match="unknown profile 'book'; the profiles in .*my profiles.yml are: mine, smoke"):
        profiles.read_profiles(root, "book", file=mine)
    assert list(profiles.read_profiles(root, "smoke", file=root / "notebooks" / "profiles.yml").values()) != []


def test_table_of_parameters(root):
    write_profiles(root, "smoke: {01_one: {n_images: 2}}\nbook: {01_one: {keep: false, n_images: 300}}\n")
    assert profiles.table(root).splitlines() == [
        "chapter  parameter  default     smoke  book   help",
        "01_one   method     'saliency'                saliency or epsilon_lrp",
        "01_one   n_images   4           2      300    how many",
        "01_one   scale      0.5                       of the map",
        "01_one   keep       True               False  keep channels",
    ]


def test_list_on_the_command_line(capsys):
    book.main(["--list"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["chapter", "parameter", "default", "smoke", "book", "paper", "help"]
    assert {line.split()[0] for line in lines[1:]} == {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"cells": [3]}', '{"cells": [{"cell_type": "code"}]}'])
def test_a_damaged_notebook_is_named(root, content):
    write_profiles(root, "smoke: {}")
    (root / "notebooks" / "01_one.ipynb").write_text(content)
    with pytest.raises(BookError, match=r"01_one\.ipynb cannot be read"):
        profiles.read_profiles(root, "smoke")
