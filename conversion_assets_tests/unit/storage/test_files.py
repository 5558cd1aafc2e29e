import gzip
import os
import pwd
import tempfile
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pytest

from conversion_assets.domain.errors import InputError
from conversion_assets.storage import files
from conversion_assets.storage.files import ROW, read_rows


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content)
    return path


def rows_of(path):
    return read_rows(path, json_columns=["m"]).drop(ROW).to_dicts()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"id,a\n007,x\n", [{"id": "007", "a": "x"}]),
        (b"\xef\xbb\xbfid,a\r\n1,2\r\n", [{"id": "1", "a": "2"}]),
        (b'id,a\n1,"x\ny,""z"""\n', [{"id": "1", "a": 'x\ny,"z"'}]),
        (b"id,a\n1\n", [{"id": "1", "a": None}]),
        (b"id,a\n\n1,2\n\n", [{"id": "1", "a": "2"}]),
        (b"id,a\n", []),
        ("id\nÅ😀\n".encode(), [{"id": "Å😀"}]),
    ],
)
def test_csv(tmp_path, content, expected):
    assert rows_of(write(tmp_path, "x.csv", content)) == expected
    assert rows_of(write(tmp_path, "x.csv.gz", gzip.compress(content))) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"id":"007"}\n', [{"id": "007"}]),
        (b'\xef\xbb\xbf{"id":1}\r\n\r\n  \n{"id":"2"}', [{"id": "1"}, {"id": "2"}]),
        (b'{"x":1}\n{"x":"a"}\n{"x":{"y":1}}\n', [{"x": "1"}, {"x": "a"}, {"x": '{"y": 1}'}]),
        (
            b'{"m":{"a\\"b":"l\\nine \\\\ \\"q\\"","n":null}}',
            [{"m": '{"a\\"b":"l\\nine \\\\ \\"q\\"","n":null}'}],
        ),
        (b'{"m":"{\\"q\\":1}"}\n{}\n', [{"m": '{"q":1}'}, {"m": None}]),
        (b"", []),
        (b"\n \n", []),
    ],
)
def test_jsonl(tmp_path, content, expected):
    assert rows_of(write(tmp_path, "x.jsonl", content)) == expected
    assert rows_of(write(tmp_path, "x.ndjson", content)) == expected
    assert rows_of(write(tmp_path, "x.jsonl.gz", gzip.compress(content))) == expected


def test_rows_are_numbered_as_a_person_counts(tmp_path):
    assert read_rows(write(tmp_path, "x.csv", b"id\n\na\n"))[ROW].to_list() == [2]
    assert read_rows(write(tmp_path, "x.jsonl", b'{"id":1}\n\n{"id":2}\n'))[ROW].to_list() == [1, 3]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.csv", b"", "empty"),
        ("x.csv", b"\n\n", "empty"),
        ("x.csv", b"id,a\n1,2,3\n", "more fields"),
        ("x.csv", b"id,id\n1,2\n", "twice in its header: id"),
        ("x.csv", b"id\n\xff\n", "utf-8"),
        ("x.csv", b'id,a\n"1,2\n', "not readable"),
        ("x.csv.gz", b"plain", "gzip"),
        ("x.csv.gz", gzip.compress(b"id\n1\n", mtime=0)[:-5], "ended"),
        ("x.jsonl", b'{"id":1}\n{"id":', "line 2 is not valid JSON"),
        ("x.jsonl", b'{"id":1}\n[1]\n', "line 2 is not a JSON object"),
        ("x.jsonl", b'{"id":1} {"id":2}\n', "line 1 is not valid JSON"),
        ("x.jsonl", b'{"id":"\xff"}\n', "UTF-8 at byte 7"),
        ("x.parquet", b"", "not readable as parquet"),
        ("x.parquet", b"PAR1 and no more PAR1", "not readable as parquet"),
        ("x.xlsx", b"", "unknown kind"),
        ("x.parquet.gz", b"", "unknown kind"),
        ("x", b"", "unknown kind"),
    ],
)
def test_a_damaged_file_is_one_line_that_names_it(tmp_path, name, content, words):
    path = write(tmp_path, name, content)
    with pytest.raises(InputError) as error:
        read_rows(path)
    message = str(error.value)
    assert words in message
    assert str(path) in message
    assert "\n" not in message


def test_a_truncated_parquet_file(tmp_path):
    path = tmp_path / "x.parquet"
    pl.DataFrame({"id": [str(i) for i in range(10_000)]}).write_parquet(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match="not readable as parquet"):
        read_rows(path)


def test_a_folder_and_a_missing_file(tmp_path):
    with pytest.raises(InputError, match="is a folder"):
        read_rows(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        read_rows(tmp_path / "x.csv")


@contextmanager
def as_an_ordinary_user():
    """Root may read everything, so it is nobody for a while; others stay who they are."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(pwd.getpwnam("nobody").pw_uid)
    try:
        yield
    finally:
        if user == 0:
            os.seteuid(user)


def test_a_file_without_permission():
    # Not under tmp_path: its parent folders are closed to nobody, and the file itself is the point.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = write(Path(folder), "x.csv", b"id\n1\n")
        path.chmod(0)
        with as_an_ordinary_user(), pytest.raises(InputError, match="Permission denied"):
            read_rows(path)


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAXIMUM_UNPACKED_BYTES", 1_000_000)
    path = write(tmp_path, "x.jsonl.gz", gzip.compress(b" " * 5_000_000))
    with pytest.raises(InputError, match="unpacks to more than 1,000,000 bytes"):
        read_rows(path)


def test_a_huge_line(tmp_path):
    text = "x" * 20_000_000
    path = write(tmp_path, "x.jsonl", b'{"id":"1","m":{"a":"' + text.encode() + b'"}}\n')
    assert read_rows(path, json_columns=["m"])["m"][0] == '{"a":"' + text + '"}'
    path = write(tmp_path, "x.csv", b'id,m\n1,"' + text.encode() + b'"\n')
    assert read_rows(path)["m"][0] == text


def test_a_line_that_only_looks_like_json_is_kept_as_it_is(tmp_path):
    # A lone surrogate is no character: the row must be refused, not lose its content unseen.
    path = write(tmp_path, "x.jsonl", b'{"id":"1","m":{"a":"\\ud800"}}\n')
    assert rows_of(path)[0]["m"] == '{"id":"1","m":{"a":"\\ud800"}}'
