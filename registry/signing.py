"""Who vouches for an artifact: a detached OpenSSF model signature over every file of it, manifest included.

The signature lies beside the folder, or in it as model.sig where it is shipped, and other tools that know the format
(the model-signing program among them) check it too. The keys are elliptic-curve keys in PEM, as
`openssl ecparam -name prime256v1 -genkey -noout -out key.pem` makes them; no network is asked.
"""

import os
from pathlib import Path
from typing import Any

from registry.errors import RegistryError
from registry.manifest import RELEASE, SIGNATURE, verify

REMEDY = "use the key's other half, or a copy of the artifact that nobody altered"


def signature_of(folder: Path) -> Path:
    """Where the signature of a folder is: in it where it was shipped, else beside it."""
    inside = folder / SIGNATURE
    return inside if inside.is_file() else folder.with_name(f"{folder.name}.sig")


def sign(folder: Path, private_key: Path, signature: Path) -> None:
    """The signature is of exactly these bytes, which were what the manifest says when it was made."""
    verify(folder)
    _refuse_missing(private_key)
    signing, _, hashing = _library()
    fresh = signature.with_name(f".{signature.name}.incoming-{os.getpid()}")
    try:
        config = signing.Config().set_hashing_config(_hashing(hashing, folder))
        config.use_elliptic_key_signer(private_key=private_key).sign(folder, fresh)
        os.replace(fresh, signature)
    except Exception as error:  # the library raises whatever its parts raise
        raise RegistryError(f"{private_key}: signs nothing ({_line(error)}); give an EC private key in PEM") from None
    finally:
        fresh.unlink(missing_ok=True)


def verify_signature(folder: Path, public_key: Path, signature: Path) -> None:
    """Every file is one that the owner of the key signed, and there is no other."""
    _refuse_missing(public_key)
    if not signature.is_file():
        raise RegistryError(f"{signature}: there is no signature; sign with: turbopress sign {folder} --key KEY")
    _, verifying, hashing = _library()
    try:
        config = verifying.Config().set_hashing_config(_hashing(hashing, folder))
        config.use_elliptic_key_verifier(public_key=public_key).verify(folder, signature)
    except Exception as error:  # as above
        raise RegistryError(f"{folder}: is not what {public_key} signed ({_line(error)}); {REMEDY}") from None


def _hashing(hashing: Any, folder: Path) -> Any:
    """What a release adds for its server is not of the artifact."""
    beside = [folder / name for name in (SIGNATURE, *sorted(RELEASE))]
    return hashing.Config().set_ignored_paths(paths=beside, ignore_git_paths=False)


def _library() -> tuple[Any, Any, Any]:
    try:
        from model_signing import hashing, signing, verifying  # noqa: PLC0415 - an extra
    except ImportError as error:
        told = f"{error.name} is not installed; run: pip install 'turbopress[sign]'"
        raise RegistryError(f"signature: {told}") from error
    return signing, verifying, hashing


def _refuse_missing(key: Path) -> None:
    if not key.is_file():
        raise RegistryError(f"{key}: no such key; give a file in PEM")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
