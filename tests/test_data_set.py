"""A data set by its hub's id and one of its configurations, from a server that speaks as the hub does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from data_set_server import NAME, ROWS, data_set_hub
from pydantic import ValidationError

from compress.corpus import CorpusRecipe

ROOT = Path(__file__).parents[1]
READ = """
import json, sys
from pathlib import Path
from compress.corpus import CorpusRecipe, read_documents
from compress.errors import CompressError
recipe = CorpusRecipe(**json.loads(sys.argv[1]))
try:
    print(json.dumps([document.text for document in read_documents(recipe, Path.cwd())]))
except CompressError as error:
    sys.exit(str(error))
"""
SIZES = {"windows": 1, "length": 16}


def read(cache, **recipe):
    """What a process of its own reads, since the library looks up the hub's address when it is imported."""
    with data_set_hub() as address:
        env = os.environ | {"PYTHONPATH": str(ROOT), "HF_ENDPOINT": address, "HF_HOME": str(cache)}
        command = [sys.executable, "-c", READ, json.dumps(recipe | SIZES)]
        return subprocess.run(command, cwd=cache, env=env, capture_output=True, text=True, check=False)


def test_a_data_set_s_configuration_is_read_by_its_name(tmp_path):
    done = read(tmp_path, source=NAME, name="wikitext-2-raw-v1", split="test")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ROWS["wikitext-2-raw-v1"]


def test_rows_that_are_pieces_of_one_text_are_joined_by_blank_lines(tmp_path):
    done = read(tmp_path, source=NAME, name="wikitext-2-raw-v1", split="test", joined=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [" = Robert = \n\n\n He acts . \n"]


def test_rows_of_two_kinds_are_no_pieces_of_one_text(tmp_path):
    rows = [{"text": "a", "domain": "news"}, {"text": "b", "domain": "chat"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = read(tmp_path, source="a.jsonl", joined=True)
    assert done.returncode == 1
    assert "a.jsonl: rows of chat, news are no pieces of one text; leave joined out" in done.stderr


def test_a_data_set_of_several_configurations_asks_for_one(tmp_path):
    done = read(tmp_path, source=NAME, split="test")
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith(NAME)]
    assert "as a data set it does not load (" in line
    assert "Config name is missing" in line


def test_a_file_has_no_configuration():
    with pytest.raises(ValidationError, match=r"a\.jsonl is a file and has no configuration x; remove name"):
        CorpusRecipe(source="a.jsonl", name="x", **SIZES)
    with pytest.raises(ValidationError, match="of a mix, name must stand in each part of source"):
        CorpusRecipe(source=[{"source": NAME}], name="x", **SIZES)
    both = [{"source": NAME, "name": name} for name in ROWS]
    assert [part.name for part in CorpusRecipe(source=both, **SIZES).parts] == list(ROWS)
