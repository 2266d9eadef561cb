"""Against Python's own tarfile: the same members at the same places, whatever the dialect."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
from pathlib import Path

import pytest

from velm.data.shards.tar import FileSlice, index_tar
from velm.errors import DataError

CONTENTS = {
    "a.jpg": b"x" * 1000,
    "./folder/b.txt": "Ωμέγα".encode(),
    "empty": b"",
    f"{'deep/' * 15}{'long' * 20}.jpg": b"y" * 512,
    "ζ.txt": b"z",
}


def write(path: Path, contents: dict[str, bytes], dialect: int = tarfile.PAX_FORMAT) -> str:
    with tarfile.open(path, "w", format=dialect) as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return str(path)


@pytest.mark.parametrize("dialect", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_where_tarfile_finds_them(tmp_path: Path, dialect: int) -> None:
    path = write(tmp_path / "a.tar", CONTENTS, dialect)
    index = index_tar(path)
    with tarfile.open(path) as tar:
        found = [(m.name.removeprefix("./"), m.offset_data, m.size) for m in tar]
    rows = zip(index.names.to_pylist(), index.offsets.tolist(), index.sizes.tolist(), strict=True)
    assert list(rows) == found
    read = [FileSlice(path, offset, size)() for _, offset, size in found]
    assert read == list(CONTENTS.values())
    assert index.broken is None


def test_a_name_too_long_for_any_header(tmp_path: Path) -> None:
    name = f"{'n' * 300}.jpg"
    for dialect in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        assert index_tar(write(tmp_path / "a.tar", {name: b"x"}, dialect)).names.to_pylist() == [name]


def test_sizes_beyond_eight_gigabytes_are_read(tmp_path: Path) -> None:
    header = tarfile.TarInfo("big")
    header.size = 9 << 30
    for dialect in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = tmp_path / "a.tar"
        with open(path, "wb") as file:  # a file with a hole in place of nine gigabytes
            file.write(header.tobuf(dialect))
            file.seek(9 << 30, 1)
            file.write(bytes(1024))
        index = index_tar(str(path))
        assert index.sizes.tolist() == [9 << 30]
        assert index.broken is None


def test_folders_and_links_are_no_files(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, kind in (("folder", tarfile.DIRTYPE), ("link", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "a"
            tar.addfile(member)
    write_more = tmp_path / "a.tar"
    with tarfile.open(write_more, "a") as tar:
        tar.addfile(tarfile.TarInfo("file"))
    assert index_tar(str(write_more)).names.to_pylist() == ["file"]


def test_wherever_it_is_cut_the_complete_members_are_kept(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "a.tar", CONTENTS, tarfile.PAX_FORMAT))
    whole, index = path.read_bytes(), index_tar(str(path))
    ends = index.offsets + index.sizes
    for length in range(512, int(ends[-1]) + 1, 100):
        path.write_bytes(whole[:length])
        cut = index_tar(str(path))
        assert cut.broken == f"the shard is cut off: it ends after {len(cut.names)} complete members"
        assert len(cut.names) == (ends <= length).sum()


@pytest.mark.parametrize("name", ["../a.jpg", "a/../../b.jpg", "/etc/passwd"])
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    index = index_tar(write(tmp_path / "bad.tar", {"a.jpg": b"", name: b"", "b.jpg": b""}))
    assert index.refused == (name,)
    assert index.names.to_pylist() == ["a.jpg", "b.jpg"]


def test_what_is_no_tar_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"just text" * 200)
    with pytest.raises(DataError, match="is not a tar file"):
        index_tar(str(path))
    path.write_bytes(b"too short")
    with pytest.raises(DataError, match="is not a tar file"):
        index_tar(str(path))
    path.write_bytes(gzip.compress(Path(write(tmp_path / "b.tar", CONTENTS)).read_bytes()))
    with pytest.raises(DataError, match=r"is compressed, .* gunzip"):
        index_tar(str(path))


def test_damage_is_named_by_its_place(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "a.tar", CONTENTS, tarfile.USTAR_FORMAT))
    content = bytearray(path.read_bytes())
    content[1536] ^= 255  # the second header, after 512 bytes of the first and 1000 of its member
    path.write_bytes(content)
    index = index_tar(str(path))
    assert index.broken == "the shard is damaged after byte 1536: there is no header of a member"
    assert index.names.to_pylist() == ["a.jpg"]


@pytest.mark.parametrize("record", [b"0 path=x\n", b"seven path=x\n"])
def test_an_extended_header_of_nonsense_is_damage(tmp_path: Path, record: bytes) -> None:
    extended = tarfile.TarInfo("x")
    extended.type, extended.size = tarfile.XHDTYPE, len(record)
    path = tmp_path / "a.tar"
    path.write_bytes(extended.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0") + bytes(1024))
    assert "the shard is damaged" in str(index_tar(str(path)).broken)


def test_a_stretch_is_equal_after_its_journey_to_a_worker(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"0123456789")
    stretch = FileSlice(str(path), 2, 3)
    assert pickle.loads(pickle.dumps(stretch)) == stretch
    assert stretch() == b"234"
    with pytest.raises(DataError, match="ends before byte 12"):
        FileSlice(str(path), 5, 7)()
