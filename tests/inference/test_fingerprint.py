from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from bul.errors import ModelUnavailable
from bul.inference.fingerprint import file_digest, instruction_set, rope_of


def test_a_digest_is_the_files_sha256_the_first_and_the_second_time(tmp_path: Path) -> None:
    file = tmp_path / "model"
    file.write_bytes(b"weights")
    expected = hashlib.sha256(b"weights").hexdigest()
    assert file_digest(file, tmp_path / "digests") == expected
    assert file_digest(file, tmp_path / "digests") == expected


def test_a_remembered_digest_is_used(tmp_path: Path) -> None:
    file, digests = tmp_path / "model", tmp_path / "digests"
    file.write_bytes(b"weights")
    file_digest(file, digests)
    (note,) = digests.iterdir()
    note.write_text("0" * 64)
    assert file_digest(file, digests) == "0" * 64


@pytest.mark.parametrize("damage", ["", "zz", "0" * 63, "\udcff", "é" * 64])
def test_a_damaged_note_is_not_used(tmp_path: Path, damage: str) -> None:
    file, digests = tmp_path / "model", tmp_path / "digests"
    file.write_bytes(b"weights")
    right = file_digest(file, digests)
    (note,) = digests.iterdir()
    note.write_bytes(damage.encode("utf-8", "surrogateescape"))
    assert file_digest(file, digests) == right


def test_a_file_of_the_same_size_and_time_but_other_bytes_is_hashed_again(tmp_path: Path) -> None:
    file, digests = tmp_path / "model", tmp_path / "digests"
    file.write_bytes(b"weights")
    times = file.stat()
    before = file_digest(file, digests)
    file.write_bytes(b"WEIGHTS")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert file_digest(file, digests) != before


def test_a_folder_that_cannot_be_written_only_costs_time(tmp_path: Path) -> None:
    file, blocked = tmp_path / "model", tmp_path / "a-file"
    file.write_bytes(b"weights")
    blocked.write_text("")
    assert file_digest(file, blocked / "digests") == hashlib.sha256(b"weights").hexdigest()


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="cannot read"):
        file_digest(tmp_path / "none", tmp_path)


def test_the_instruction_set_keeps_vector_units_only(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor : 0\nflags\t\t: fpu avx2 hypervisor smep avx512f fma f16c\n")
    assert instruction_set(cpuinfo).split()[1:] == ["avx2", "avx512f", "f16c", "fma"]


def test_the_instruction_set_does_not_depend_on_the_order_of_the_flags(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_text("Features : asimd sve\n")
    second.write_text("Features : sve asimd\n")
    assert instruction_set(first) == instruction_set(second)


def test_a_machine_without_cpuinfo_still_has_a_name(tmp_path: Path) -> None:
    assert instruction_set(tmp_path / "none").strip()


def test_rope_names_every_rope_setting_and_no_other() -> None:
    metadata = {"llama.rope.freq_base": "10", "llama.rope.scaling.type": "yarn", "a.b": "c"}
    assert rope_of(metadata) == "llama.rope.freq_base=10 llama.rope.scaling.type=yarn"
