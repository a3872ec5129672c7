"""Fetches what the peers need beyond torch and transformers, for a machine that cannot reach a registry.

    python benchmarks/peer_wheels.py WHEELS                          # for Python 3.12 on x86-64 Linux; says the size
    python3 -m pip install --no-index --no-deps --target SITE WHEELS/*.whl && export PYTHONPATH=SITE      # there

Taken as present there: torch, transformers 5.17, accelerate, safetensors, tokenizers, huggingface_hub, numpy, pandas,
pyarrow, fsspec, aiohttp, xxhash, pillow, psutil, PyYAML, requests, tqdm, rich, py-cpuinfo, nvidia-ml-py. All peers
take transformers 5.17.0, so one folder serves all. LMDeploy's wheel is 107 MB, nearly all of it an engine that
`auto_awq` never loads: only its Python files are kept, unchanged. No stand-in for any module is made.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PEERS = ["lmdeploy==0.18.0", "auto-round==0.15.1", "llmcompressor==0.14.0.1", "compressed-tensors==0.19.0"]
PYDANTIC = ["pydantic==2.14.3", "pydantic-core==2.50.4", "annotated-types==0.8.0", "typing-inspection==0.4.5"]
DATASETS = ["datasets==5.2.0", "dill==0.4.1", "multiprocess==0.70.19"]  # imported by two peers, fed nothing here
MMENGINE = ["mmengine-lite==0.10.7", "addict==2.4.0", "yapf==0.43.0", "platformdirs==4.14.7", "termcolor==3.3.0"]
OTHERS = ["loguru==0.7.3", "pybase64==1.5.1", "typing-extensions==4.16.0"]  # the last: pydantic wants a recent one
GLIBC = ("2_28", "2_27", "2_17", "2_5")  # pip takes each by its exact name


def fetch(requirements: list[str], folder: Path, python: str) -> None:
    """The wheels of exactly these requirements, none of theirs."""
    platforms = [f"--platform=manylinux_{glibc}_x86_64" for glibc in GLIBC] + ["--platform=manylinux2014_x86_64"]
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(folder)]
    target = [f"--python-version={python}", "--implementation=cp", *platforms]
    subprocess.run([*pip, *target, *requirements], check=True)


def slimmed(wheel: Path, folder: Path) -> None:
    """The wheel without its compiled libraries, for any Python: only modules and what describes them."""
    name = re.sub(r"-cp\d+-cp\d+-.*\.whl$", "-py3-none-any.whl", wheel.name)
    with zipfile.ZipFile(wheel) as whole, zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as slim:
        for entry in whole.namelist():
            if entry.endswith((".py", ".dist-info/METADATA", ".dist-info/WHEEL", ".dist-info/RECORD")):
                slim.writestr(entry, whole.read(entry))


def main() -> None:
    """Fills the folder and says what it weighs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--python", default="3.12", help="of the machine that they are for")
    args = parser.parse_args()
    if args.out.exists() and any(args.out.iterdir()):
        raise SystemExit(f"{args.out}: not empty; two versions of one package would stop the installation")
    args.out.mkdir(parents=True, exist_ok=True)
    fetch([*PEERS[1:], *PYDANTIC, *DATASETS, *MMENGINE, *OTHERS], args.out, args.python)
    with tempfile.TemporaryDirectory() as folder:
        fetch(PEERS[:1], Path(folder), args.python)
        slimmed(next(Path(folder).glob("*.whl")), args.out)
    sizes = {wheel.name: wheel.stat().st_size for wheel in sorted(args.out.glob("*.whl"))}
    for name, size_bytes in sizes.items():
        print(f"{size_bytes:10,}  {name}")
    print(f"{sum(sizes.values()):10,}  bytes in {len(sizes)} wheels")


if __name__ == "__main__":
    main()
