"""Images in a conversation, in the OpenAI protocol's form: a part of a message, its bytes in the URL."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serving.engine import Message
from serving.errors import ServingError

SIGNATURES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg", b"RIFF": "image/webp"}


def user_message(text: str, images: Sequence[Path] = ()) -> Message:
    """What the user says, with images before the text where there are any."""
    if not images:
        return {"role": "user", "content": text}
    parts = [{"type": "image_url", "image_url": {"url": data_url(path)}} for path in images]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def data_url(path: Path) -> str:
    """The image itself as a URL; anything but PNG, JPEG and WebP is refused."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ServingError(f"{path}: cannot be read ({error.strerror}); give an image file") from None
    for signature, kind in SIGNATURES.items():
        if content.startswith(signature):
            return f"data:{kind};base64,{base64.b64encode(content).decode()}"
    raise ServingError(f"{path}: is no PNG, JPEG or WebP; convert it")


def picture(url: str) -> Any:
    """The image that a data URL holds; nothing is fetched from elsewhere."""
    from PIL import Image, UnidentifiedImageError  # noqa: PLC0415 - only images need it

    head, _, content = url.partition(";base64,")
    if not head.startswith("data:image/"):
        raise ServingError(f"{url[:60]}: is no image in the message itself; send its bytes")
    try:
        return Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise ServingError(f"image: is damaged ({error}); send another") from None


def words(message: Message) -> str:
    """A message's text without its images."""
    content = message["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
