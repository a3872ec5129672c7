"""What a Gradio hosting service (OpenXLab, Spaces) starts: the chat page for $TURBOPRESS_MODELS.

Names are separated by commas, each a folder, a variant or a server's address; without any, the base model that comes
with this repository. `requirements.txt` names what the service has to install.
"""

import os

from pipelines.web import build_page
from serving.web.page import CSS

MODELS = os.environ.get("TURBOPRESS_MODELS") or "examples/demo/base"

demo = build_page([name.strip() for name in MODELS.split(",")])

if __name__ == "__main__":
    demo.launch(css=CSS, footer_links=[])
