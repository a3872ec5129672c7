"""A safetensors file is there whole, or as it was before."""

import pytest
import torch
from full_disk import full_disk
from safetensors import safe_open

from compress.checkpoint.whole_file import write_whole
from compress.errors import CompressError


def test_what_is_written_comes_back_with_what_was_said_about_it(tmp_path):
    path, strided = tmp_path / "some.safetensors", torch.arange(6.0).view(2, 3).t()
    write_whole(path, {"strided": strided}, {"of": "here"})
    with safe_open(path, "pt") as file:
        assert torch.equal(file.get_tensor("strided"), strided)
        assert file.metadata() == {"of": "here"}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("kept", "told"), [(None, ""), ("the rest stays", ", the rest stays")])
def test_what_finds_no_room_leaves_what_was_there_and_is_told_in_one_line(tmp_path, kept, told):
    path = tmp_path / "some.safetensors"
    write_whole(path, {"before": torch.ones(4)})
    before = path.read_bytes()
    with full_disk() as fill:
        fill(512)
        with pytest.raises(CompressError) as error:
            write_whole(path, {"after": torch.ones(4096)}, kept=kept)
    assert str(error.value).startswith(f"{path}: not written (")
    assert str(error.value).endswith(f"); free space and run again{told}")
    assert "\n" not in str(error.value)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_tensors_that_cannot_be_stored_are_not_taken_for_a_full_disk(tmp_path):
    shared = torch.ones(4)
    with pytest.raises(RuntimeError, match="share memory"):
        write_whole(tmp_path / "some.safetensors", {"one": shared, "other": shared})
    assert list(tmp_path.iterdir()) == []
